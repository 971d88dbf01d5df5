from __future__ import annotations

import pytest

from slimrl.text import visible


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
