"""Waiting for what a launcher has started."""

import time
from collections.abc import Callable

from slimrl.study.launcher import Running

SECONDS = 120.0


def until(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; fails after SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end_of(running: Running) -> int:
    """The exit code of a run."""
    codes: list[int | None] = []
    until(lambda: codes.append(running.poll()) or codes[-1] is not None)
    assert codes[-1] is not None
    return codes[-1]
