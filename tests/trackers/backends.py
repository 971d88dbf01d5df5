"""Trackers of tests, in a file that a child process loads fast."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from slimrl.machine.worker import Answer
from slimrl.trackers import Numbers, Opened, Opening, Row
from slimrl.trackers.remote import Served


class Writer:
    """A tracker that writes all that it is told into `told.jsonl` of the run's folder."""

    def begin(self, opening: Opening) -> Opened:
        self.folder = Path(opening.folder)
        self._say(
            "begin", opening.name, opening.project, opening.group, opening.step, opening.known, len(opening.settings)
        )
        return Opened(opening.known or opening.id or "id7", "http://there")

    def log(self, step: int, numbers: Numbers) -> None:
        self._say("log", step, sorted(numbers))

    def table(self, step: int, rows: Sequence[Row]) -> None:
        self._say("table", step, len(rows))

    def summarize(self, step: int, numbers: Numbers) -> None:
        self._say("summarize", step, sorted(numbers))

    def close(self, finished: bool) -> None:
        self._say("close", finished)

    def _say(self, *words: object) -> None:
        with (self.folder / "told.jsonl").open("a") as file:
            file.write(json.dumps(words) + "\n")


class Raising(Writer):
    """A tracker whose server refuses the second step."""

    def log(self, step: int, numbers: Numbers) -> None:
        super().log(step, numbers)
        if step == 1:
            raise ConnectionError(f"no route to http://me:pass@there with {os.environ['MY_API_KEY']}")


class Hanging(Writer):
    def log(self, step: int, numbers: Numbers) -> None:
        super().log(step, numbers)
        if step == 1:
            time.sleep(600)


class Dying(Writer):
    def log(self, step: int, numbers: Numbers) -> None:  # noqa: ARG002
        if step == 1:
            os._exit(7)


class Stuck(Writer):
    """A tracker whose server does not answer from the beginning on."""

    def begin(self, opening: Opening) -> Opened:
        opened = super().begin(opening)
        time.sleep(600)
        return opened


def make(kind: type[Writer]) -> Answer:
    return Served(kind)


def unloadable() -> Answer:
    return Served(partial(__import__, "no_such_package_anywhere"))  # type: ignore[arg-type]
