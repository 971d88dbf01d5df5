"""The progress of a study where no terminal is."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimrl.display.study import ProgressDisplay
from slimrl.study.runner import Progress
from slimrl.study.spec import load_study


def test_a_notebook_gets_plain_lines_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jupyter's kernel sets FORCE_COLOR, with which rich would draw a live display into the cell."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("slimrl.display.study.QUIET_SECONDS", -1.0)
    (tmp_path / "study.yaml").write_text("question: Which?\narms: {kl: algorithm.kl_coef=0.1}\n")
    display = ProgressDisplay(load_study([str(tmp_path / "study.yaml")]), tmp_path, quiet=False)
    display.say("one [x]")
    display.watch(Progress(done=1, total=3, running={"base-0": 2}, seconds_left=100.0))
    display.watch(Progress(1, 3, {"base-0": 3}, 90.0, {"a-1": "Priority", "b-2": "Down, for good", "c-0": "Priority"}))
    display.stop()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "one [x]\n1 of 3 runs done, about 2 min left; running: base-0 (step 2)\n"
        "1 of 3 runs done, about 2 min left; running: base-0 (step 3); waiting: a-1, c-0 (Priority); waiting: b-2 (Down, for good)\n"
    )
