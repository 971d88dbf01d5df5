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
