"""Requests to stop a run: SIGTERM from a scheduler, Ctrl-C, or the end of its time.

The first request stops the run at the next safe point, between decode steps or layers of an update; a second signal ends the
process at once, or in a program of the user's raises KeyboardInterrupt there.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ECHO_SECONDS = 1.0  # a signal within this time after the first one is a repetition of it
REPEATED_SECONDS = 5.0  # the same for a thread that looks for signals now and then
PREEMPTED, INTERRUPTED = 75, 130  # exit codes: run the same command again to go on (EX_TEMPFAIL of sysexits.h); Ctrl-C
MAX_TIME = "max_time"
"""The cause of a stop that is no signal."""
STDERR = 2
NOTHING_LOST = ", before there was anything to lose"


FREE: dict[signal.Signals, Callable[..., Any] | signal.Handlers] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
"""Python's own handlers, which a program has unless it sets others."""
KERNEL = "ipykernel."
"""Modules of Jupyter's kernel, whose own handler in a cell with `await` only notes Ctrl-C until the cell awaits again."""


def is_free(number: signal.Signals) -> bool:
    """True for a signal that a program leaves to Python or to Jupyter's kernel."""
    handler = signal.getsignal(number)
    return handler is FREE[number] or str(getattr(handler, "__module__", "")).startswith(KERNEL)


class Stopped(BaseException):  # not an Exception, so that no handler of errors swallows it
    """The run was asked to stop; `str()` names the cause."""

    def __init__(self, cause: str, exit_code: int, where: str = NOTHING_LOST) -> None:
        super().__init__(f"stopped by {cause}{where}")
        self.cause, self.exit_code, self.where = cause, exit_code, where

    def __reduce__(self) -> tuple[type["Stopped"], tuple[str, int, str]]:
        return type(self), (self.cause, self.exit_code, self.where)


class Stop:
    """A request to stop, checked at safe points: moments at which nothing would be lost."""

    def __init__(self) -> None:
        self._asked: Stopped | None = None
        self._started, self._end = time.monotonic(), float("inf")
        self._at_once = False
        self._is_guest = False
        self.checks = 0
        """Safe points so far."""
        self._overheard: float | None = None  # when another thread learned of the first signal
        self._heard: float | None = None  # when the first signal came to this process
        self._signalled: float | None = None  # when the first one came, to this process or to another of the run

    @property
    def is_signalled(self) -> bool:
        """True once a signal has come to a process of the run, after which all may soon be killed."""
        return self._signalled is not None

    def since_signal(self) -> float:
        """Seconds since the first signal; 0 before one."""
        return 0.0 if self._signalled is None else time.monotonic() - self._signalled

    def after(self, seconds: float) -> None:
        """Stop `seconds` after this object was made; 0: never."""
        self._end = self._started + seconds if seconds else float("inf")

    @property
    def asked(self) -> Stopped | None:
        """The stop that was asked for."""
        return self._asked

    def ask(self, cause: str, exit_code: int) -> None:
        """Stop at the next `check`."""
        self._asked = self._asked or Stopped(cause, exit_code)

    def relay(self, cause: str, exit_code: int) -> None:
        """Stop at the next `check`, as another process of the run was asked to. A signal that follows here is the first."""
        if cause != MAX_TIME:
            self._signalled = self._signalled or time.monotonic()
        self.ask(cause, exit_code)

    def check(self) -> None:
        """Raises Stopped if a stop was asked for or the time is over."""
        self.checks += 1
        if self._asked is None and time.monotonic() >= self._end:
            longer = "; raise max_time, which is over before the run can begin"
            self._asked = Stopped(MAX_TIME, PREEMPTED, NOTHING_LOST + longer)
        if self._asked is not None:
            raise self._asked

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT within the context, in the main thread. Until `defer`, a signal raises Stopped at once."""
        with self._handling(signal.SIGTERM, signal.SIGINT):
            yield

    @contextmanager
    def on_free_signals(self) -> Iterator[None]:
        """As `on_signals`, as a guest in a program of the user's: only signals that are free, in the main thread; a second one
        acts as if nothing handled it.
        """
        self._is_guest = True
        main = threading.current_thread() is threading.main_thread()
        with self._handling(*(number for number in FREE if main and is_free(number))):
            yield

    @contextmanager
    def _handling(self, *numbers: signal.Signals) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in numbers}
        self._at_once = bool(before)
        for number in before:
            signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def overheard(self) -> Iterator[Callable[[], None]]:
        """A function for another thread to call now and then: it acts on signals that the main thread cannot hear of while it is
        in a call that does not return to Python. None are overheard as a guest.
        """
        main = threading.current_thread() is threading.main_thread()
        if self._is_guest or not main:
            yield lambda: None
            return
        inner, outer = socket.socketpair()
        inner.setblocking(False)
        outer.setblocking(False)
        before = signal.set_wakeup_fd(outer.fileno(), warn_on_full_buffer=False)
        try:
            yield lambda: self._overhear(inner)
        finally:
            signal.set_wakeup_fd(before)
            inner.close()
            outer.close()

    def _overhear(self, signals: socket.socket) -> None:
        try:
            numbers = signals.recv(4096)
        except OSError:  # nothing came, or the run is over
            return
        for number in numbers:
            if number not in (signal.SIGTERM, signal.SIGINT):
                continue
            code = INTERRUPTED if number == signal.SIGINT else PREEMPTED
            if self._overheard is None:
                self._overheard = time.monotonic()
                self.relay(signal.Signals(number).name, code)
            elif time.monotonic() - self._overheard > REPEATED_SECONDS:
                _end_at_once(number, code)

    def defer(self) -> None:
        """Let signals wait for the next `check`; call this as soon as a stop would lose something."""
        self._at_once = False

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        code = INTERRUPTED if number == signal.SIGINT else PREEMPTED
        if self._heard is not None:
            if time.monotonic() - self._heard > ECHO_SECONDS:
                if self._is_guest:
                    signal.signal(number, FREE[signal.Signals(number)])
                    signal.raise_signal(number)
                    return
                _end_at_once(number, code)
            return  # schedulers signal the whole job, and its shell passes the signal on: that is one signal
        self._heard = time.monotonic()
        self._signalled = self._signalled or self._heard
        self.ask(signal.Signals(number).name, code)
        if self._at_once:
            self.check()


def _end_at_once(number: int, code: int) -> None:
    """End this process, which its child processes notice, with a sentence where somebody can read it."""
    name = signal.Signals(number).name
    try:
        if select.select([], [STDERR], [], 0)[1]:  # a pipe may be full
            # not print, which the handler of a signal may have interrupted
            os.write(STDERR, f"ended at once by a second {name}; what was not written yet is lost\n".encode())
    finally:
        os._exit(code)


NEVER = Stop()  # the default of functions that nothing asks to stop
