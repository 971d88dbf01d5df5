"""Text as people read it: control characters visible, numbers rounded in one way."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from slimrl.text import counted, one_line, percent, points, signed, signed_points, visible


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


def test_one_line_has_neither_line_breaks_nor_control_characters() -> None:
    assert one_line(" a\tb\n\n  c\r\x1b ") == "a b c\\x0d\\x1b"


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (signed, -0.0004, "+0.0"),
        (signed, 0.0, "+0.0"),
        (signed, -0.0006, "-0.1"),
        (signed, math.nan, "–"),
        (signed_points, 0.125, "+12.5 points"),
        (signed_points, -math.inf, "unknown"),
        (points, 0.125, "12.5 points"),
        (points, math.nan, "unknown"),
        (percent, 0.12345, "12.3"),
        (percent, math.inf, "–"),
    ],
)
def test_numbers_as_text(form: Callable[[float], str], value: float, text: str) -> None:
    assert form(value) == text


def test_numbers_of_things() -> None:
    assert [counted(n, "seed") for n in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]
