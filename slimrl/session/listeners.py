"""The listeners of a run: the screen that a person reads, and sinks that take its numbers.

Both are protocols. Nothing here knows a terminal or a tracker: the command line brings them, and tests bring their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from slimrl.algorithm.groups import Collected
from slimrl.algorithm.metrics import Metrics
from slimrl.config.schema import TrainConfig
from slimrl.results import DoctorReport, Evaluation, Summaries, TrainSummary
from slimrl.tasks import Task


class Screen(Protocol):
    """The view of a person on a run: `slimrl.display.run.Display` is the terminal's."""

    def say(self, text: str, style: str = "") -> None:
        """A line of our own words; `style` is a colour or a weight by rich's name."""

    def note(self, text: str) -> None:
        """A sentence on the run that is shown once, however often it is found."""

    def opening(self, report: DoctorReport, config: TrainConfig) -> None:
        """The preflight of a new training run."""

    def evaluating(self, done: int, total: int) -> None:
        """The problems that are done in an evaluation: 0 at its beginning, all at its end."""

    def sampling(self, done: int, total: int) -> None:
        """The completions of a step that are sampled, of those that are asked for at once: 0 at the beginning."""

    def updating(self, done: int, total: int) -> None:
        """The completions of a step that its updates are done with, over all passes: 0 at the beginning."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """Held-out accuracy."""

    def step(self, step: int, steps: int, metrics: Metrics, collected: Collected, task: Task) -> None:
        """A training step, counted from 0, of `steps` in the whole run."""

    def loss(self, update: int, updates: int, loss: float, seconds: float) -> None:
        """The loss of an imitation update, in nats per token, `seconds` after the first update began."""

    def closing(self, summary: TrainSummary, config: TrainConfig) -> None:
        """The end of a training run."""


class Sink(Protocol):
    """A tracker of numbers, such as TensorBoard or W&B (`slimrl/trackers/`).

    Steps are counted as in metrics.jsonl, from 1; step 0 is the untrained model. After a roll-back steps come a second time, and
    a resumed run begins again at the step after which it was interrupted. An Exception ends the sink and not the run: the user
    is told once, and no further call reaches the sink.
    """

    name: str
    """Of the tracker, for a sentence."""

    def begin(self, run: Path, settings: Mapping[str, object], step: int) -> None:
        """The first call: the run's folder, its settings by dotted key, and the steps that are taken already."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step (docs/metrics.md)."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Completions of a step, every log.samples_every steps: all those of the first log.samples problems, as `rollouts/` has
        them."""

    def evaluation(self, step: int, summaries: Summaries) -> None:
        """Held-out accuracy after `step` steps, by split: see `SplitEvaluation.summary`."""

    def finish(self, summary: Mapping[str, object]) -> None:
        """The summary of a run that is finished, as in run.json."""

    def close(self) -> None:
        """The last call, also where the run was stopped or failed."""
