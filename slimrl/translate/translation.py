"""A translated settings file: its settings with the reason for each, what has no equivalent, and the text of both."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from slimrl.config.base import walk
from slimrl.config.files import build, merge
from slimrl.config.foreign_names import Foreign
from slimrl.config.places import DATA, MODELS
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.translate.source import shown

WIDTH = 110


@dataclass(frozen=True)
class Setting:
    """A setting of SlimRL that a file of another library asks for, by the dotted key that it is kept under."""

    value: Any
    reason: str
    """The names that it translates, as a comment behind it."""
    given: bool = True
    """False for a default of the other library, which is written only where SlimRL has another."""


@dataclass(frozen=True)
class Left:
    """A setting of the other library that the translation does not have."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Translation:
    """Settings that are valid together, and what was left out."""

    file: str
    library: str
    settings: Mapping[str, Setting]
    left: tuple[Left, ...]

    def seen_from(self, folder: Path) -> Translation:
        """The same for a file in `folder`, whose paths are relative to it; the other library's are to the working directory."""
        settings = dict(self.settings)
        for section, key in (*MODELS, *DATA):
            setting = settings.get(name := f"{section}.{key}")
            if setting is None or (place := Path(str(setting.value))).is_absolute():
                continue
            if place.exists():
                settings[name] = replace(setting, value=os.path.relpath(place, folder))
            elif given_as_path(str(setting.value)) and folder.resolve() != Path.cwd():
                here = "not found from the working directory, and relative to this file's folder from now on"
                settings[name] = replace(setting, reason=f"{setting.reason}; {here}")
        return replace(self, settings=settings)

    def text(self) -> str:
        """The settings file: YAML with a comment behind each setting and the rest below."""
        head = (
            f"# Translated from {self.file} ({self.library}) by slimrl from-{self.library.split()[0].lower()}. What stands here "
            "was set there, or is a default there and another here. Check it with slimrl doctor before the first run."
        )
        lines = [*textwrap.wrap(head, WIDTH, subsequent_indent="# "), "", *_lines(self.settings)]
        if self.left:
            lines += ["", "# Not translated, and why:"]
        for left in self.left:
            sentence = (
                f"#   {left.name}: {left.value}  -- {left.reason}"
                if left.value
                else f"#   {left.name}  -- {left.reason}"
            )
            lines += textwrap.wrap(sentence, WIDTH, subsequent_indent="#     ", break_long_words=False)
        return "\n".join(lines) + "\n"


def given_as_path(text: str) -> bool:
    """True for a text that can only be a path, and not a name on the Hub; what stands in for one in capitals is none."""
    is_path = text.startswith(("./", "../", "~")) or text.endswith((".json", ".jsonl", ".csv", ".parquet"))
    return is_path and not Path(text).stem.isupper()


def fitted(wanted: Mapping[str, Setting]) -> tuple[dict[str, Setting], list[Left]]:
    """The settings that can stand in one file, and those that SlimRL refuses, each with the refusal and what acts instead.

    A setting joins those before it, so one that others need comes first.
    """
    ours = _defaults()
    nested: dict[str, Any] = {}
    kept: dict[str, Setting] = {}
    left = []
    for key, setting in wanted.items():
        tried = merge(nested, _nested(key, setting.value))
        try:
            build(TrainConfig, tried)
        except SettingsError as error:
            name, equals, _ = setting.reason.partition("=")
            instead = f"; {key}={shown(ours[key])} acts instead" if key in ours else ""
            left.append(Left(name if equals else key, shown(setting.value), f"{error}{instead}"))
            continue
        nested, kept[key] = tried, setting
    return kept, left


def different(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """The settings that a file needs: given ones, and defaults of the other library that are not ours."""
    ours = _defaults()
    return {key: one for key, one in settings.items() if one.given or key not in ours or one.value != ours[key]}


def _defaults() -> dict[str, Any]:
    return {key: kind.model_fields[name].get_default() for key, kind, name in walk(TrainConfig)}


def unknown(name: str, row: Foreign | None, value: object, library: str) -> Left:
    """A setting without an equivalent, with the reason of its row in the table."""
    if row is None:
        return Left(name, shown(value), f"it is none of the settings of {library} that SlimRL knows")
    return Left(name, shown(value), row.note)


def _nested(key: str, value: Any) -> dict[str, Any]:
    found = value
    for part in reversed(key.split(".")):
        found = {part: found}
    return dict(found)


def _lines(settings: Mapping[str, Setting]) -> list[str]:
    """The settings by section, in the order of the schema."""
    order = {key: number for number, (key, _, _) in enumerate(walk(TrainConfig))}
    lines: list[str] = []
    sections: tuple[str, ...] = ()
    for key in sorted(settings, key=lambda key: order.get(key, len(order))):
        *path, leaf = key.split(".")
        shared = next(
            (i for i, (a, b) in enumerate(zip(sections, path, strict=False)) if a != b), min(len(sections), len(path))
        )
        lines += [f"{'  ' * depth}{path[depth]}:" for depth in range(shared, len(path))]
        sections = tuple(path)
        lines += _line("  " * len(path), leaf, settings[key])
    return lines


def _line(indent: str, leaf: str, setting: Setting) -> list[str]:
    """A setting with its comment, which stands above it where the line would be long."""
    value = yaml.safe_dump(setting.value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("\n")
    line = f"{indent}{leaf}: {_plain(value.removesuffix('...').rstrip(), setting.value)}"
    if not setting.reason:
        return [line]
    if len(line) + len(setting.reason) + 5 <= WIDTH:
        return [f"{line}  # {setting.reason}"]
    return [*textwrap.wrap(setting.reason, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "), line]


def _plain(text: str, value: object) -> str:
    """A value as SettingsLoader reads it back: a float keeps its exponent, a text its line breaks."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, str) and re.search(r"[\n\t\x00-\x1f]", value):
        return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**6).removesuffix("\n")
    return text


def sentences(left: Iterable[Left]) -> list[str]:
    """The settings that were left out, for a screen."""
    return [f"{one.name}{f': {one.value}' if one.value else ''} ({one.reason})" for one in left]
