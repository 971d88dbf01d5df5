"""The runs in a folder, as a person looks for them: state, steps, accuracy and age."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimrl.config.files import read_yaml
from slimrl.errors import SlimError
from slimrl.runs.lock import is_worked_on
from slimrl.runs.reader import ENDED, count_steps, read_state, read_summaries


@dataclass(frozen=True)
class Listed:
    """One run."""

    run: str
    """Its folder."""
    verb: str
    state: str
    """A `Status` of slimrl.runs.reader; `interrupted` also for a run whose process is gone."""
    steps: int
    """Taken."""
    of: int
    """Asked for; 0 where config.yaml cannot be read."""
    before: float
    after: float
    """Sampled held-out accuracy; NaN where it was not measured."""
    age: float
    """Seconds since the run wrote something."""

    @property
    def can_go_on(self) -> bool:
        """True for a run that `--resume` continues."""
        return self.state not in ("running", "damaged", *ENDED)

    def table(self) -> dict[str, Any]:
        """As JSON, where accuracy that was not measured is null."""
        accuracy = {key: None if math.isnan(value := getattr(self, key)) else value for key in ("before", "after")}
        return {**self.__dict__, **accuracy}


def list_runs(folder: Path) -> list[Listed]:
    """The runs right under a folder, of the study that it is, and of the studies under it, the newest first."""
    return sorted((_listed(run) for run in _runs(folder)), key=lambda listed: (listed.age, listed.run))


def newest_interrupted(folder: Path, verb: str) -> Listed | None:
    """The run of a verb right under a folder that was interrupted last."""
    found = (_listed(entry) for entry in _folders(folder) if (entry / "run.json").is_file())
    return min((run for run in found if run.verb == verb and run.can_go_on), key=lambda run: run.age, default=None)


def _runs(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "runs", *(entry / "runs" for entry in _folders(folder))):
        yield from (run for run in _folders(place) if (run / "run.json").is_file())


def _folders(folder: Path) -> list[Path]:
    return (
        [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.is_symlink()]
        if folder.is_dir()
        else []
    )


def _listed(run: Path) -> Listed:
    record, summaries = read_state(run), read_summaries(run)
    state = str(record.get("status", "")) or "damaged"
    if state == "running" and not is_worked_on(run):
        state = "interrupted"
    try:
        of = read_yaml(str(run / "config.yaml")).get("steps", 0)
    except SlimError:
        of = 0
    last = max(summaries, default=0)
    written = [file.stat().st_mtime for name in ("run.json", "metrics.jsonl") if (file := run / name).is_file()]
    return Listed(
        run=str(run),
        verb=str(record.get("verb", "train")),
        state=state,
        steps=count_steps(run),
        of=of if isinstance(of, int) else 0,
        before=_accuracy(summaries.get(0)),
        after=_accuracy(summaries[last]) if last else math.nan,
        age=max(0.0, time.time() - max(written, default=0.0)),
    )


def _accuracy(summary: dict[str, Any] | None) -> float:
    value = ((summary or {}).get("test") or {}).get("accuracy")
    return float(value) if isinstance(value, int | float) else math.nan
