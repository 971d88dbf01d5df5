"""checkpoints/step-00000100/: whole and unharmed, or not used.

A checkpoint is written beside the others under a name of its own, each file on the disk before the manifest names it, and
gets its place by one rename. No pointer says which is the newest: whoever looks scans, and takes the newest whose manifest
holds. There is no pickle in it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from slimrl.runs.durable import (
    MANIFEST,
    damage,
    full_disk_as_oserror,
    read_tensors,
    seal,
    sync_folder,
    write_tensors,
    written_by_others,
)
from slimrl.runs.files import Written, files_within, write_bytes

STATE = "state.json"
UNFINISHED, REPLACED = ".writing-", ".replaced-"


@dataclass(frozen=True)
class Checkpoint:
    """A sealed folder and the step after which it was written."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        """Everything that is no tensor."""
        found: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        return found

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, on the CPU; empty where it has no such file."""
        path = self.path / f"{name}.safetensors"
        return dict(read_tensors(path)) if path.is_file() else {}


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    beside: Callable[[Path], object] = lambda _: None,
) -> Checkpoint:
    """Write `tensors` by file name, `state`, and whatever `beside` puts into the folder it is given.

    Raises OSError where the disk is full or the folder cannot be written; nothing that was there before is touched then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
    path, temporary = folder / f"step-{step:08d}", folder / f"{UNFINISHED}{step:08d}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        files: dict[str, Written] = {}
        for name, table in tensors.items():
            files[f"{name}.safetensors"] = write_tensors(temporary / f"{name}.safetensors", table)
        text = json.dumps(state, allow_nan=False) + "\n"
        files[STATE] = write_bytes(temporary / STATE, text.encode())
        with full_disk_as_oserror(folder):
            beside(temporary)
        for extra in files_within(temporary):
            name = extra.relative_to(temporary).as_posix()
            if name not in files:
                files[name] = written_by_others(extra)
        seal(temporary, files)
        replaced = folder / f"{REPLACED}{step:08d}"
        if path.exists():  # being written again after a roll-back; a kill between the two renames loses neither
            path.rename(replaced)
        temporary.rename(path)
        sync_folder(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Checkpoint(path, step)


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Every folder that calls itself one, newest first, looked into or not."""
    if not folder.is_dir():
        return []
    found = [(entry, re.fullmatch(r"step-(\d{8,})", entry.name)) for entry in folder.iterdir()]
    return sorted(
        (Checkpoint(path, int(match[1])) for path, match in found if match), key=lambda c: c.step, reverse=True
    )


def newest(folder: Path, *, before: float = float("inf")) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, of a step not beyond `before`; and a sentence on each newer one that is not.

    Such a one is set aside under another name, where no run finds it and a person does.
    """
    said: list[str] = []
    for checkpoint in checkpoints(folder):
        if checkpoint.step > before:
            continue
        reason = damage(checkpoint.path)
        if not reason:
            return checkpoint, said
        said.append(f"{checkpoint.path} is damaged and not used: {reason}")
        aside = checkpoint.path.with_name(f"damaged-{checkpoint.path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.path.rename(aside)
    return None, said


def prune(folder: Path, *, keep: int, also: Iterable[int] = ()) -> None:
    """Remove all but the newest `keep` and those of the steps in `also`."""
    stay = {*also}
    for checkpoint in checkpoints(folder)[keep:]:
        if checkpoint.step not in stay:
            remove(checkpoint)


def remove(checkpoint: Checkpoint) -> None:
    """The manifest first: what is removed in part must not look whole."""
    (checkpoint.path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint.path)


def remove_unfinished(folder: Path) -> None:
    """What a killed process left of a checkpoint; only whoever holds the run's lock may do this."""
    for entry in folder.glob(f"{REPLACED}*"):
        place = folder / f"step-{entry.name.removeprefix(REPLACED)}"
        if not place.exists():  # killed before the new one had its name
            entry.rename(place)
    for entry in (*folder.glob(f"{UNFINISHED}*"), *folder.glob(f"{REPLACED}*")):
        shutil.rmtree(entry)
