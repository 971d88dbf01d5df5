"""Rewards as Python gives them: names, functions, and pairs with a weight."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slimrl.api.settings import plain
from slimrl.config.mistakes import nearest
from slimrl.config.rewards import PROGRAM, PUNISHMENTS, RewardsConfig, Weight, long_form
from slimrl.errors import SettingsError
from slimrl.rewards.custom import importable_name, is_as_in_its_file

Function = Callable[..., Any]
Reward = str | Function
Rewards = Reward | Sequence[Reward | tuple[Reward, float | Mapping[str, Any]]] | Mapping[str, Any]
"""Names of built-in rewards, `file.py:function`, functions, and pairs of one of these with its weight or with the settings of a
reward of one's own; or the section `rewards` as a mapping."""


CHANGED = (
    "is not the function of its file: it was replaced or wrapped in memory, or the file was edited after its import"
)


@dataclass(frozen=True)
class Given:
    """Rewards as settings, and the functions that only this process can call."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The section `rewards`."""
    functions: Mapping[str, Function] = field(default_factory=dict)
    """By their name in rewards.custom."""
    whole: bool = False
    """A list, beside which nothing else is paid."""
    changed: tuple[str, ...] = ()
    """Names of functions in whose place a worker would load other code; they are among `functions`."""

    @property
    def notes(self) -> list[str]:
        """A sentence on each of the `changed`."""
        return [f"{name} {CHANGED}; the function in memory is used, and not the file" for name in self.changed]

    def over(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings of a recipe or a run, without the functions and judges that a list of rewards takes the place of."""
        section = settings.get("rewards")
        if not (self.whole and isinstance(section, Mapping)):
            return settings
        kept = {key: value for key, value in section.items() if key not in ("custom", "judge", "watched")}
        return {**settings, "rewards": kept}


def read_rewards(rewards: Rewards | None) -> Given:
    """The settings of rewards. A list is whole: beside it only PUNISHMENTS of a recipe are left. A weight of 0 measures a reward.

    Raises SettingsError for a name that is none, for what is no function, and for a reward that is given twice.
    """
    if rewards is None or isinstance(rewards, Mapping):
        return Given({} if rewards is None else plain(rewards))
    known = RewardsConfig.marked(Weight)
    built_in: dict[str, Any] = {name: 0.0 for name in known if name not in PUNISHMENTS}
    given: dict[str, float] = {}
    custom: dict[str, Any] = {}
    functions: dict[str, Function] = {}
    changed: list[str] = []
    for entry in [rewards] if isinstance(rewards, str) or callable(rewards) else rewards:
        reward, weight = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, 1.0)
        if isinstance(reward, str) and reward in known:
            if reward in given:
                raise SettingsError(f"rewards: {reward} is given twice; remove one")
            given[reward] = built_in[reward] = _weight(reward, weight)
            continue
        is_changed = not isinstance(reward, str) and bool(importable_name(reward)) and not is_as_in_its_file(reward)
        spec = _spec(reward, known) if isinstance(reward, str) else _name(reward, functions, is_changed=is_changed)
        spec = next((name for name, function in functions.items() if function is reward), spec)
        if spec in custom:
            raise SettingsError(f"rewards: {spec} is given twice; remove one")
        custom[spec] = long_form(plain(weight))
        if not isinstance(reward, str) and spec.startswith(f"{PROGRAM}:"):
            functions[spec] = reward
        if not isinstance(reward, str) and is_changed:
            changed.append(f"{reward.__module__}.{reward.__qualname__}")
    watched = [name for name, weight in given.items() if not weight and name != "correct"]
    own: dict[str, Any] = {"custom": custom} if custom else {}
    section = built_in | own | ({"watched": watched} if watched else {})
    return Given(section, functions, whole=True, changed=(*changed,))


def _weight(reward: str, weight: Any) -> float:
    number = plain(weight)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise SettingsError(
            f"rewards: {reward} takes a weight, a number, and not a {type(weight).__name__}; correct it"
        )
    return float(number)


def _spec(reward: str, known: Mapping[str, Weight]) -> str:
    if ":" not in reward:
        hint = nearest(reward, known) or f"; they are {', '.join(known)}"
        raise SettingsError(
            f"rewards: {reward!r} is none of the built-in rewards, and a function of your own is given itself or as "
            f"'file.py:function'{hint}"
        )
    return reward


def _name(function: Any, functions: Mapping[str, Function], *, is_changed: bool) -> str:
    """Its name in rewards.custom: one by which workers load the function, unless it `is_changed`, else one of this program."""
    if not callable(function):
        raise SettingsError(
            f"rewards: {type(function).__name__} is neither a name nor a function; a pair of a function and its weight is a "
            "tuple in the list, [(function, 0.5)]"
        )
    if not is_changed and (spec := importable_name(function)):
        return spec
    while isinstance(function, functools.partial):
        function = function.func
    name = str(getattr(function, "__name__", type(function).__name__)).strip("<>")
    spec, count = f"{PROGRAM}:{name}", 1
    while spec in functions:
        count += 1
        spec = f"{PROGRAM}:{name}_{count}"
    return spec
