"""One process at a time works on a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from slimrl.errors import SettingsError

POLL_SECONDS = 0.2


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A block that one process of this machine at a time is in, of those that name this folder; the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Lock:
    """An exclusive lock on a folder, free as soon as this process and all children that inherit `descriptor` are gone.

    Args:
        folder: an existing folder; the lock is its file `lock`, which holds the process that took it.
        patience: seconds to wait for a lock whose process is gone, since that process's children take a moment to end.

    Raises SettingsError if another process holds the lock.
    """

    def __init__(self, folder: Path, *, patience: float = 0.0) -> None:
        self.descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + patience
        while not self._taken():
            owner = os.pread(self.descriptor, 20, 0).decode(errors="replace").strip()
            if _alive(owner) or time.monotonic() >= deadline:
                self.release()
                raise SettingsError(
                    f"{folder} is being worked on by another process ({owner or 'unknown'}); wait for it, or end it"
                )
            time.sleep(POLL_SECONDS)
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
        return True

    def release(self) -> None:
        """Give the lock up; more than once has no effect."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_worked_on(folder: Path) -> bool:
    """True if the process that last took a folder's lock is there; nothing is locked to find out."""
    try:
        return _alive((folder / "lock").read_text(errors="replace").strip())
    except OSError:
        return False


def _alive(process: str) -> bool:
    if not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
