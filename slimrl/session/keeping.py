"""When a run writes a checkpoint, and which of them stay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from slimrl.config.schema import RootConfig
from slimrl.display.run import Display
from slimrl.errors import UNWRITABLE, NonFiniteError
from slimrl.runs.checkpoints import Checkpoint, prune
from slimrl.runs.directory import RunDirectory

Write = Callable[[], Checkpoint]
"""Writes a checkpoint of the run as it stands."""


class Keeper:
    """Keeps a run's checkpoints; `safe` is the step that the newest of them is of, -1 where there is none."""

    def __init__(self, run: RunDirectory, config: RootConfig, display: Display, *, safe: int) -> None:
        self.run, self.settings, self.display, self.safe = run, config.checkpoint, display, safe
        self._wanted = False
        """One could not be written, or must be for another reason: the next offer is taken."""

    def offer(self, step: int, write: Write) -> None:
        """Keep this step where it is its turn."""
        every = self.settings.every
        if self._wanted or (every and step and step % every == 0):
            self.keep(step, write)

    def offer_best(self, step: int, write: Write) -> None:
        """Keep this step where no held-out accuracy was as good as after it."""
        if self.settings.keep_best and best_step(self.run) == (step,):
            self.keep(step, write)

    def keep(self, step: int, write: Write) -> None:
        """Write a checkpoint unless there is one of this step, and let older ones go. A full disk, or weights that are not
        finite, are said and tried again after the next step.
        """
        if self.safe != step:
            try:
                write()
            except (OSError, NonFiniteError) as error:
                reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                self.display.say(f"no checkpoint after step {step} ({reason}); the next step tries again", "yellow")
                self.run.note(step, "checkpoint failed", why=reason)
                self._wanted = True
                return
            self.safe, self._wanted = step, False
        with contextlib.suppress(OSError):  # what stays too long harms nobody
            prune(self.run.checkpoints, keep=self.settings.keep, also=self._best())

    def start_over(self) -> None:
        """The state of the run is not that of its newest checkpoint any more, and must be safe soon."""
        self.safe, self._wanted = -1, True

    @contextlib.contextmanager
    def ending(self, step: int, write: Write) -> Iterator[None]:
        """The last files of a run: where one cannot be written, a checkpoint of this step is left if the disk takes it.

        Raises DiskError, which says how the run goes on, for a disk that takes no more; any other OSError stays what it is.
        """
        try:
            yield
        except OSError as error:
            if self.safe != step:
                with contextlib.suppress(OSError, NonFiniteError):
                    write()
            if error.errno not in UNWRITABLE:
                raise
            raise self.run.unwritable(error) from error

    def finish(self, step: int) -> None:
        """The run is over: what served to go on goes, the best stays where final/ is not the same."""
        with contextlib.suppress(OSError):
            prune(self.run.checkpoints, keep=0, also=[best for best in self._best() if best != step])

    def _best(self) -> tuple[int, ...]:
        return best_step(self.run) if self.settings.keep_best else ()


def best_step(run: RunDirectory) -> tuple[int, ...]:
    """The step with the best held-out accuracy so far, the earliest where several are alike; none before the first step."""
    accuracies = {step: found["test"]["accuracy"] for step, found in run.measured.summaries.items() if step}
    best = max(accuracies, key=lambda step: (accuracies[step], -step), default=None)
    return () if best is None else (best,)
