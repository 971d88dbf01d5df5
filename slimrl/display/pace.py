"""The time that an evaluation still takes, from how fast its problems come once the first ones are done."""

from __future__ import annotations

from slimrl.text import duration

SEEN = 0.05
"""Share of the problems that must have come since the first ones before a time is said."""


class Pace:
    """Problems done by time. Many are sampled at once, so none is done for long and then many are: the time up to the first
    ones says nothing about the rest.
    """

    def __init__(self) -> None:
        self._at, self._done = 0.0, 0
        """When the first ones were done, seconds, and how many."""

    def left(self, done: int, total: int, now: float) -> str:
        """The words for the time left at `now` seconds, or none while it is not known; `done` of 0 begins another evaluation."""
        since = done - self._done
        if self._done == 0 or since < 0:
            self._at, self._done = now, done
            return ""
        return f"{duration((now - self._at) / since * (total - done))} left" if since >= max(1, SEEN * total) else ""
