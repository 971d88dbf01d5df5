"""Tables of measures: what they show, and that names in them are text."""

from __future__ import annotations

import pytest
from rich.console import Console

from slimrl.display.measures import show_at_k, show_comparison, show_tasks
from slimrl.measures import Tally, at_k, paired

HOSTILE = "[red]x[/red]\x1b[2J"


@pytest.fixture
def console() -> Console:
    return Console(width=140, highlight=False, force_terminal=False)


def measures(samples: int, **more: float) -> dict[str, object]:
    summary = {"accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 2.0, "lenient": 0.5, "truncated": 0.0}
    return {**summary, **more, **at_k([Tally(samples), Tally(0, (), samples)])}


def test_measures_by_k(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    show_at_k(console, HOSTILE, measures(4))
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("[red]x[/red]\\x1b[2J, k")
    assert [row.split()[:2] for row in rows] == [["1", "50.0"], ["2", "50.0"], ["4", "50.0"]]
    show_at_k(console, "test", measures(1))
    assert capsys.readouterr().out == "", "one sample has no more to say"


def test_one_table_of_tasks(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    show_tasks(console, HOSTILE, {HOSTILE: {"test": measures(4, greedy=0.25), "harder": measures(2)}})
    title, head, test, harder = capsys.readouterr().out.splitlines()
    assert "x[/red]\\x1b[2J: strict" in title
    assert head.split() == ["n", "sampled", "greedy", "lenient", "cut", "off", "pass@k", "maj@k"]
    assert test.split()[1:] == [
        "2",
        "50.0",
        "[25.0,",
        "75.0]",
        "25.0",
        "50.0",
        "0.0",
        "50.0",
        "(k",
        "4)",
        "50.0",
        "(k",
        "4)",
    ]
    assert harder.split()[:3] == ["[red]x[/red]\\x1b[2J,", "harder", "2"]


def test_a_table_of_tasks_cuts_no_number_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    wide = measures(16, greedy=1.0, low=0.925, high=1.0, n=1319.0, accuracy=0.985, lenient=1.0, truncated=0.125)
    show_tasks(Console(width=80), "a model", {"aime-2025-part-one": {"test": wide, "harder": wide}})
    out = capsys.readouterr().out
    assert "\u2026" not in out
    assert out.count("1319 98.5 [92.5, 100.0]") == 2
    assert out.count("50.0 (k 16)") == 4
    assert max(map(len, out.splitlines())) <= 80


def test_a_comparison_names_what_moved_most(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    first = {HOSTILE + str(i): Tally(0, (2,)) for i in range(5)}
    second = {name: Tally(1, (1,)) if i else Tally(2) for i, name in enumerate(first)}
    show_comparison(console, ("a", HOSTILE), "test", {"sampled": paired(first, second), "greedy": paired(first, first)})
    out = capsys.readouterr().out
    assert "[red]x[/red]\\x1b[2J against a on 5 problems of test, strict, in %" in out
    assert "won 5 ([red]x[/red]\\x1b[2J0 0 to 100 %" in out
    assert ", ...); lost 0; 0 alike" in out
    assert "greedy: equal" in out
    assert "\x1b" not in out
