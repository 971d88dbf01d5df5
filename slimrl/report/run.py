"""The page of a run: report.html in its folder, made from what the folder holds, and refreshed while the run goes on."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from slimrl.report import run_tables
from slimrl.report.chart import chart, swatch
from slimrl.report.inspector import MOST_TOKENS, inspect
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


def write_run_page(path: Path) -> Path:
    """Make report.html of a run, whatever its state; returns its path. It is replaced as a whole or not at all.

    Raises OSError where it cannot be written.
    """
    page = path / "report.html"
    write_text(page, run_html(read_run(path)))
    return page


def run_html(run: RunRecord) -> str:
    """One page that needs nothing else: no network, no font, and a script of its own that it does not need."""
    tokens = MOST_TOKENS
    while True:
        page = _page(run, tokens)
        if len(page.encode()) <= MOST_BYTES or tokens < 100:
            return page
        tokens //= 2


def _page(run: RunRecord, most_tokens: int) -> str:
    found = panels(run.history, run.measured)
    script = SCRIPT.read_text(encoding="utf-8")
    inspected = inspect(run, most_tokens)
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
    """Makes the page while a run goes on: a `Sink` of slimrl/session/listeners.py, so that it can end no run."""

    name = "report.html"

    def __init__(self) -> None:
        self._run = Path()
        self._made = self._took = 0.0
        """When the page was made last, and how long it took; seconds of the monotonic clock."""
        self._finished = False

    def begin(self, run: Path, _settings: Mapping[str, object], _step: int) -> None:
        self._run = run

    def step(self, step: int, _metrics: Mapping[str, float]) -> None:
        if step % REFRESH_STEPS == 0:
            self._refresh()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """All completions are in rollouts/."""

    def evaluation(self, _step: int, _summaries: Mapping[str, Mapping[str, float]]) -> None:
        self._refresh()

    def finish(self, _summary: Mapping[str, object]) -> None:
        self._finished = True
        write_run_page(self._run)

    def close(self) -> None:
        if not self._finished:
            self._make()

    def _refresh(self) -> None:
        if time.monotonic() - self._made >= PATIENCE * self._took:
            self._make()

    def _make(self) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError):  # of a full disk others speak
            write_run_page(self._run)
        self._made = time.monotonic()
        self._took = self._made - began
