"""Trackers of experiments: W&B, TensorBoard, Trackio and MLflow get the numbers of a run as it goes (`log.to`).

Each tracker is a `Backend` in a child process of its own, and `RemoteTracker` the run's end of it: a tracker that raises, hangs
or dies costs the run nothing but a sentence. Keys are those of metrics.jsonl; `slimrl/trackers/keys.py` has the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Numbers = Mapping[str, float]
Row = Mapping[str, object]
"""A completion in a table of samples: see `slimrl.trackers.keys.sample_table`."""


@dataclass(frozen=True)
class Opening:
    """A run as a tracker is told of it."""

    folder: str
    """Of the run; its name is the run's."""
    name: str
    project: str
    group: str
    """Name of the study that the run belongs to; empty without one."""
    settings: Mapping[str, object]
    """By dotted key."""
    step: int
    """Steps that are taken already."""
    known: str = ""
    """The tracker's own id of this run, where it was begun before, or was to be begun; empty for a new run."""
    id: str = ""
    """Of a new run, for a tracker that takes an id: it is stored already, so that the run is found again however it ends."""


@dataclass(frozen=True)
class Opened:
    """A run that a tracker follows."""

    id: str
    """The tracker's own, by which it is continued."""
    where: str
    """The folder or the address at which a person finds it."""


class Backend(Protocol):
    """A tracker. Any exception ends it, and is shown with its first words."""

    def begin(self, opening: Opening) -> Opened:
        """Begin a run, or continue the one that is known."""

    def log(self, step: int, numbers: Numbers) -> None:
        """Numbers after `step` steps. Steps may come a second time, after a roll-back or a kill."""

    def table(self, step: int, rows: Sequence[Row]) -> None:
        """Completions that were sampled for a step."""

    def summarize(self, step: int, numbers: Numbers) -> None:
        """Before, after and costs of a run that is finished after `step` steps."""

    def close(self, finished: bool) -> None:
        """Write what waits. Of a run that is not finished more may come."""
