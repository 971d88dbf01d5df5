"""`slimrl show`: the page of a run, or its text."""

from __future__ import annotations

import json
import os
import signal
import webbrowser
from pathlib import Path

import pytest

from slimrl.runs.reader import read_status
from tests.report.runs import write_run


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that a browser was told to open; there is no screen."""
    found: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: found.append(address) or True)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return found


def test_the_newest_run_is_shown_and_its_path_printed(slimrl, tmp_path: Path, opened: list[str]) -> None:
    for name, age in (("old", 1000), ("new", 0)):
        run = write_run(tmp_path / "runs" / name)
        for file in ("run.json", "metrics.jsonl"):
            os.utime(run / file, (1e9 - age, 1e9 - age))
    shown = slimrl("show")
    assert (shown.code, shown.out) == (0, "runs/new/report.html\n")
    assert (tmp_path / "runs" / "new" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert not (tmp_path / "runs" / "old" / "report.html").exists()
    assert opened == [], "there is no screen"


def test_a_browser_is_opened_where_there_is_a_screen(
    slimrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("sys.platform", "linux")
    run = write_run(tmp_path / "a")
    assert slimrl("show", run, "--no-open").code == 0
    assert opened == []
    assert slimrl("show", run).code == 0
    assert opened == [(run / "report.html").as_uri()]


def test_the_text_is_printed_and_no_page_is_made(slimrl, tmp_path: Path) -> None:
    shown = slimrl("show", write_run(tmp_path / "a"), "--text")
    assert shown.code == 0
    assert "Held-out accuracy rose by 50.0 points [+12.5, +81.2]." in shown.out
    assert not (tmp_path / "a" / "report.html").exists()


def test_a_file_that_no_run_writes_is_said(slimrl, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    record = json.loads((run / "run.json").read_text())
    record["summary"]["unscorable"] = {"late": {}}
    (run / "run.json").write_text(json.dumps(record))
    shown = slimrl("show", run)
    assert shown.code == 3
    assert "a file in it holds what no run writes (TypeError" in shown.err


def test_a_command_that_is_stopped_makes_its_last_page_when_all_else_is_stored(
    slimrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []

    def page(path: Path) -> Path:
        told.append((read_status(path), len([*path.glob("checkpoints/step-*")])))
        return path / "report.html"

    monkeypatch.setattr("slimrl.report.run.write_run_page", page)
    monkeypatch.setattr("slimrl.display.run.Display.updating", lambda *_: signal.raise_signal(signal.SIGTERM))
    small = ["rollout.problems=2", "rollout.group_size=2", "evaluation.problems=1", "evaluation.harder_problems=0"]
    stopped = slimrl("train", *small, "name=a", "--quiet")
    assert stopped.code == 75, stopped.err
    assert told == [("running", 0), ("preempted", 1)]


def test_a_study_has_a_page_of_its_own(slimrl, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "report.html").write_text("a study's")
    shown = slimrl("show", tmp_path / "study")
    assert (shown.code, shown.out) == (0, f"{tmp_path}/study/report.html\n")
    assert (tmp_path / "study" / "report.html").read_text() == "a study's"


@pytest.mark.parametrize(("arguments", "sentence"), [((), "runs/ holds no run"), (("nothing",), "nothing is no run")])
def test_what_is_no_run_is_said(slimrl, arguments: tuple[str, ...], sentence: str) -> None:
    shown = slimrl("show", *arguments)
    assert shown.code == 2
    assert sentence in shown.err
