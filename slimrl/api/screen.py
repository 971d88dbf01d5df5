"""The screen of a call: the display of the command line on a terminal, and a few lines on stderr elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from slimrl.config.places import is_hub_name
from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.text import duration, percent, signed, visible

if TYPE_CHECKING:
    from slimrl.algorithm.groups import Collected
    from slimrl.display.run import Display
    from slimrl.results import DoctorReport, Evaluation, TrainSummary
    from slimrl.tasks import Task

SECONDS = 10.0
"""Between two lines on the progress of a run."""


def open_screen(config: RootConfig, *, quiet: bool) -> Display | Brief:
    """The screen for a call with these settings; nothing is shown if `quiet`, and nothing ever goes to stdout."""
    if quiet or (sys.stderr is not None and sys.stderr.isatty()):
        from slimrl.display.run import Display

        shown = (config.log.samples_every, config.log.samples) if isinstance(config, TrainConfig) else (0, 0)
        screen: Display | Brief = Display(quiet=quiet, samples_every=shown[0], samples=shown[1])
    else:
        screen = Brief()
    announce(config, screen)
    return screen


def announce(config: RootConfig, screen: Display | Brief) -> None:
    """Say what is about to take long, before it does."""
    path = config.model.path
    if is_hub_name(path) and not Path(path).is_dir():  # a misspelt folder can look like a name on the Hub
        screen.say(f"model.path={path} is no folder here, so it is taken from the Hugging Face Hub")
    if config.rollout.compile:
        screen.say("rollout.compile=true: the first decode steps are compiled, which takes a minute or more")


class Brief:
    """The `Screen` of scripts and notebooks: notes and warnings, held-out accuracy, and now and then a step."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._shown = -SECONDS

    def say(self, text: str, style: str = "") -> None:  # noqa: ARG002  (a terminal's)
        """A line of our own words."""
        if sys.stderr is not None:  # as in a program without a console
            print(visible(text), file=sys.stderr, flush=True)

    def note(self, text: str, head: str = "note") -> None:
        """A sentence that is shown once."""
        if text not in self._said:
            self._said.add(text)
            self.say(f"{head}: {text}")

    def opening(self, report: DoctorReport, config: TrainConfig) -> None:
        """The notes and warnings of the preflight, and the switches that were set and cannot act."""
        from slimrl.preflight.effects import set_by_hand

        for sentence in report.notes:
            self.note(sentence)
        for sentence in (*report.warnings, *set_by_hand(report.inert, config), *report.confounded):
            self.note(sentence, "warning")

    def evaluating(self, done: int, total: int) -> None:
        """Nothing: the result follows."""

    def sampling(self, done: int, total: int) -> None:
        """Nothing: a step is a line at most."""

    def updating(self, done: int, total: int) -> None:
        """Nothing."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """A line per split."""
        from slimrl.display.measures import unscored_note

        for split, s in evaluation.summaries().items():
            self.say(
                f"held out ({split}) after step {evaluation.step}: {percent(s['accuracy'])} % "
                f"[{percent(s['low'])}, {percent(s['high'])}]"
            )
            if unscored := unscored_note(split, evaluation, split):
                self.note(unscored, "warning")

    def step(self, step: int, steps: int, metrics: Mapping[str, float], collected: Collected, task: Task) -> None:  # noqa: ARG002
        """A line for the last step, and at most every SECONDS one for another."""
        if self._is_due(step + 1 == steps):
            left = duration(metrics["time/total"] / (step + 1) * (steps - step - 1))
            reward = f", reward {metrics['reward']:.3f}" if "reward" in metrics else ""
            self.say(f"step {step + 1}/{steps}{reward}, {left} left")

    def loss(self, update: int, updates: int, loss: float, seconds: float) -> None:
        """The same of an imitation update."""
        if self._is_due(update == updates):
            self.say(
                f"update {update}/{updates}, loss {loss:.4f}, {duration(seconds / update * (updates - update))} left"
            )

    def closing(self, summary: TrainSummary, config: TrainConfig) -> None:  # noqa: ARG002
        """The change, the findings and the place."""
        if change := summary.difference.get("test", {}).get("sampled"):
            ends = f"[{signed(change['low'])}, {signed(change['high'])}]"
            self.say(f"held-out accuracy changed by {signed(change['change'])} points {ends}")
        for sentence in summary.findings:
            self.note(sentence, "finding")
        self.say(f"everything is in {summary.run}")

    def stop(self) -> None:
        """Nothing: there is no bar."""

    def _is_due(self, last: bool) -> bool:
        now = time.monotonic()
        if not last and now - self._shown < SECONDS:
            return False
        self._shown = now
        return True
