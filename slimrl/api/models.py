"""Models as Python gives them: a path, a name, a result, or a loaded model with its tokenizer."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimrl.api.finished import Result
from slimrl.api.settings import Place, plain
from slimrl.config.places import is_address
from slimrl.errors import SettingsError
from slimrl.runs.reader import MODEL
from slimrl.runs.remote import WHOLE, local_run

Model = Place | Result | tuple[Any, Any] | Mapping[str, Any]
"""A folder, a name on the Hub, `builtin`, the result of a run, a transformers model with its tokenizer, or the section `model`
as a mapping; to measure, also a run's address on object storage."""


@dataclass(frozen=True)
class Given:
    """A model as settings, and how a loaded one is stored."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The section `model`, in which a model to be stored has the path MODEL."""
    save: Callable[[Path], None] | None = None
    """Stores a loaded model in a folder, whole or not at all."""


def read_model(model: Model | None) -> Given:
    """The settings of a model; raises SettingsError for what is none."""
    if model is None or isinstance(model, Mapping):
        return Given({} if model is None else plain(model))
    if isinstance(model, Result):
        return Given({"path": str(model.path)})
    if isinstance(model, str | os.PathLike):
        return Given({"path": os.fspath(model)})
    if isinstance(model, tuple) and len(model) == 2 and all(hasattr(part, "save_pretrained") for part in model):
        return Given({"path": MODEL}, lambda folder: _save(model, folder))
    if hasattr(model, "save_pretrained"):
        raise SettingsError(
            "model: a loaded model needs its tokenizer; give model=(model, tokenizer), or the folder of both"
        )
    raise SettingsError(
        f"model: {type(model).__name__} is neither a path, a name on the Hub, a result, nor (model, tokenizer); give one of them"
    )


def _save(model: tuple[Any, Any], folder: Path) -> None:
    unfinished = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in model:
        part.save_pretrained(str(unfinished))
    unfinished.rename(folder)


@contextmanager
def placed(model: Model, wanted: Sequence[str] = WHOLE) -> Iterator[str]:
    """The path or name of a model within the block; a loaded one is stored in a folder that the end of the block removes, and
    of a run on object storage the files that are `wanted` are fetched.

    Raises SettingsError for what is no model, or has further settings.
    """
    given = read_model(model)
    if given.settings.keys() != {"path"}:
        raise SettingsError(
            "model: give its path, and what else the section model holds as settings, **{'model.dtype': ...}"
        )
    if given.save is None:
        path = str(given.settings["path"])
        yield str(local_run(path, wanted)) if is_address(path) else path
        return
    with tempfile.TemporaryDirectory(prefix="slimrl-") as folder:
        given.save(Path(folder) / MODEL)
        yield str(Path(folder) / MODEL)
