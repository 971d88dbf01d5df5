"""The settings of another library with its defaults, on their way to ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from slimrl.config import foreign_names
from slimrl.terms import Tracker
from slimrl.translate.source import Source, shown
from slimrl.translate.translation import Left, Setting, unknown

Keyed = tuple[str, Setting]
"""A setting and its dotted key."""


class Values:
    """The settings that a file gives, and those that it leaves to the defaults of its library.

    `left` grows with what has no equivalent, and `read` with the names that were translated, whatever came of them.
    """

    def __init__(self, source: Source, library: str, defaults: Mapping[str, Any]) -> None:
        self.source, self.library, self.defaults = source, library, defaults
        self.given = dict(source.given)
        self.values: dict[str, Any] = {**defaults, **self.given}
        self.left: list[Left] = []
        self.read: set[str] = set()
        self.uses: dict[str, list[str]] = {}
        """The settings that depend on a name."""

    def leave(self, name: str, value: object, reason: str) -> None:
        """List a setting among those that are not translated."""
        self.left.append(Left(name, shown(value), reason))

    def depends(self, key: str, *names: str) -> None:
        """Note that a setting is made of names, for those that the file sets to what cannot be read."""
        for name in names:
            if key not in self.uses.setdefault(name, []):
                self.uses[name].append(key)

    def is_set(self, *names: str) -> bool:
        """True where the file sets one of the names, whether its value can be read or not."""
        return any(name in self.given or name in self.source.unread for name in names)

    def because(self, *names: str) -> str:
        """The names that a setting translates with their values, and whether these are only defaults."""
        self.read.update(names)
        named = []
        for name in names:
            if name in self.source.unread:
                taken = f"; {shown(self.values[name])} is taken" if name in self.values else ""
                named.append(f"{name}={shown(self.source.unread[name])}, which is not read{taken}")
            elif name in self.values:
                named.append(f"{name}={shown(self.values[name])}")
        return ", ".join(named) + ("" if self.is_set(*names) else f": {self.library}'s default")

    def set(self, key: str, value: Any, *names: str, why: str = "") -> Keyed:
        """A setting that translates names, with `why` behind them in its reason."""
        self.depends(key, *names)
        reason = self.because(*names)
        return key, Setting(value, f"{reason}; {why}" if why else reason, self.is_set(*names))

    def trackers(self, name: str) -> Iterator[Keyed]:
        """The trackers of a setting that SlimRL has too; the others are listed."""
        asked = self.given.get(name) or []
        names = [str(one) for one in ([asked] if isinstance(asked, str) else asked)]
        known = [one for one in names if one in get_args(Tracker)]
        self.read.add(name)
        if known:
            yield self.set("log.to", known, name)
        for one in names:
            if one not in (*known, "none", "console"):
                self.leave(name, one, f"log.to takes {', '.join(get_args(Tracker))}")

    def unread(self) -> Iterator[Left]:
        """The names whose values only running the file would tell, and the settings that have to be set for them."""
        for name, text in self.source.unread.items():
            keys = self.uses.get(name, [])
            taken = f"{shown(self.values[name])} is taken; " if name in self.values and keys else ""
            what = " and ".join([", ".join(keys[:-1]), keys[-1]] if len(keys) > 1 else keys) or "it"
            yield Left(name, shown(text), f"only running the file tells its value; {taken}set {what} by hand")

    def number(self, name: str) -> float:
        """A number, also one that is written as a text; the default, and a line in `left`, where it is none."""
        try:
            return float(self.values[name])
        except (TypeError, ValueError):
            self.leave(name, self.values[name], f"it is no number; {self.library}'s default stands in its place")
            self.values[name] = self.defaults.get(name, 1)
            return float(self.values[name])

    def whole(self, name: str) -> int:
        """A number of things, at least 1."""
        return max(1, round(self.number(name)))

    def by_the_table(self, off: Mapping[str, Any]) -> Iterator[Keyed]:
        """The given names that are not read yet and that one row of the table says all about.

        `off` has the values with which a name asks for nothing that SlimRL does not do; so do false, no and none where a name
        has no equivalent.
        """
        for name, value in self.given.items():
            row = foreign_names.row(name)
            none = row is None or not row.ours
            is_off = value == off[name] if name in off else none and value in (False, "no", "none", "", [], {})
            if name in self.read or is_off:
                continue
            if row is None or none:
                self.left.append(unknown(name, row, value, self.library))
                continue
            key, equals, ours = foreign_names.translated(row, value).partition("=")
            if row.values and not equals:
                self.leave(name, value, f"{key} takes no such value; its default acts instead")
            else:
                yield self.set(key, foreign_names.typed(ours) if equals else value, name)
