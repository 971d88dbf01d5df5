"""Groups that wait for their scores, and their assembly from the results of workers, of judges and of this process."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

from slimrl.records import Group
from slimrl.rewards import Reward
from slimrl.rewards.calls import Sampled
from slimrl.rewards.outcomes import Outcome, Scored
from slimrl.rewards.scoring import assemble


class Job(NamedTuple):
    """A group that is to be scored."""

    future: Future[Group]
    sampled: Sampled
    judged: Mapping[str, Sequence[Future[Outcome]]]
    """By the judge's name, an outcome of each completion."""
    here: Mapping[str, Future[Scored]]
    """By name, the result of each function that is called in this process."""

    def deliver(
        self, rewards: Sequence[Reward], correct: Sequence[bool], found: Mapping[str, Scored] = MappingProxyType({})
    ) -> None:
        """Assemble the group of what workers `found`, now or as soon as judges and functions of this process have answered."""

        def assembled() -> None:
            try:
                judged = {
                    name: Scored([future.result() for future in futures]) for name, futures in self.judged.items()
                }
                here = {name: future.result() for name, future in self.here.items()}
                self.future.set_result(assemble(self.sampled, rewards, correct, {**found, **judged, **here}))
            except BaseException as error:  # of any kind, or the job would wait for ever
                self.future.set_exception(error)

        _when_done([*chain(*self.judged.values()), *self.here.values()], assembled)


def _when_done(futures: Sequence[Future[Any]], then: Callable[[], None]) -> None:
    """Call `then` when all are done: at once, or from the thread that ends the last of them."""
    waiting = next((future for future in futures if not future.done()), None)
    if waiting is None:
        then()
    else:
        waiting.add_done_callback(lambda _: _when_done(futures, then))


class Jobs:
    """A queue of jobs for several threads."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Let a thread take this job after those that wait."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def take(self, completions: int) -> list[Job]:
        """The next job, as soon as there is one, and those after it as long as all have no more than so many completions; none
        after the end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            taken: list[Job] = []
            left = completions
            while self._waiting and (not taken or len(self._waiting[0].sampled.texts) <= left):
                taken.append(self._waiting.popleft())
                left -= len(taken[-1].sampled.texts)
            return taken

    def close(self) -> None:
        """Cancel the jobs that wait, and let no thread wait for another."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().future.cancel()
            self._changed.notify_all()
