"""The checkpoints of a run: when one is written, and which of them stay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from slimrl.config.sections import CheckpointConfig
from slimrl.errors import UNWRITABLE, NonFiniteError
from slimrl.runs.checkpoints import Checkpoint, checkpoints, prune
from slimrl.runs.directory import RunDirectory


class Keeper:
    """Keeps the checkpoints of a run; `write` makes one of the run as it is, `say` shows a line in a colour."""

    def __init__(
        self,
        run: RunDirectory,
        settings: CheckpointConfig,
        write: Callable[[], Checkpoint],
        say: Callable[[str, str], None],
    ) -> None:
        self.run, self.settings, self._write, self._say = run, settings, write, say
        self._newest = next((checkpoint.step for checkpoint in checkpoints(run.checkpoints)), -1)
        """Step of the newest checkpoint; -1 without one."""
        self._overdue = False
        """The next offer is taken: a checkpoint could not be written, or the run was rolled back."""

    def offer(self, step: int) -> None:
        """Keep this step where checkpoint.every says so."""
        every = self.settings.every
        if self._overdue or (every and step and step % every == 0):
            self.keep(step)

    def offer_best(self, step: int) -> None:
        """Keep this step where held-out accuracy was never as good before."""
        if self.settings.keep_best and best_step(self.run) == (step,):
            self.keep(step)

    def keep(self, step: int) -> None:
        """Write a checkpoint unless there is one of this step, and remove older ones.

        A full disk, or weights that are not finite, are reported, and the next offer tries again.
        """
        if self._newest != step:
            try:
                self._write()
            except (OSError, NonFiniteError) as error:
                reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                self._say(f"no checkpoint after step {step} ({reason}); the next step tries again", "yellow")
                self.run.note(step, "checkpoint failed", why=reason)
                self._overdue = True
                return
            self._newest, self._overdue = step, False
        with contextlib.suppress(OSError):  # what stays too long does no harm
            prune(self.run.checkpoints, keep=self.settings.keep, also=self._best())

    def start_over(self) -> None:
        """The run was rolled back: its state is not that of its newest checkpoint any more."""
        self._newest, self._overdue = -1, True

    @contextlib.contextmanager
    def ending(self, step: int) -> Iterator[None]:
        """The last files of a run: where one cannot be written, a checkpoint of this step is left if the disk takes it.

        Raises DiskError, which names the command that resumes the run, for a disk that takes no more; any other OSError stays
        what it is.
        """
        try:
            yield
        except OSError as error:
            if self._newest != step:
                with contextlib.suppress(OSError, NonFiniteError):
                    self._write()
            if error.errno not in UNWRITABLE:
                raise
            raise self.run.unwritable(error) from error

    def finish(self, step: int) -> None:
        """Remove the checkpoints of a finished run, but for the best one where final/ is not the same."""
        with contextlib.suppress(OSError):
            prune(self.run.checkpoints, keep=0, also=[best for best in self._best() if best != step])

    def _best(self) -> tuple[int, ...]:
        return best_step(self.run) if self.settings.keep_best else ()


def best_step(run: RunDirectory) -> tuple[int, ...]:
    """The step with the best held-out accuracy so far, the earliest of equal ones; none before the first step."""
    accuracies = {step: found["test"]["accuracy"] for step, found in run.measured.summaries.items() if step}
    best = max(accuracies, key=lambda step: (accuracies[step], -step), default=None)
    return () if best is None else (best,)
