"""Answers of child processes, in a file that they load fast: one of tests would bring torch along."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

from slimrl.errors import DataError
from slimrl.machine.worker import Answer

MEMORY = 2**30


def load() -> Answer:
    def answer(request: str) -> Iterator[object]:
        yield request
        match request:
            case "fail":
                raise ValueError("no colour")
            case "refuse":
                raise DataError("row 3 is empty")
            case "memory":
                yield len(bytearray(2 * MEMORY))
            case "stdin":
                yield subprocess.run(["cat"], capture_output=True, check=True).stdout
            case "child":
                yield subprocess.Popen(["sleep", "600"]).pid
                time.sleep(600)
            case "sleep":
                time.sleep(600)
            case "print":
                print("printed")
        yield os.getpid()

    return answer


def fails() -> Answer:
    raise DataError("a file is missing")
