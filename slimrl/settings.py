"""From YAML files and `section.key=value` to the settings objects of config.py, and from mistakes to sentences.

Files merge left to right, then overrides. Unknown keys are refused with the nearest name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from slimrl.config import UNREAD_BY_SFT, RootConfig, SftRunConfig, TrainConfig
from slimrl.errors import SettingsError

Root = TypeVar("Root", bound=RootConfig)
MAPPINGS = ("rewards.custom", "sft.mixture", "task.template_arguments")
"""Settings whose value is a mapping with keys of the user's own."""
UNION = re.compile(r"constrained-\w+|literal\[.*\]|int|float")
"""What pydantic adds to the place of an error to say which alternative of a type it is about."""


def load_config(
    kind: type[Root],
    files: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
) -> Root:
    """Merge YAML files left to right over `base`, then overrides `section.key=value`, and validate.

    Raises SettingsError with one sentence that names the setting and the way out.
    """
    merged = dict(base or {})
    for file in files:
        merged = merge(merged, for_verb(kind, read_yaml(file)))
    for override in overrides:
        merged = merge(merged, parse_override(override))
    return build(kind, merged, ", ".join(files) or "the settings")


def build(kind: type[Root], settings: Mapping[str, Any], origin: str = "the settings") -> Root:
    """Validate a nested mapping into the settings object; raises SettingsError."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise SettingsError(_sentence(kind, error, origin)) from None
    except RecursionError:
        raise SettingsError(f"{origin}: a section refers to itself; write the settings out") from None


def for_verb(kind: type[RootConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A file's settings without those that belong to another verb: recipes serve train, sft and eval alike."""
    foreign = {*TrainConfig.model_fields, *SftRunConfig.model_fields} - set(kind.model_fields)
    kept = {key: value for key, value in settings.items() if key not in foreign}
    if kind is SftRunConfig:
        for section, keys in UNREAD_BY_SFT.items():
            if isinstance(kept.get(section), dict):
                kept[section] = {key: value for key, value in kept[section].items() if key not in keys}
    return kept


def read_yaml(file: str) -> dict[str, Any]:
    """A YAML mapping, or a SettingsError that names the file and the line."""
    path = Path(file)
    if not path.is_file():
        hint = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else [])
        raise SettingsError(f"{file}: no such settings file{hint}")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=SettingsLoader)
    except UnicodeDecodeError:
        raise SettingsError(f"{file}: not UTF-8 text; settings files are YAML") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SettingsError(f"{where}: not valid YAML ({reason})") from None
    except RecursionError:
        raise SettingsError(f"{file}: an alias refers to itself; write the settings out") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{file}: a settings file is a mapping of sections, this is a {type(data).__name__}")
    return data


class SettingsLoader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, `off` is a word, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} is not the name of a setting", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key} is set twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _scientific(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node))


SettingsLoader.add_constructor("!scientific", _scientific)
# Resolvers are inherited as one dictionary: ours is a copy without YAML 1.1's yes, no, on and off as booleans, and
# without dates, which are text here (yaml raises ValueError for 2026-13-01).
SettingsLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
SettingsLoader.add_implicit_resolver("!scientific", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse_override(text: str) -> dict[str, Any]:
    """`section.key=value` as a nested mapping; the value is YAML."""
    key, equals, value = text.partition("=")
    # The name of a user's reward function holds dots of its own: rewards.custom.my.py:brevity.weight=0.5
    custom = re.fullmatch(r"rewards\.custom\.(.+:\w+)\.(\w+)", key.strip())
    parts = ["rewards", "custom", *custom.groups()] if custom else key.strip().split(".")
    if not equals or not all(parts):
        raise SettingsError(f"{text!r} is neither a settings file nor section.key=value")
    try:
        parsed = yaml.load(value, Loader=SettingsLoader)
    except yaml.YAMLError:
        raise SettingsError(f"{text!r}: the value is not valid YAML; quote it") from None
    nested: Any = "" if parsed is None and value.strip() == "" else parsed
    for part in reversed(parts):
        nested = {part: nested}
    return dict(nested)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings merge key by key."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def with_chosen(config: Root, chosen: Mapping[str, Any]) -> Root:
    """The settings with these numbers, by dotted key, where they say `auto`."""
    for key, value in chosen.items():
        name, _, field = key.partition(".")
        section = getattr(config, name)
        if getattr(section, field) == "auto":
            config = config.model_copy(update={name: section.model_copy(update={field: value})})
    return config


def dump_yaml(config: BaseModel) -> str:
    """The whole settings object as YAML, readable by `load_config`."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def settings_of(config: RootConfig) -> dict[str, Any]:
    """Every setting by its dotted key."""

    def flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            nested = isinstance(value, dict) and f"{prefix}{key}" not in MAPPINGS
            found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
        return found

    return flat(config.model_dump(), "")


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" where something is near, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def known_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a settings class, sections included."""
    keys = []
    for name, info in kind.model_fields.items():
        keys.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += known_keys(info.annotation, f"{prefix}{name}.")
    return keys


def _nearest_key(kind: type[BaseModel], key: str) -> str:
    """The hint for an unknown key: one like it in its own section, else one of that name in another."""
    section, _, leaf = key.rpartition(".")
    keys = known_keys(kind)
    elsewhere = {k.rpartition(".")[2]: k for k in reversed(keys)}
    moved = difflib.get_close_matches(leaf, elsewhere, n=1, cutoff=0.5)
    own = nearest(key, [k for k in keys if k.rpartition(".")[0] == section])
    return own or (f"; did you mean {elsewhere[moved[0]]}?" if moved else "; slimrl settings lists them all")


def _sentence(kind: type[BaseModel], error: ValidationError, origin: str) -> str:
    """The first validation error as one sentence with the dotted key, the value and the way out."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    either = ""
    if len(parts) > 1 and UNION.fullmatch(parts[-1]):  # a number, or a word
        parts.pop()
        words = [
            e["ctx"]["expected"]
            for e in error.errors()
            if e["loc"][:-1] == first["loc"][:-1] and "ctx" in e and "expected" in e["ctx"]
        ]
        either = f", or {words[0]}" if words else ""
    where = ".".join(parts)
    value = first["input"]
    match first["type"]:
        case "extra_forbidden":
            return f"{where} is not a setting ({origin}){_nearest_key(kind, where)}"
        case "literal_error":
            expected = first["ctx"]["expected"]
            return f"{where}={value!r} is not one of {expected}{nearest(str(value), expected.replace(chr(39), '').split(', '))}"
        case "value_error":
            message = str(first["ctx"]["error"])
            return message if "." in message.split("=")[0].split(" ")[0] or not where else f"{where}: {message}"
        case "model_type" | "dict_type":
            return f"{where} is a section of settings, not a value; write {where}.KEY=value"
        case "missing":
            return f"{where} is missing; it has no default"
        case "string_too_long":
            return f"{where}={value[:20]!r}... has {len(value):,} characters; at most {first['ctx']['max_length']} are allowed"
        case "string_pattern_mismatch":
            return f"{where}={value[:80]!r} may hold only lower-case letters, digits, '.', '_' and '-'; rename it"
        case _:
            message = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
            return f"{where}={value!r} is not valid: it should be {message}{either}"


def describe_settings(section: str | None = None) -> list[dict[str, Any]]:
    """Every setting of `train` and `sft`: key, type, default and meaning; raises SettingsError for an unknown section."""
    rows: dict[str, dict[str, Any]] = {}
    for kind in (TrainConfig, SftRunConfig):
        _describe(kind, "", rows)
    if section is None:
        return list(rows.values())
    chosen = [row for key, row in rows.items() if key == section or key.startswith(section + ".")]
    if not chosen:
        sections = dict.fromkeys(key.partition(".")[0] for key in rows)
        raise SettingsError(
            f"{section} is not a section of settings{nearest(section, sections)}; there are {', '.join(sections)}"
        )
    return chosen


def _describe(kind: type[BaseModel], prefix: str, rows: dict[str, dict[str, Any]]) -> None:
    for name, info in kind.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            _describe(info.annotation, f"{prefix}{name}.", rows)
        else:
            schema = kind.model_json_schema()["properties"][name]
            rows[prefix + name] = {
                "key": prefix + name,
                "type": " | ".join(map(_allowed, schema.get("anyOf", [schema]))),
                "default": info.get_default(),
                "meaning": info.description or "",
            }


def _allowed(schema: Mapping[str, Any]) -> str:
    """The values that a part of a JSON schema allows, in a word."""
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    return str(schema.get("type", "mapping"))
