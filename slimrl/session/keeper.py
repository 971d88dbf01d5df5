"""The checkpoints of a run: when one is written, and which of them stay.

A checkpoint is written beside the work that leaves weights as they are, evaluation and sampling: weights move only after
`settle`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from slimrl.config.sections import CheckpointConfig
from slimrl.errors import UNWRITABLE, NonFiniteError
from slimrl.runs.checkpoints import Checkpoint, checkpoints, prune
from slimrl.runs.directory import RunDirectory


class Keeper:
    """Keeps the checkpoints of a run; `begin` begins one of the run as it is, `say` shows a line in a colour."""

    def __init__(
        self,
        run: RunDirectory,
        settings: CheckpointConfig,
        begin: Callable[[], Callable[[], Checkpoint]],
        say: Callable[[str, str], None],
    ) -> None:
        self.run, self.settings, self._begin, self._say = run, settings, begin, say
        self._newest = next((checkpoint.step for checkpoint in checkpoints(run.checkpoints)), -1)
        """Step of the newest checkpoint; -1 without one."""
        self._overdue = False
        """The next offer is taken: a checkpoint could not be written, or the run was rolled back."""
        self._writing: tuple[int, Future[None]] | None = None
        """Step of the checkpoint that is being written, and its end."""
        self._more = True
        """A step follows, which tries again what has failed."""
        self._ended = False
        """Something has ended the run: it must not be hidden by what goes wrong with a checkpoint."""

    def offer(self, step: int, *, last: bool = False) -> None:
        """Keep this step where checkpoint.every says so; no step follows the `last` one."""
        self._more = not last
        every = self.settings.every
        if self._overdue or (every and step and step % every == 0):
            self._start(step)

    def offer_best(self, step: int) -> None:
        """Keep this step where held-out accuracy was never as good before."""
        if self.settings.keep_best and best_step(self.run) == (step,):
            self._start(step)

    def keep(self, step: int) -> None:
        """Write a last checkpoint unless there is one of this step, and remove older ones; any failure is only reported."""
        self._ended = True
        self._start(step)
        self.settle()

    def settle(self) -> None:
        """Wait for the checkpoint that is being written: what it consists of may change only after that.

        A full disk, or weights that are not finite, are reported, and the next offer tries again.
        """
        if self._writing is None:
            return
        (step, writing), self._writing = self._writing, None
        try:
            writing.result()
        except self._reported as error:
            self._failed(step, error)
        else:
            self._newest, self._overdue = step, False

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """`settle` at the end of the block. An error that ends the block is raised, whatever becomes of the checkpoint."""
        try:
            yield
        except BaseException:
            self._ended = True
            self.settle()
            raise
        self.settle()

    @property
    def _reported(self) -> tuple[type[Exception], ...]:
        return (Exception,) if self._ended else (OSError, NonFiniteError)

    def _start(self, step: int) -> None:
        self.settle()
        stay = self._best()
        if self._newest == step:
            self._prune(stay)
            return
        try:
            finish = self._begin()
        except self._reported as error:
            self._failed(step, error)
            return

        def write() -> None:
            finish()
            self._prune(stay)

        thread = ThreadPoolExecutor(1)
        self._writing = step, thread.submit(write)
        thread.shutdown(wait=False)  # it ends after this one

    def _failed(self, step: int, error: Exception) -> None:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        again = "; the next step tries again" if self._more and not self._ended else ""
        self._say(f"no checkpoint after step {step} ({reason}){again}", "yellow")
        self.run.note(step, "checkpoint failed", why=reason)
        self._overdue = True

    def _prune(self, stay: tuple[int, ...]) -> None:
        with contextlib.suppress(OSError):  # what stays too long does no harm
            prune(self.run.checkpoints, keep=self.settings.keep, also=stay)

    def start_over(self) -> None:
        """The run was rolled back: its state is not that of its newest checkpoint any more."""
        self._newest, self._overdue = -1, True

    @contextlib.contextmanager
    def ending(self, step: int) -> Iterator[None]:
        """The last files of a run: where one cannot be written, a checkpoint of this step is left if the disk takes it.

        Raises DiskError, which names the command that resumes the run, for a disk that takes no more; any other OSError stays
        what it is.
        """
        self.settle()
        try:
            yield
        except OSError as error:
            if self._newest != step:
                with contextlib.suppress(OSError, NonFiniteError):
                    self._begin()()
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
