"""Files that are written as a whole or not at all, and are on the disk when a function returns; JSON without NaN.

It needs no torch: studies and reports write with it too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimrl.algorithm.groups import Collected
    from slimrl.records import Group

UNFINISHED = ".unfinished-"
"""Begins the name of a file that is being written; one that stays is of a process that was killed."""


@dataclass(frozen=True)
class Written:
    """The entry of a file in a manifest."""

    size: int
    """Bytes."""
    sha256: str


class HashedFile:
    """A file that counts and hashes the bytes that are written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self._size = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    @property
    def written(self) -> Written:
        return Written(self._size, self._digest.hexdigest())


@contextmanager
def hashed(path: Path) -> Iterator[HashedFile]:
    """Open a file for writing; it is on the disk when the block ends."""
    with path.open("wb") as file:
        yield HashedFile(file)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> Written:
    """Write a file in place, to the disk."""
    with hashed(path) as file:
        file.write(data)
    return file.written


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole by a text, or leave it as it is; its folder is made.

    Raises OSError, which names `path` and not the temporary file.
    """
    replace_file(path, text.encode())


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file as a whole, or leave it as it is; its folder is made.

    Raises OSError, which names `path` and not the temporary file.
    """
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{path.name}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        write_bytes(temporary, data)
        temporary.replace(path)
    except OSError as error:
        if error.errno:
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace a file by one JSON object per line."""
    write_text(path, as_jsonl(rows))


def files_within(folder: Path) -> list[Path]:
    """The files of a folder and of all folders in it: tokenizers save named chat templates in a folder of their own."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def as_json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def as_line(row: Mapping[str, float]) -> str:
    return json.dumps({key: finite(value) for key, value in row.items()}) + "\n"


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def finite(value: float) -> float | str:
    """The number; one that JSON does not have, such as NaN, as a string."""
    return value if math.isfinite(value) else str(value)


def stored_groups(collected: Collected) -> list[Group]:
    """The groups of a step in the order of its file in rollouts/: those that were sampled for it, and those carried over."""
    fresh = {id(group) for group in collected.sampled}
    return [*collected.sampled, *(group for group in collected.groups if id(group) not in fresh)]


def rollout_rows(collected: Collected) -> list[dict[str, Any]]:
    """Every completion sampled for a step, and whether its group was trained on."""
    trained = {id(group) for group in collected.groups}
    return [
        {
            "id": rollout.problem.id,
            "question": rollout.problem.question,
            "answer": rollout.problem.answer,
            "sample": sample,
            "sampled_at": group.step + 1,
            "trained": id(group) in trained,
            "text": rollout.text,
            "correct": rollout.correct,
            "reward": None if rollout.unscorable else finite(rollout.reward),
            "scores": {name: finite(value) for name, value in rollout.scores.items()},
            "unscorable": rollout.unscorable,
            **({"unmeasured": rollout.unmeasured} if rollout.unmeasured else {}),
            "finish": rollout.completion.finish,
            "tokens": rollout.completion.drawn,
            **({"turns": rollout.turns} if rollout.turns else {}),
            **({"turn_rewards": rollout.turn_rewards} if rollout.turn_rewards else {}),
            **({} if rollout.environment_score is None else {"environment_score": finite(rollout.environment_score)}),
            **({"logged": rollout.logged} if rollout.logged else {}),
        }
        for group in stored_groups(collected)
        for sample, rollout in enumerate(group.rollouts)
    ]
