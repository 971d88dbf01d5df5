"""Sentences for the errors that pydantic finds in settings, and the names that were meant by unknown ones.

An unknown name is looked for as the same name in another section, then among the names of TRL and verl, then among
names that differ by a slip of the fingers; where none fits, nothing is suggested.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from slimrl.config import foreign_names
from slimrl.config.base import subsection, walk
from slimrl.config.judge import JudgeReward
from slimrl.config.rewards import CustomReward
from slimrl.config.schema import SftRunConfig, TrainConfig

SHORTEST = 4  # letters of a name that may stand for a longer one which begins with it
DEEPEST = 3  # dots in the longest names of settings, ours and others'
WORDS = {
    "integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text",
    "dictionary": "a mapping", "list": "a list",
}  # fmt: skip
"""pydantic's names of types in plain words."""
NAMED: dict[str, type[BaseModel]] = {"custom": CustomReward, "judge": JudgeReward}
"""Settings of the section rewards that are sections by a name of the user's."""
_RATE = "task.success_rate (an interval of success rates, measured before the run by slimrl difficulty)"


def distance(one: str, other: str) -> int:
    """Letters to insert, remove, change or swap with a neighbour until the words are equal (optimal string alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def closest(word: str, known: Iterable[str]) -> str:
    """The name that was meant by `word`: one letter in four may be wrong, or its end missing; empty where none is close."""
    names, word = list(known), word.lower()
    longer = [name for name in names if name.lower().startswith(word)]
    if len(word) >= SHORTEST and len(longer) == 1:
        return longer[0]
    slips, name = min(((distance(word, name.lower()), name) for name in names), default=(len(word), ""))
    return name if slips <= (len(word) + 1) // 4 else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" where X is but a slip away, else an empty string."""
    close = closest(word, known)
    return f"; did you mean {close}?" if close else ""


def known_keys(kind: type[BaseModel]) -> list[str]:
    """Every dotted key of a settings class, sections included."""
    return [key for key, _, _ in walk(kind)]


def close_names(key: str, value: object = None, kind: type[BaseModel] | None = None, *, given: bool = True) -> str:
    """The end of a sentence on a name that is no setting, with the names that may be meant; empty where none is near.

    `given` is false where the name is only asked about, so that there is nothing to remove.
    """
    kinds = (kind,) if kind else (TrainConfig, SftRunConfig)
    keys = list(dict.fromkeys(known for one in kinds for known in known_keys(one)))
    section, _, leaf = key.lower().replace("-", "_").rpartition(".")
    if by_difficulty := _by_difficulty(key, value):
        return f"; did you mean {by_difficulty}?"
    moved = [known for known in keys if known != key and known.rpartition(".")[2] == leaf]
    foreign = foreign_names.find(key)
    if foreign and not foreign.ours and not moved:
        return f"; {foreign.name} of {foreign.origin} has no equivalent here: {foreign.note}{'; remove it' if given else ''}"
    if foreign and foreign.ours and foreign.ours not in moved:
        meant = foreign_names.translated(foreign, value)
        note = f"; {foreign.note}" if foreign.note else ""
        names = f"{' or '.join(moved)}, or " if moved else ""
        return f"; did you mean {names}{meant} ({foreign.name} in {foreign.origin}{note})?"
    if moved:
        return f"; did you mean {' or '.join(moved)}?"
    begun = [known for known in keys if known.startswith(f"{section}.{leaf}_")] if section else []
    if begun:
        return f"; did you mean {' or '.join(begun)}?"
    own = {known.rpartition(".")[2]: known for known in keys if known.rpartition(".")[0] == section}
    elsewhere = {known.rpartition(".")[2]: known for known in reversed(keys)}
    close = own.get(closest(leaf, own)) or elsewhere.get(closest(leaf, elsewhere))
    if not close and section:  # a name of ours with more behind it
        close = own.get(max((name for name in own if leaf.startswith(f"{name}_")), key=len, default=""))
    return f"; did you mean {close}?" if close else ""


def _by_difficulty(key: str, value: object) -> str:
    """The settings that a choice of problems by their difficulty may mean; empty for other names.

    Numbers are rates. Words are a column, which is found by its name.
    """
    words = {word for part in key.lower().replace("-", "_").split(".") for word in part.split("_")}
    if "difficulty" not in words or "columns" in words or foreign_names.find(key):
        return ""
    if isinstance(value, str) and any(letter.isalpha() for letter in value):
        return ""
    return f"{_RATE} or task.columns.difficulty" if value is None else _RATE


def sentence(kind: type[BaseModel], error: ValidationError, origin: str) -> str:
    """The first validation error, unknown names before all others, as one sentence with the dotted key and the way out."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    where, owner, name = _place(kind, first["loc"])
    value, of = first["input"], f" ({origin})" if origin else ""
    match first["type"]:
        case "extra_forbidden":
            return _unknown(kind, where, value, of)
        case "literal_error" if owner is not None and " or " not in type_words(owner, name):
            choices = type_words(owner, name).split(" | ")
            return f"{where}={_shown(value)} is not one of {', '.join(choices)}{_choice(where, value, choices)}"
        case "value_error":
            message = str(first["ctx"]["error"])
            return message if "." in message.split("=")[0].split(" ")[0] or not where else f"{where}: {message}"
        case "model_type" if where.startswith("rewards.custom."):
            return _short_form(where)
        case "dict_type" if where == "rewards.custom":
            spec = str(next(iter(value), "") if isinstance(value, list) else value).strip("[]'\" ")
            return _short_form(f"{where}.{spec if ':' in spec else 'file.py:function'}")
        case "string_pattern_mismatch" if where.startswith("rewards.judge."):
            return f"{where.removesuffix('.[key]')} is not a name of letters, digits and '_'; rename the judge"
        case "model_type" | "dict_type":
            return f"{where} is a section of settings, not a value; write {where}.KEY=value"
        case "missing":
            return f"{where} is missing; it has no default"
        case "string_too_long":
            return f"{where}={value[:20]!r}... has {len(value):,} characters; at most {first['ctx']['max_length']} are allowed"
        case "string_pattern_mismatch":
            return f"{where}={value[:80]!r} may hold only lower-case letters, digits, '.', '_' and '-'; rename it"
        case "string_type":
            return f"{where}={_shown(value)} is not text; write it in quotes"
        case _:
            # a union has an error for each of its members
            words = dict.fromkeys(_wanted(e["msg"]) for e in errors if _place(kind, e["loc"])[0] == where)
            return f"{where}={_shown(value)} is not valid: it should be {' or '.join(words)}"


def _wanted(message: str) -> str:
    """The kind of value that pydantic asks for, in plain words."""
    words = message.removeprefix("Input should be ").removeprefix("a valid ").replace("'", "")
    return WORDS.get(words.partition(",")[0], words)


def _place(kind: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None, str]:
    """The dotted key of an error, the section that has it, and its name there.

    What pydantic adds for the members of a union is left out.
    """
    parts: list[str] = []
    owner: type[BaseModel] | None = kind
    found: tuple[type[BaseModel] | None, str] = (None, "")
    for part in map(str, loc):
        if owner is None and found[0] is not None and found[1] not in (*NAMED, "mixture", "template_arguments"):
            break  # inside a value
        parts.append(part)
        if owner is None:
            owner = NAMED.get(found[1])
            found = (None, part)
            continue
        found = (owner if part in owner.model_fields else None, part)
        owner = subsection(owner, part)
    return ".".join(parts), *found


def _unknown(kind: type[BaseModel], where: str, value: object, of: str) -> str:
    """A name that is no setting. Of a section that is none, its first setting is what was meant."""
    if where in known_keys(kind):  # a dotted key in a file, where sections are mappings
        nested, *outer = reversed(where.split("."))
        nested += f": {json.dumps(value, default=str)}"
        for section in outer:
            nested = f"{section}: {{{nested}}}"
        return f"{where} is a name of the command line{of}; in a file write {nested}"
    if where.startswith(("rewards.custom.", "rewards.judge.")):
        spec, _, leaf = where.rpartition(".")
        fields = NAMED[where.split(".")[1]].model_fields
        close = closest(leaf, fields)
        hint = f"did you mean {spec}.{close}?" if close else f"there are {', '.join(fields)}"
        return f"{where} is not a setting{of}; {hint}"
    for verb, other in (("train", TrainConfig), ("sft", SftRunConfig)):
        if where in other.model_fields and where not in kind.model_fields:
            return f"{where} is not a setting here{of}; it is one of slimrl {verb}"
    sections = {known.partition(".")[0] for known in known_keys(kind) if "." in known}
    close = closest(where, sections) if isinstance(value, Mapping) else ""
    if close:
        return f"{where} is not a setting{of}; did you mean {close}?"
    key = where
    while isinstance(value, Mapping) and value and key.count(".") < DEEPEST:  # a YAML alias may refer to itself
        inner = next(iter(value))
        key, value = f"{key}.{inner}", value[inner]
    hint = close_names(key, value, kind)
    said = f"={_shown(value)}" if "=" in hint else ""
    return f"{key}{said} is not a setting{of}{hint or '; slimrl settings lists them all'}"


def _choice(where: str, value: object, choices: list[str]) -> str:
    """The hint for a value that is none of the choices."""
    if meant := foreign_names.VALUES.get(where, {}).get(str(value).lower(), ""):
        return f"; did you mean {meant if '=' in meant else f'{where}={meant}'}?"
    return nearest(str(value), choices)


def _short_form(where: str) -> str:
    """A reward function of the user's own whose value is neither a weight nor a mapping."""
    return f"{where} takes a weight or a mapping; write for example {where}=0.5 or {where}={{weight: 0.5, low: 0, high: 1}}"


def _shown(value: object) -> str:
    """A value as a user may write it, no longer than a line."""
    text = json.dumps(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def type_words(kind: type[BaseModel], name: str) -> str:
    """The type of a setting: its choices, or `integer`, `number or auto`, `mapping of ...`."""
    schema = _schema(kind)
    return _type(schema["properties"][name], schema.get("$defs", {}))


@cache
def _schema(kind: type[BaseModel]) -> Mapping[str, Any]:
    return kind.model_json_schema()


def _type(schema: Mapping[str, Any] | bool, definitions: Mapping[str, Any]) -> str:
    if isinstance(schema, bool):  # JSON Schema's own word for any value
        return "anything"
    if "$ref" in schema:
        return "{" + ", ".join(definitions[schema["$ref"].rpartition("/")[2]]["properties"]) + "}"
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " or ".join(_type(member, definitions) for member in schema["anyOf"])
    for key in ("additionalProperties", "patternProperties"):
        if inner := schema.get(key):
            return f"mapping to {_type(inner if key[0] == 'a' else next(iter(inner.values())), definitions)}"
    return str(schema.get("type", "mapping"))
