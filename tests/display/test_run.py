from __future__ import annotations

import pytest

from slimrl.display.run import Display


def test_model_made_text_is_neither_markup_nor_escape(capsys: pytest.CaptureFixture[str]) -> None:
    Display().say("[/nope] \x1b[2J [bold]x[/bold]", "dim")
    err = capsys.readouterr().err
    assert "[/nope] \\x1b[2J [bold]x[/bold]" in err
    assert "\x1b[2J" not in err


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Display(quiet=True).say("hello")
    assert capsys.readouterr().err == ""


def test_a_log_file_gets_a_line_on_a_long_evaluation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 40.0, 50.0, 80.0])
    monkeypatch.setattr("slimrl.display.run.time.monotonic", lambda: next(clock))
    display = Display()
    for done in (0, 1, 2, 3, 8):
        display.evaluating(done, 8)
    display.stop()
    assert capsys.readouterr().err == "measuring: 2 of 8 problems, 2m00s left\n"


def test_a_terminal_gets_a_bar_that_goes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    display = Display()
    for done in range(4):
        display.evaluating(done, 3)
        if done == 1:
            display.progress.refresh()
    bar = display.progress.tasks[display.measuring]
    assert (bar.completed, bar.total, bar.visible) == (3, 3, False)
    display.stop()
    assert "measuring" in capsys.readouterr().err
    assert not display.progress.live.is_started
