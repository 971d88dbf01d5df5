"""The page of a run: report.html in its folder, made from what the folder holds, and refreshed while the run goes on."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from markupsafe import Markup

from slimrl.report import run_tables
from slimrl.report.chart import chart, swatch
from slimrl.report.inspector import MOST_TOKENS, Inspected, inspect, read_stored
from slimrl.report.page import page_template
from slimrl.report.record import RunRecord, read_run
from slimrl.report.tables import setting
from slimrl.runs.curves import panels
from slimrl.runs.files import write_text

MOST_BYTES = 2_000_000
"""Of a page; where its texts are long, fewer tokens are on it."""
VERSIONS = ("slimrl", "torch", "transformers", "numpy", "python", "device", "dtype", "threads", "date")
SCRIPT = Path(__file__).with_name("run.js")
REFRESH_STEPS = 10
"""Steps from one refresh of a page to the next, unless an evaluation comes first."""
PATIENCE = 50
"""A page is refreshed only after so many times as long as it took to make: 2 % of a run at most."""
SIGNAL_SECONDS = 5.0
"""After a signal the last page is made within this time or not at all, since the process may soon be killed."""


def write_run_page(path: Path) -> Path:
    """Make report.html of a run, whatever its state; returns its path. It is replaced as a whole or not at all.

    Raises OSError where it cannot be written.
    """
    page = path / "report.html"
    write_text(page, run_html(read_run(path)))
    return page


def run_html(run: RunRecord) -> str:
    """One page that needs nothing else: no network, no font, and a script of its own that it does not need."""
    stored = read_stored(run)  # once, however often less of it is drawn
    tokens = MOST_TOKENS
    while True:
        page = _page(run, inspect(stored, tokens))
        if len(page.encode()) <= MOST_BYTES or tokens < 100:
            return page
        tokens //= 2


def _page(run: RunRecord, inspected: Inspected) -> str:
    found = panels(run.history, run.measured)
    script = SCRIPT.read_text(encoding="utf-8")
    return page_template("run.html.j2").render(
        run=run,
        texts=run_tables,
        charts=[(panel, chart(panel)) for panel in found],
        swatch=swatch,
        inspected=inspected,
        ratio=any(quantity.key == "r" for quantity in inspected.quantities),
        most=run_tables.MOST_PROBLEMS,
        setting=setting,
        versions={key: run.record[key] for key in VERSIONS if run.record.get(key)},
        script=Markup(script),
        # of the one script that may run
        hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )


class RunPage:
    """Makes the page while a run goes on: a `Sink` of slimrl/session/listeners.py, so that it can end no run.

    It is also a block around the run. The last page is made at the end of the block, after the checkpoint, run.json and all other
    sinks. `since_signal` tells the seconds since the run was signalled to stop, 0 before that: from then on there is no refresh,
    and a last page only if it is expected within SIGNAL_SECONDS of the signal.
    """

    name = "report.html"

    def __init__(self, since_signal: Callable[[], float] = float) -> None:
        self._since_signal = since_signal
        self._run = Path()
        self._made = self._took = 0.0
        """When the page was made last, and how long it took; seconds of the monotonic clock. 0 before the first."""
        self._is_due = False
        """The run has begun, and its last page is not made yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_due and self._has_time():
            with contextlib.suppress(
                Exception
            ):  # the run's own end is what is told; `slimrl show` raises this one again
                write_run_page(self._run)

    def begin(self, run: Path, _settings: Mapping[str, object], _step: int) -> None:
        self._run, self._is_due = run, True

    def step(self, step: int, _metrics: Mapping[str, float]) -> None:
        if step % REFRESH_STEPS == 0:
            self._refresh()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """All completions are in rollouts/."""

    def evaluation(self, _step: int, _summaries: Mapping[str, Mapping[str, float]]) -> None:
        self._refresh()

    def finish(self, _summary: Mapping[str, object]) -> None:
        self._is_due = False
        if self._has_time():
            write_run_page(self._run)

    def close(self) -> None:
        """The last page is made at the end of the block."""

    def _has_time(self) -> bool:
        passed = self._since_signal()
        return not passed or (self._made > 0 and passed + self._took <= SIGNAL_SECONDS)

    def _refresh(self) -> None:
        if not self._since_signal() and time.monotonic() - self._made >= PATIENCE * self._took:
            self._make()

    def _make(self) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError):  # of a full disk others speak
            write_run_page(self._run)
        self._made = time.monotonic()
        self._took = self._made - began
