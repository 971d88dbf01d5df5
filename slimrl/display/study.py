"""The progress of a study on stderr: a line for each run that ended, and below the state of those that are running."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from rich.live import Live
from rich.text import Text

from slimrl.display.console import on_stderr
from slimrl.study.primary import read_primary
from slimrl.study.runner import Progress
from slimrl.study.runs import Planned, planned_runs, read_run
from slimrl.study.spec import Expanded
from slimrl.text import percent, signed_points, visible

QUIET_SECONDS = 30.0
"""Between two lines on progress if stderr is not a terminal."""


class ProgressDisplay:
    """Shows the progress of a study; nothing if `quiet`."""

    def __init__(self, expanded: Expanded, folder: Path, *, quiet: bool) -> None:
        self._expanded = expanded
        self._console = on_stderr(quiet=quiet)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)
        self._values: dict[str, dict[int, float]] = {arm.name: {} for arm in expanded.arms}
        for run in planned_runs(expanded, folder):
            if run.ended:
                self._add(run)
        self._shown = time.monotonic()

    def say(self, text: str) -> None:
        self._console.print(Text(visible(text)), soft_wrap=not self._console.is_terminal)

    def watch(self, progress: Progress) -> None:
        running = ", ".join(f"{name} (step {steps})" for name, steps in progress.running.items())
        waiting = "".join(f"; waiting: {', '.join(names)} ({reason})" for reason, names in _by_reason(progress.waiting))
        left = _left(progress.seconds_left)
        line = f"{progress.done} of {progress.total} runs done{left}; running: {running or 'none'}{waiting}"
        if self._console.is_terminal:
            if not self._live.is_started:
                self._live.start()
            self._live.update(Text(line, style="dim"))
        elif time.monotonic() - self._shown > QUIET_SECONDS:
            self._shown = time.monotonic()
            self.say(line)

    def ended(self, run: Planned, seconds: float) -> None:
        own = self._add(run)
        result = "diverged" if run.status == "diverged" else self._spelled(own)
        self.say(f"{run.arm.name} seed {run.arm.seed(run.index)}: {result} in {seconds:.0f} s{self._so_far(run)}")

    def stop(self) -> None:
        """Remove the line from the screen."""
        if self._live.is_started:
            self._live.stop()

    def _add(self, run: Planned) -> float:
        primary = self._expanded.study.primary
        own = read_run(run, primary).value(primary)
        self._values[run.arm.name][run.index] = own
        return own

    def _spelled(self, value: float) -> str:
        """An accuracy in %, or the score of a reward in hundredths, in which differences are."""
        return f"{percent(value)}{' %' if read_primary(self._expanded.study.primary).is_share else ''}"

    def _so_far(self, run: Planned) -> str:
        """The arm's mean, and its difference from the reference over the seeds that both have."""
        own, reference = self._values[run.arm.name], self._values[self._expanded.reference]
        text = f"; mean of {len(own)}: {self._spelled(fmean(own.values()))}"
        shared = own.keys() & reference.keys()
        if run.arm.name == self._expanded.reference or not shared:
            return text
        difference = fmean(own[i] - reference[i] for i in shared)
        return f"{text}, {signed_points(difference)} to {self._expanded.reference}"


def _by_reason(waiting: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Each reason with the runs that wait for it."""
    return [
        (reason, [name for name, own in waiting.items() if own == reason]) for reason in dict.fromkeys(waiting.values())
    ]


def _left(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
