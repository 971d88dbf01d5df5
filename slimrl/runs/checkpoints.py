"""checkpoints/step-00000100/: whole and undamaged, or not used.

A checkpoint is written under a temporary name, each file on the disk before the manifest names it, and gets its place by one
rename. No pointer says which is the newest: a reader scans the folder and takes the newest whose manifest holds. There is no
pickle in it. This module does not know what the tensors are.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from slimrl.machine.tensors import Tensors
from slimrl.runs.durable import (
    MANIFEST,
    StoredTensors,
    adopt_hashed,
    damage,
    full_disk_as_oserror,
    seal,
    sync,
    write_tensors,
)
from slimrl.runs.files import files_within, write_bytes

STATE = "state.json"
UNFINISHED, REPLACED = ".writing-", ".replaced-"


@dataclass(frozen=True)
class Checkpoint:
    """A sealed folder and the step after which it was written."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        """The data that are not tensors."""
        found: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        return found

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of one of its files, on the CPU, read when they are asked for; empty where it has no such file."""
        path = self.path / f"{name}.safetensors"
        return StoredTensors(path) if path.is_file() else {}


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensors],
    state: Mapping[str, Any],
    write_more: Callable[[Path], object] = lambda _: None,
) -> Checkpoint:
    """Write `tensors` by file name, `state`, and the files that `write_more` puts into the folder it is given.

    Raises OSError where the disk is full or the folder cannot be written; nothing that was there before is touched then.
    """
    return begin_checkpoint(folder, step, tensors, state, write_more)()


def begin_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensors],
    state: Mapping[str, Any],
    write_more: Callable[[Path], object],
) -> Callable[[], Checkpoint]:
    """`write_checkpoint` in two parts: this one, and a function with the rest, which any thread may call.

    Until that has returned the tensors must stay as they are. Both raise as `write_checkpoint` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sync(folder.parent)
    temporary = folder / f"{UNFINISHED}{step:08d}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    with _removed_on_failure(temporary):
        text = (json.dumps(state, allow_nan=False) + "\n").encode()
        with full_disk_as_oserror(folder):
            write_more(temporary)

    def write() -> Checkpoint:
        with _removed_on_failure(temporary):
            extras = files_within(temporary)
            files = {
                f"{name}.safetensors": write_tensors(temporary / f"{name}.safetensors", tensors[name])
                for name in tensors
            }
            files[STATE] = write_bytes(temporary / STATE, text)
            files |= {extra.relative_to(temporary).as_posix(): adopt_hashed(extra) for extra in extras}
            seal(temporary, files)
            return _put_in_place(temporary, step)

    return write


@contextmanager
def _removed_on_failure(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(temporary: Path, step: int) -> Checkpoint:
    """Give a sealed folder the name of its step."""
    folder = temporary.parent
    path, replaced = folder / f"step-{step:08d}", folder / f"{REPLACED}{step:08d}"
    if path.exists():  # being written again after a roll-back; a kill between the two renames loses neither
        path.rename(replaced)
    temporary.rename(path)
    sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return Checkpoint(path, step)


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Every folder with the name of a checkpoint, newest first, unchecked."""
    if not folder.is_dir():
        return []
    found = [(entry, re.fullmatch(r"step-(\d{8,})", entry.name)) for entry in folder.iterdir()]
    return sorted(
        (Checkpoint(path, int(match[1])) for path, match in found if match), key=lambda c: c.step, reverse=True
    )


def newest(folder: Path, *, before: float = float("inf")) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint of a step not beyond `before`, and a sentence on each newer one that is damaged.

    A damaged checkpoint gets another name, under which a person finds it and no run does.
    """
    damaged: list[str] = []
    for checkpoint in checkpoints(folder):
        if checkpoint.step > before:
            continue
        reason = damage(checkpoint.path)
        if not reason:
            return checkpoint, damaged
        damaged.append(f"{checkpoint.path} is damaged and not used: {reason}")
        aside = checkpoint.path.with_name(f"damaged-{checkpoint.path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.path.rename(aside)
    return None, damaged


def prune(folder: Path, *, keep: int, also: Iterable[int] = ()) -> None:
    """Remove all but the newest `keep` and those of the steps in `also`."""
    stay = {*also}
    for checkpoint in checkpoints(folder)[keep:]:
        if checkpoint.step not in stay:
            remove(checkpoint)


def remove(checkpoint: Checkpoint) -> None:
    """Remove a checkpoint, its manifest first: one that is removed in part must not look whole."""
    (checkpoint.path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint.path)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left of a checkpoint that it was writing; the caller holds the run's lock."""
    for entry in folder.glob(f"{REPLACED}*"):
        place = folder / f"step-{entry.name.removeprefix(REPLACED)}"
        if not place.exists():  # killed before the new one had its name
            entry.rename(place)
    for entry in (*folder.glob(f"{UNFINISHED}*"), *folder.glob(f"{REPLACED}*")):
        shutil.rmtree(entry)
