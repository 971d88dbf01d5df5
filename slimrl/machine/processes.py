"""Child processes that do not outlive the process that started them, however that ended."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

MARK = "SLIMRL_WORKER"
"""Environment variable by which the processes that a worker started are found, also once they are orphans."""


def die_with_the_parent() -> None:
    """On Linux, let the kernel kill this process when the thread that started it ends; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # 1: PR_SET_PDEATHSIG


def kill_marked(group: int, mark: str) -> None:
    """Kill a process group and, on Linux, every process that has `MARK=mark` in its environment, whatever its group or session.

    They are stopped before, until no further one is found: one that runs could start another meanwhile.
    """
    stopped: set[int] = set()
    while new := _marked(mark) - stopped:
        for number in new:
            _signal(number, signal.SIGSTOP)
        stopped |= new
    for number in stopped:
        _signal(number, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _signal(number: int, what: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(number, what)


def _marked(mark: str) -> set[int]:
    """Process ids of those that have the mark in the environment that they were started with; none where there is no /proc."""
    wanted, found = f"{MARK}={mark}".encode(), set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if wanted in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found


def end_with_the_input() -> None:
    """End this process when its standard input is closed: a pipe that the process which started it holds open."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a thread would still hold when the interpreter ends
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    """A small process that kills process groups as soon as this process has ended.

    The kernel kills a child with its parent, but not the processes that the child started.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _GUARD]
        self._process = Popen(
            command, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True, text=True, bufsize=1
        )

    def watch(self, group: int) -> None:
        """Kill this process group when this process ends."""
        self._say(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Do not kill this group, which has ended; its number may soon be another's."""
        self._say(f"-{group}\n")

    def close(self) -> None:
        """End the guard, which kills the groups that it still watches."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # the guard was killed or closed: nothing depends on it
            self._process.stdin.write(line)
