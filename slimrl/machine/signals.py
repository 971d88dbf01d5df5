"""When a run is told to stop: SIGTERM from a scheduler, Ctrl-C, or the end of its time.

What is told first ends the run at the next moment at which nothing is lost: between decode steps, between micro-batches.
What is told second ends the process at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_SECONDS = 1.0
"""A signal so soon after the first is the same one."""
PREEMPTED, INTERRUPTED = 75, 130
"""Exit codes: run the same command again to go on (EX_TEMPFAIL of sysexits.h); Ctrl-C."""


class Stopped(BaseException):  # not an Exception, for nothing that mends errors may swallow it
    """The run was told to stop; `str()` says by what."""

    def __init__(self, cause: str, exit_code: int, where: str = ", before there was anything to lose") -> None:
        super().__init__(f"stopped by {cause}{where}")
        self.cause, self.exit_code = cause, exit_code


class Stop:
    """Whether to stop, asked at moments at which nothing would be lost."""

    def __init__(self) -> None:
        self._asked: Stopped | None = None
        self._end = float("inf")
        self._at_once = False
        self._heard: float | None = None
        """When the first signal came."""
        self._started = time.monotonic()

    def after(self, seconds: float) -> None:
        """Stop that long after this object was made; 0: never."""
        self._end = self._started + seconds if seconds else float("inf")

    def ask(self, cause: str, exit_code: int) -> None:
        """Stop at the next `check`."""
        self._asked = self._asked or Stopped(cause, exit_code)

    def check(self) -> None:
        """Raises Stopped where it is time."""
        if self._asked is None and time.monotonic() >= self._end:
            self.ask("max_time", PREEMPTED)
        if self._asked is not None:
            raise self._asked

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen to SIGTERM and SIGINT; the main thread only, as signals are. Until `defer` a signal raises Stopped at once."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self._at_once = True
        for number in before:
            signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def defer(self) -> None:
        """From now on there is something to lose: a signal waits for the next `check`."""
        self._at_once = False

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        code = INTERRUPTED if number == signal.SIGINT else PREEMPTED
        now, before = time.monotonic(), self._heard
        self._heard = now if before is None else before
        if before is not None:
            if now - before > ECHO_SECONDS:
                os._exit(code)  # what must not outlive this process notices by itself
            return  # schedulers signal the whole job and its shell passes the word on: that is one word
        self.ask(signal.Signals(number).name, code)
        if self._at_once:
            self.check()


NEVER = Stop()
"""For whoever is not told to stop."""
