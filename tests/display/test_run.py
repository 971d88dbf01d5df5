from __future__ import annotations

import pytest

from slimrl.display.run import Display, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("3*2=6\n#### 6", "3*2=6\n#### 6"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\x9bb", "a\\x9bb"),
        ("right\u202eleft", "right\\u202eleft"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("lone \ud800", "lone \\ud800"),
        ("two\u2028lines\u2029or more\x85", "two\\u2028lines\\u2029or more\\x85"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("Zoë 数 €", "Zoë 数 €"),
        ("[/nope] [red]x", "[/nope] [red]x"),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_model_made_text_is_neither_markup_nor_escape(capsys: pytest.CaptureFixture[str]) -> None:
    Display().say("[/nope] \x1b[2J [bold]x[/bold]", "dim")
    err = capsys.readouterr().err
    assert "[/nope] \\x1b[2J [bold]x[/bold]" in err
    assert "\x1b[2J" not in err


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Display(quiet=True).say("hello")
    assert capsys.readouterr().err == ""
