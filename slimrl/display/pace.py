"""The time that an evaluation still takes, from how fast its problems were done so far."""

from __future__ import annotations

from slimrl.text import duration

ENOUGH = 0.25
"""Share of the problems after which a time is said in any case."""
FEW = 0.05
"""The same where the first results are long past."""
PAST = 3
"""Times as long as the first results took."""


class Pace:
    """Problems done by time. Many are sampled at once, so none is done for long and then many are: a time is said only after
    more than the first of them.
    """

    def __init__(self) -> None:
        self._began = self._first = 0.0
        self._done = 0

    def left(self, done: int, total: int, now: float) -> str:
        """The words for the time left at `now` seconds, or none while it is not known; `done` of 0 begins another evaluation."""
        if done == 0:
            self._began = now
        elif self._done == 0:
            self._first = now - self._began
        self._done, spent = done, now - self._began
        known = done >= ENOUGH * total or (done >= FEW * total and spent >= PAST * self._first)
        return f"{duration(spent / done * (total - done))} left" if done and known else ""
