"""The settings in a file of another library, by their names there, as far as they can be read without running it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slimrl.errors import SettingsError
from slimrl.text import visible

NULLS = ("max_completion_length", "vllm_importance_sampling_clip_max")
"""Names of TRL whose null says something, since their default is a number."""
REGISTRY: Mapping[str, Mapping[str, Any]] = {
    "get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256},
    "soft_overlong_punishment": {"max_completion_len": 16384, "soft_punish_cache": 4096},
}
"""Arguments with which TRL's and open-r1's command lines make a function that a file names; open-r1's may be set beside it."""


@dataclass(frozen=True)
class RewardName:
    """A reward function as a file names it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the call that makes the function, where there is one."""
    is_local: bool = False
    """The same file defines it."""


@dataclass(frozen=True)
class Source:
    """The settings of a file."""

    file: str
    given: Mapping[str, Any]
    """By their names in the other library; None is left out where it means that nothing is set."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """The expressions whose values only running the file would tell, by the name that they are given to."""
    rewards: tuple[RewardName, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences on how the file was read."""


def read_text(file: str) -> str:
    """The text of a file; raises SettingsError."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not UTF-8 text; give a YAML, JSON or Python file") from None
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror or error}); check the path") from None


def read_mapping(file: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; raises SettingsError.

    YAML is read as other libraries read it: yes, no, on and off are booleans, unlike in a settings file of SlimRL.
    """
    text, is_json = read_text(file), Path(file).suffix == ".json"
    try:
        found = json.loads(text) if is_json else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or " ".join(str(error).split())[:160]
        where = f"{file}:{mark.line + 1}" if mark else file
        raise SettingsError(f"{where}: not valid {'JSON' if is_json else 'YAML'} ({reason}); mend it first") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{file}: settings are a mapping of names to values, this is a {type(found).__name__}")
    return found


def mapping_source(file: str) -> Source:
    """A YAML or JSON file of TRL, whose names are at the top."""
    found = said(read_mapping(file))
    names = found.pop("reward_funcs", None) or []
    listed = [names] if isinstance(names, str) else names if isinstance(names, list) else []
    return Source(file, found, rewards=tuple(_registered(str(name), found) for name in listed))


def said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the nulls that say nothing."""
    return {str(key): value for key, value in settings.items() if value is not None or key in NULLS}


def _registered(name: str, settings: Mapping[str, Any]) -> RewardName:
    """A function that a command line makes with arguments of its own; TRL's takes none from the file."""
    arguments = dict(REGISTRY.get(name, {}))
    if name == "soft_overlong_punishment":
        arguments = {key: settings.get(key, value) for key, value in arguments.items()}
    return RewardName(name, arguments)


def shown(value: object) -> str:
    """A value on one line, for a comment."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = visible(" ".join(text.split()))
    return text if len(text) <= 60 else f"{text[:57]}..."
