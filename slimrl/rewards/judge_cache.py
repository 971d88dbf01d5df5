"""The replies of judges on the disk: one JSON line a reply, so that none is paid for twice, by this run or another."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CACHE = "judge-cache.jsonl"


def key_of(address: str, request: Mapping[str, Any]) -> str:
    """SHA-256 of an address and everything that is asked there."""
    text = json.dumps([address, request], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class JudgeCache:
    """Replies by the key of their request; several processes may append to one file.

    A line is one write, so that it is whole or the last, and is on the disk before the reply counts. A line that a crash or a
    full disk cut off is passed over. Only the places of lines are held in memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._at: dict[str, int] | None = None
        """Offsets of the lines; None before the file was looked into."""
        self._torn = False
        """The file does not end with a whole line."""

    def find(self, key: str) -> str | None:
        """The reply to a request; None where there is none yet, or no longer."""
        with self._lock:
            at = self._places().get(key)
            if at is None:
                return None
            try:
                with self._path.open("rb") as file:
                    file.seek(at)
                    row = _row(file.readline())
            except OSError:  # gone or unreadable by now: it costs a call
                return None
        # another process may have put a new file in its place
        return None if row is None or row["key"] != key else str(row["reply"])

    def keep(self, key: str, address: str, request: Mapping[str, Any], reply: str) -> None:
        """Append a reply; a disk that takes none costs another call later, and nothing else."""
        row = {"key": key, "endpoint": address, "request": request, "reply": reply}
        with self._lock, contextlib.suppress(OSError):
            places = self._places()
            line = (b"\n" if self._torn else b"") + json.dumps(row).encode() + b"\n"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                self._torn = True
                if os.write(file, line) < len(line):
                    return
                end = os.lseek(file, 0, os.SEEK_CUR)
                os.fsync(file)
            finally:
                os.close(file)
            self._torn = False
            places[key] = end - len(line.lstrip(b"\n"))

    def _places(self) -> dict[str, int]:
        if self._at is None:
            self._at = {}
            with contextlib.suppress(OSError), self._path.open("rb") as file:
                at = 0
                for line in file:
                    if (row := _row(line)) is not None:
                        self._at[str(row["key"])] = at
                    at += len(line)
                    self._torn = not line.endswith(b"\n")
        return self._at


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of the file; None for one that is not whole."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"key", "reply"} <= row.keys() else None
