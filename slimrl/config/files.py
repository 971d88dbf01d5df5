"""From YAML files and `section.key=value` to the settings objects of `config/schema.py`.

Files merge left to right, then overrides. A setting that is text is taken as it is written, so `0123456` and `2026-01-05` need
no quotes. Paths in a file are relative to the file, those of overrides to the working directory.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from slimrl.config.base import subsection, walk
from slimrl.config.judge import JudgeReward
from slimrl.config.mistakes import close_names, nearest, sentence, type_words
from slimrl.config.places import anchored
from slimrl.config.recipes import name_of
from slimrl.config.rewards import is_programs, long_form
from slimrl.config.schema import UNREAD_BY_SFT, RootConfig, SftRunConfig, TrainConfig
from slimrl.errors import SettingsError

Root = TypeVar("Root", bound=RootConfig)
OF_A_PROGRAM = (
    "# The rewards __main__:... are functions of the Python program that began this run. That program resumes it, with\n"
    "# slimrl.train(resume=RUN, rewards=[...]) and the same functions; slimrl train --resume cannot.\n"
)
PLAYED_BY_A_PROGRAM = (
    "# The environment is a class of the Python program that began this run. That program resumes it, with\n"
    "# slimrl.train(resume=RUN, environment=Class) and the same class; slimrl train --resume cannot.\n"
)
STRING, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def load_config(
    kind: type[Root], files: Sequence[str], overrides: Sequence[str] = (), *, base: Mapping[str, Any] | None = None
) -> Root:
    """Merge YAML files left to right over `base`, then overrides `section.key=value`, and validate. An override `section={}`
    takes back what files and `base` say of the section.

    Raises SettingsError with one sentence that names the setting and the way out.
    """
    return build(kind, merged_settings(kind, files, overrides, base=base), ", ".join(files))


def merged_settings(
    kind: type[RootConfig], files: Sequence[str], overrides: Sequence[str], *, base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """YAML files merged left to right over `base`, then overrides, as one nested mapping that is not validated yet."""
    merged: dict[str, Any] = dict(base or {})
    for file in files:
        merged = merge(merged, anchored(for_verb(kind, read_yaml(file)), Path(file).parent))
    for override in overrides:
        merged = _overridden(merged, parse_override(override))
    return merged


def _overridden(merged: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """As `merge`, but {} replaces what is there."""
    found = dict(merged)
    for key, value in override.items():
        both = value and isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _overridden(found[key], value) if both else value
    return found


def build(kind: type[Root], settings: Mapping[str, Any], origin: str = "") -> Root:
    """Validate a nested mapping into the settings object; raises SettingsError, which names `origin` where there is one."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise SettingsError(sentence(kind, error, origin)) from None
    except RecursionError:
        raise SettingsError(f"{origin or 'the settings'}: a section refers to itself; write the settings out") from None


def for_verb(kind: type[RootConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A file's settings without those of other verbs: one recipe serves train, sft and eval."""
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
        raise SettingsError(_no_file(file))
    try:
        data = _read(path.read_text(encoding="utf-8"))
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


def _no_file(file: str) -> str:
    """The sentence on a name that is no settings file: often a setting without its value, or a recipe without its sign."""
    path = Path(file)
    rows = {
        key: kind.model_fields[name].get_default()
        for root in (SftRunConfig, TrainConfig)
        for key, kind, name in walk(root)
    }
    if file in rows:
        default = rows[file]
        if isinstance(default, BaseModel):
            return f"{file} is a section of settings; write {file}.KEY=value (slimrl settings {file} lists them)"
        return (
            f"{file} is a setting without its value; write it as {file}={_shown_default(default)}, which is the default"
        )
    if (path / "run.json").is_file():
        return (
            f"{file} is a run, not a settings file; write {path / 'config.yaml'} for its settings, or model.path={file}"
        )
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return f"{file} is a model, not a settings file; write model.path={file}"
    folder = path.parent if path.parent.is_dir() else Path()
    if path.suffix not in (".yaml", ".yml") and (folder / f"{path.name}.yaml").is_file():
        return f"{file}: no such settings file; did you mean {file}.yaml?"
    if recipe := name_of(file):
        return f"{file}: no such settings file; did you mean {recipe}?"
    return f"{file}: no such settings file{nearest(path.name, [p.name for p in folder.glob('*.yaml')])}"


def _shown_default(value: object) -> str:
    return json.dumps(value).strip('"') or "''"


def _read(text: str) -> Any:
    """The contents of a YAML document; settings that are text stay as they are written."""
    loader = SettingsLoader(text)
    try:
        node = loader.get_single_node()
        for kind in (TrainConfig, SftRunConfig):
            _keep_text(node, kind)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _keep_text(node: yaml.Node | None, kind: type[BaseModel]) -> None:
    """Make strings of the plain scalars (not empty, not null) that stand for text in a settings class."""
    for index, (key, value) in enumerate(node.value if isinstance(node, yaml.MappingNode) else ()):
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name == "settings":  # of a study
            _keep_text(value, kind)
        is_text = name in kind.model_fields and kind.model_fields[name].annotation is str
        if section := subsection(kind, name):
            _keep_text(value, section)
        elif is_text and isinstance(value, yaml.ScalarNode) and value.tag != NULL:
            node.value[index] = (key, yaml.ScalarNode(STRING, value.value, value.start_mark, value.end_mark))  # type: ignore[union-attr]


class SettingsLoader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, `off` is a word, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = "" if isinstance(key, str) else f"{key!r} is not the name of a setting"
            if not problem and key in seen:
                problem = f"{key} is set twice"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


SettingsLoader.add_constructor("!scientific", lambda _, node: float(node.value))
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
    """`section.key=value` as a nested mapping; the value is text where the setting is, and YAML elsewhere.

    Raises SettingsError for anything else.
    """
    key, equals, value = text.partition("=")
    parts = _parts(key.strip())
    if not equals or not all(parts):
        raise SettingsError(f"{text!r} is neither a settings file nor section.key=value")
    return nested(key.strip(), _value(text, value.lstrip() if key != key.rstrip() else value, _annotation(parts)))


def nested(key: str, value: Any) -> dict[str, Any]:
    """A value under its dotted key, as the nested mapping of a file."""
    parts = _parts(key)
    found: Any = long_form(value) if parts[:2] == ["rewards", "custom"] and len(parts) == 3 else value
    for part in reversed(parts):
        found = {part: found}
    return dict(found)


def _parts(key: str) -> list[str]:
    """The parts of a dotted key."""
    # The name of a user's reward function holds dots of its own: rewards.custom.my.py:brevity.weight
    custom = re.fullmatch(r"rewards\.custom\.(.+:\w+)((?:\.\w+)*)", key)
    return ["rewards", "custom", custom[1], *custom[2].split(".")[1:]] if custom else key.split(".")


def _annotation(parts: Sequence[str]) -> Any:
    """The type of a setting; None where there is none of that name."""
    if parts[:2] == ["rewards", "judge"] and len(parts) == 4 and parts[3] in JudgeReward.model_fields:
        return JudgeReward.model_fields[parts[3]].annotation
    known = {
        key: kind.model_fields[name].annotation
        for root in (SftRunConfig, TrainConfig)
        for key, kind, name in walk(root)
    }
    return known.get(".".join(parts))


def _value(override: str, value: str, annotation: Any) -> Any:
    """The value of an override as its setting takes it."""
    choice = get_origin(annotation) is Literal and all(isinstance(name, str) for name in get_args(annotation))
    if annotation is str or choice:
        return _unquoted(value.strip() if choice else value)
    if re.search(r"(^|\s)#", value) and not value.lstrip().startswith(("{", "[", '"', "'")):
        return value  # YAML would drop it as a comment
    try:
        parsed = yaml.load(value, Loader=SettingsLoader)
    except yaml.YAMLError:
        raise SettingsError(f"{override!r}: the value is not valid YAML; quote it") from None
    return "" if parsed is None and value.strip() == "" else parsed


def _unquoted(value: str) -> str:
    """Text without the quotes that YAML would have needed, where these enclose all of it."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        try:
            parsed = yaml.load(value, Loader=SettingsLoader)
        except yaml.YAMLError:
            return value
        return parsed if isinstance(parsed, str) else value
    return value


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
    """The whole settings object as YAML, readable by `load_config` from any folder: paths are absolute."""
    text = yaml.safe_dump(anchored(config.model_dump(), Path.cwd()), sort_keys=False, allow_unicode=True)
    rewards = getattr(config, "rewards", None)
    environment = getattr(config, "environment", None)
    text = PLAYED_BY_A_PROGRAM + text if environment and is_programs(environment.name) else text
    return OF_A_PROGRAM + text if rewards and rewards.of_the_program else text


def settings_of(config: RootConfig, *, absolute: bool = False) -> dict[str, Any]:
    """Every setting by its dotted key; with `absolute` paths are, so that settings read in two places can be compared."""
    values = anchored(config.model_dump(), Path.cwd()) if absolute else config.model_dump()
    return {key: reduce(getitem, path, values) for key, path in _paths(type(config)).items()}


@cache
def _paths(root: type[RootConfig]) -> dict[str, list[str]]:
    """The names on the way to every setting, by its dotted key."""
    return {key: key.split(".") for key, kind, name in walk(root) if not subsection(kind, name)}


def describe_settings(wanted: str | None = None) -> list[dict[str, Any]]:
    """Every setting of `train` and `sft`: key, type, default and meaning.

    `wanted` is a section, a setting, or a word to look for in keys and meanings; raises SettingsError where nothing fits.
    """
    settings = {key: (kind, name) for root in (TrainConfig, SftRunConfig) for key, kind, name in walk(root)}
    rows = {key: _described(key, kind, name) for key, (kind, name) in settings.items() if not subsection(kind, name)}
    if wanted is None:
        return list(rows.values())
    chosen = [row for key, row in rows.items() if key == wanted or key.startswith(wanted + ".")]
    word = re.compile(rf"(?<![a-z]){re.escape(wanted)}", re.IGNORECASE)
    chosen = chosen or [row for key, row in rows.items() if word.search(f"{key} {row['meaning']}")]
    if not chosen:
        sections = dict.fromkeys(key.partition(".")[0] for key in rows if "." in key)
        hint = nearest(wanted, sections) or close_names(wanted, given=False)
        raise SettingsError(
            f"{wanted} is neither a section of settings nor in the name or meaning of one{hint}; the sections are "
            f"{', '.join(sections)}"
        )
    return chosen


def _described(key: str, kind: type[BaseModel], name: str) -> dict[str, Any]:
    info = kind.model_fields[name]
    words = type_words(kind, name)
    return {"key": key, "type": words, "default": info.get_default(), "meaning": info.description or ""}
