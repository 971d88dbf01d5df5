"""One process at a time works on a run."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from slimrl.errors import SettingsError


class Lock:
    """Held by the process that works on a run; free as soon as that process is gone, however it went.

    Raises SettingsError where another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise SettingsError(f"{path} is being worked on by another process; wait for it, or end it") from None
        except OSError:  # a file system that knows no locks
            pass

    def release(self) -> None:
        """Let others have it; once is enough, more does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
