"""Settings that name a place on a disk, and what they are relative to.

In a YAML file a path is relative to the folder of that file; on the command line and in Python to the working directory.
`output` is always relative to the working directory, since it names the place of new runs and not of something that exists.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimrl.config.environment import PACKAGES, package_of
from slimrl.config.rewards import long_form
from slimrl.terms import BUILT_IN_MODELS

MODELS = (("model", "path"), ("algorithm", "reference"))
"""Section and key of the settings that name a folder or a model on the Hub; keys of rewards.custom hold a path."""
DATA = (("task", "path"), ("task", "test_path"))
"""Of those that name a file or a data set on the Hub."""
FILES = (("task", "rates"),)
"""Of those that name a file."""
DATA_SUFFIXES = (
    ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".arrow",
    ".feather", ".orc", ".avro", ".pkl", ".xls", ".xlsx", ".db", ".xml", ".yaml", ".yml",
)  # fmt: skip
"""Endings of files of rows, of those that are refused too; no data set on the Hub is named so."""
RUNS = "runs"  # the folder of runs by default; no name on the Hub begins so
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
ADDRESS = re.compile(r"[a-z][a-z0-9]*://")


def is_address(place: str) -> bool:
    """True for the address of a place on object storage, such as s3://bucket/runs, and for no path."""
    return ADDRESS.match(place) is not None


def address_below(address: str, name: str) -> str:
    """The address of a folder in another one."""
    return f"{address.rstrip('/')}/{name}"


def address_problem(address: str) -> str:
    """The sentence on a text that cannot be the address of a folder; empty for one that can. It repeats no password."""
    if not is_address(address):
        return f"{address} is no address such as s3://bucket/runs; give one"
    rest = address.partition("://")[2]
    host = rest.partition("/")[0]
    if ":" in host.rpartition("@")[0] or "?" in rest:
        return (
            "an address with a password, or with a question mark, would be stored with the run; give credentials to the "
            "environment instead, where fsspec finds them"
        )
    if not rest.strip("/") or ".." in rest.split("/") or any(c.isspace() or not c.isprintable() for c in rest):
        return f"{address!r} names no folder; give an address such as s3://bucket/runs"
    return ""


def is_hub_name(path: str, folder: Path = Path()) -> bool:
    """True if a model.path can only be `owner/name` on the Hub, and not a path below `folder`.

    A path begins with `.`, `/` or `~`, ends with `/`, has another number of parts than two, or begins with the name of a
    folder that exists or with `runs/`.
    """
    owner, slash, name = path.partition("/")
    if path.startswith((".", "~")) or not slash or not owner or not name or "/" in name or name.endswith(PICKLES):
        return False
    return owner != RUNS and not (folder / owner).is_dir()


def is_hub_data(path: str, folder: Path = Path()) -> bool:
    """True if a task.path can only be `owner/name` on the Hub: as `is_hub_name`, and it is no file and not named as one."""
    return not path.lower().endswith(DATA_SUFFIXES) and is_hub_name(path, folder) and not (folder / path).exists()


def anchored(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Nested settings whose relative paths are joined to `folder`; what is no text or no path stays as it is."""
    found = dict(settings)
    for section, key in FILES:
        if place := _text(found, section, key):
            found[section] = {**found[section], key: _joined(place, folder)}
    for section, key in (*MODELS, *DATA):
        place, of_hub = _text(found, section, key), is_hub_data if section == "task" else is_hub_name
        if place and (place not in BUILT_IN_MODELS or section == "task") and not of_hub(place, folder):
            joined = _joined(place, folder)
            # without the dot a path like ./a/b would read as a name on the Hub
            found[section] = {**found[section], key: f"./{joined}" if of_hub(joined) else joined}
    if (place := package_of(_text(found, "task", "name"))).endswith(".py"):
        found["task"] = {**found["task"], "name": f"{PACKAGES}{_joined(place, folder)}"}
    if spec := _text(found, "environment", "name"):
        found["environment"] = {**found["environment"], "name": _function(spec, folder)}
    rewards = found.get("rewards")
    if isinstance(rewards, dict):
        found["rewards"] = {
            **rewards,
            **_functions(rewards.get("custom"), folder),
            **_judges(rewards.get("judge"), folder),
        }
    return found


def _functions(custom: object, folder: Path) -> dict[str, Any]:
    """The setting rewards.custom, its files joined to `folder` and weights alone written out, so that mappings merge."""
    if not isinstance(custom, dict):
        return {}
    return {"custom": {_function(key, folder): long_form(value) for key, value in custom.items()}}


def _judges(judges: object, folder: Path) -> dict[str, Any]:
    """The setting rewards.judge, its files joined to `folder`."""
    if not isinstance(judges, dict):
        return {}
    return {"judge": {name: _with_files(judge, folder) for name, judge in judges.items()}}


def _with_files(judge: object, folder: Path) -> object:
    """The settings of one judge with its files joined to `folder`."""
    if not isinstance(judge, dict):
        return judge
    files = {key: place for key in ("prompt_file", "cache") if isinstance(place := judge.get(key), str)}
    return judge | {key: _joined(place, folder) for key, place in files.items() if place not in ("", "auto")}


def _text(settings: Mapping[str, Any], section: str, key: str) -> str:
    """A text of a section; empty where there is none."""
    values = settings.get(section)
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, str) else ""


def _function(spec: object, folder: Path) -> object:
    """`file.py:function` with its file joined to `folder`; `package.module:function` is found wherever Python finds it."""
    file, _, name = spec.rpartition(":") if isinstance(spec, str) else ("", "", "")
    if file and name.endswith(".py"):  # of a package of verifiers
        return f"{file}:{_joined(name, folder)}"
    return spec if is_module(file) else f"{_joined(file, folder)}:{name}"


def is_module(place: str) -> bool:
    """True if the place of a reward function is a module's name and no file's."""
    return not place or (not place.endswith(".py") and all(part.isidentifier() for part in place.split(".")))


def _joined(path: str, folder: Path) -> str:
    """One spelling for one place, so that settings read in two folders can be compared."""
    if is_address(path):
        return path
    return os.path.normpath(folder / Path(path).expanduser())
