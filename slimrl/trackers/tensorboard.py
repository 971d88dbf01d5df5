"""TensorBoard: event files in `tensorboard/` of the run's folder, by the package `tensorboard` alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from slimrl.trackers import Numbers, Opened, Opening, Row
from slimrl.trackers.keys import columns_of


class TensorBoard:
    """One event file for each time that a run is begun or continued; TensorBoard reads all of them as one run."""

    def begin(self, opening: Opening) -> Opened:
        folder = Path(opening.folder) / "tensorboard"
        self._last = opening.step
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        if opening.known:
            self._forget_after(opening.step)
        settings = {key: _plain(value) for key, value in opening.settings.items()}
        self._add(opening.step, hparams_pb(settings, trial_id=opening.name))
        self._add(
            opening.step, text_pb("settings", _markdown(["setting", "value"], [[*item] for item in settings.items()]))
        )
        return Opened(opening.name, f"tensorboard --logdir {folder.parent}")

    def log(self, step: int, numbers: Numbers) -> None:
        if step < self._last:
            self._forget_after(step - 1)
        self._last = step
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._add(step, Summary(value=values))

    def table(self, step: int, rows: Sequence[Row]) -> None:
        self._add(step, text_pb("completions", _markdown(*columns_of(rows))))

    def summarize(self, step: int, numbers: Numbers) -> None:
        self._add(step, Summary(value=[Summary.Value(tag=f"summary/{k}", simple_value=v) for k, v in numbers.items()]))

    def close(self, finished: bool) -> None:  # noqa: ARG002
        self._writer.close()

    def _add(self, step: int, summary: Summary) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _forget_after(self, step: int) -> None:
        """Let TensorBoard leave out what was written for later steps, which come again."""
        log = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=log))


def _plain(value: object) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _markdown(names: list[str], rows: list[list[object]]) -> str:
    """A table whose cells show texts as they are."""
    cells = [["---"] * len(names) if line is None else [*map(_cell, line)] for line in (names, None, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _cell(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    for mark in "\\`*_{}[]<>#+!|":
        text = text.replace(mark, f"&#{ord(mark)};")
    return text.replace("\n", "<br>")
