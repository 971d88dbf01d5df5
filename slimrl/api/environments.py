"""Environments as Python gives them: names, classes, and the settings of the section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slimrl.api.settings import plain
from slimrl.config.rewards import PROGRAM
from slimrl.errors import SettingsError
from slimrl.rewards.custom import importable_name

Environment = str | Callable[..., Any] | Mapping[str, Any]
"""`calculator`, `file.py:Class`, a class, or the section `environment` as a mapping, whose `name` may be a class."""


@dataclass(frozen=True)
class Given:
    """An environment as settings, and the class where only this process has it."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The section `environment`."""
    classes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """By the name in the settings."""


def read_environment(environment: Environment | None) -> Given:
    """The settings of an environment. A class that other processes can load goes by its file or module.

    Raises SettingsError for what is neither a name nor a class.
    """
    if environment is None:
        return Given()
    section = dict(environment) if isinstance(environment, Mapping) else {"name": environment}
    kind = section.get("name", "")
    if isinstance(kind, str):
        return Given(plain(section))
    if not callable(kind):
        raise SettingsError(
            f"environment: {type(kind).__name__} is neither a name nor a class; arguments of a class go beside it, as "
            "environment={'name': Class, 'arguments': {...}}"
        )
    name = importable_name(kind) or f"{PROGRAM}:{getattr(kind, '__name__', type(kind).__name__)}"
    return Given(plain({**section, "name": name}), {name: kind} if name.startswith(f"{PROGRAM}:") else {})
