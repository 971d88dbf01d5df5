"""Runs without what takes longer than their few steps, for files of tests that look at none of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.study import runner
from slimrl.study.launcher import Job, LocalLauncher
from slimrl.train import train

QUICK = """
import slimrl.preflight.doctor
import slimrl.preflight.payment
import slimrl.report.run
import slimrl.runs.directory

slimrl.preflight.doctor.PROBE_PROBLEMS = 2
slimrl.preflight.payment.GOLD_SAMPLE = 100
slimrl.report.run.write_run_page = lambda path: path / "report.html"
slimrl.runs.directory.draw_curves = lambda *_: None
"""
"""The same for a process that a test starts."""


@pytest.fixture(autouse=True, scope="module")
def quick_runs() -> Iterator[None]:
    """Runs of a module, and those that its tests share: no pictures, few gold answers and a small probe before the first step.

    A file of tests imports it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slimrl.runs.directory.draw_curves", lambda *_: None)
        patch.setattr("slimrl.report.run.write_run_page", _no_page)
        patch.setattr("slimrl.preflight.payment.GOLD_SAMPLE", 100)
        patch.setattr("slimrl.preflight.doctor.PROBE_PROBLEMS", 2)
        yield


def _no_page(run: Path) -> Path:
    return run / "report.html"


class Done:
    """A run of a study that has ended well."""

    def poll(self) -> int:
        return 0

    def waits_for(self) -> str:
        return ""

    def stop(self) -> None: ...


def run_studies_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of a study is trained in this process, which saves the seconds of its imports."""

    def start(_: LocalLauncher, job: Job, _slot: int) -> Done:
        train(load_config(TrainConfig, [str(job.settings)]), Display(quiet=True))
        return Done()

    monkeypatch.setattr(LocalLauncher, "start", start)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.001)
