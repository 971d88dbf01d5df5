"""Child processes that do not outlive who started them, however that ended."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys


def die_with_the_parent() -> None:
    """On Linux the kernel ends this process with its parent, whatever it is busy with; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # 1: PR_SET_PDEATHSIG


_GUARD = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    sign, group = line[0], int(line[1:])
    groups.add(group) if sign == "+" else groups.discard(group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


class Guard:
    """A small process that kills groups of others as soon as this one is gone: what a child started would stay otherwise.

    The kernel ends a child with its parent, but not that child's own children, and a process that was killed cannot do it.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            bufsize=1,
        )

    def watch(self, group: int) -> None:
        """Kill this process group when it is time."""
        self._say(f"+{group}\n")

    def forget(self, group: int) -> None:
        """This group is gone; its number may soon be another's."""
        self._say(f"-{group}\n")

    def close(self) -> None:
        """End the guard, which kills what it still watches."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # killed by hand, or closed: nothing depends on it
            self._process.stdin.write(line)
