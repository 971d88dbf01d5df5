"""Costs of the interpreter in a command that loads torch: collections while it imports, and taking modules apart."""

import atexit
import contextlib
import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PARENT = os.getppid()
"""The process that started this one, as far as it still lived when SlimRL began to be loaded."""


def is_orphan() -> bool:
    """True where that process has ended."""
    return os.getppid() != PARENT


@contextmanager
def importing() -> Iterator[None]:
    """A block that imports large libraries: a million objects that all stay, and that no collection has to look at."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.enable()


def as_process(command: Callable[[], object]) -> None:
    """Call `command` as the only work of this process, which then ends without taking torch apart: that takes a second.

    Threads are waited for, exit handlers are called and open files are flushed as always. Where `command` raises anything but
    SystemExit, the interpreter ends as it does by default.
    """
    ended: list[int] = []
    atexit.register(_leave, ended)  # before any library registers a handler, so it is called after all of them
    try:
        command()
    except SystemExit as error:
        if isinstance(error.code, int):
            ended.append(error.code)
        raise
    ended.append(0)


def _leave(ended: list[int]) -> None:
    if not ended:
        return
    left_open: list[Any] = [x for x in gc.get_objects() if type(x) in (io.TextIOWrapper, io.BufferedWriter)]
    for file in (*left_open, sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader is gone
            file.flush()
    os._exit(ended[0])
