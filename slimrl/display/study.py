"""What a person sees while a study runs, on stderr: a line per ended run, and what is going on below."""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.live import Live
from rich.text import Text

from slimrl.runs.reader import read_run, value
from slimrl.statistics import points
from slimrl.study.runner import DONE, Fleet, Planned, planned_runs
from slimrl.study.spec import Expanded
from slimrl.text import visible

QUIET_SECONDS = 30.0
"""Between lines on progress where there is no terminal to draw on."""


class FleetDisplay:
    """Shows a study's progress; `quiet` shows nothing."""

    def __init__(self, expanded: Expanded, folder: Path, *, quiet: bool) -> None:
        self._expanded = expanded
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)
        self._values: dict[str, dict[int, float]] = {arm.name: {} for arm in expanded.arms}
        for run in planned_runs(expanded, folder):
            if run.status in DONE:
                self._add(run)
        self._shown = time.monotonic()

    def say(self, text: str) -> None:
        self._console.print(Text(visible(text)), soft_wrap=not self._console.is_terminal)

    def watch(self, fleet: Fleet) -> None:
        running = ", ".join(f"{name} (step {steps})" for name, steps in fleet.running.items())
        line = f"{fleet.done} of {fleet.total} runs done{_left(fleet.seconds_left)}; running: {running or 'none'}"
        if self._console.is_terminal:
            if not self._live.is_started:
                self._live.start()
            self._live.update(Text(line, style="dim"))
        elif time.monotonic() - self._shown > QUIET_SECONDS:
            self._shown = time.monotonic()
            self.say(line)

    def ended(self, run: Planned, seconds: float) -> None:
        own = self._add(run)
        result = "diverged" if run.status == "diverged" else f"{100 * own:.1f} %"
        self.say(f"{run.arm.name} seed {run.arm.seed(run.index)}: {result} in {seconds:.0f} s{self._so_far(run)}")

    def stop(self) -> None:
        """Take the line off the screen."""
        if self._live.is_started:
            self._live.stop()

    def _add(self, run: Planned) -> float:
        primary = self._expanded.study.primary
        own = value(read_run(run.folder, run.arm, run.index, primary), primary)
        self._values[run.arm.name][run.index] = own
        return own

    def _so_far(self, run: Planned) -> str:
        """The arm's mean, and its difference over the seeds that its reference has too."""
        own, reference = self._values[run.arm.name], self._values[self._expanded.reference]
        text = f"; mean of {len(own)}: {100 * fmean(own.values()):.1f} %"
        shared = own.keys() & reference.keys()
        if run.arm.name == self._expanded.reference or not shared:
            return text
        difference = fmean(own[i] - reference[i] for i in shared)
        return f"{text}, {points(difference)} to {self._expanded.reference}"


def _left(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
