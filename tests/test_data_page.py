"""docs/data.md says what is found, and its settings are settings."""

from __future__ import annotations

import re
import shlex
from typing import get_args

from slimrl.config.files import load_config, parse_override
from slimrl.config.mistakes import known_keys
from slimrl.config.schema import TrainConfig
from slimrl.tasks.layout import ANSWER, CHOICES, CONTEXT, QUESTION, SOLUTION, WORKED
from slimrl.terms import Checker
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def row(start: str) -> list[str]:
    """The names in the second cell of a table's row."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {start} |")]
    return re.findall(r"`([^`]+)`", line)


def test_the_columns_of_the_page_are_those_that_are_found() -> None:
    assert [name for name in row("question") if name not in CONTEXT] == list(QUESTION)
    assert set(CONTEXT) < set(row("question"))
    assert row("answer") == [*ANSWER, *WORKED]
    assert row("worked solution") == list(SOLUTION)
    assert row("options")[:2] == list(CHOICES)
    assert row("id, difficulty") == ["id", "difficulty"]


def test_every_checker_is_on_the_page() -> None:
    assert tuple(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == get_args(Checker)


def test_commands_and_settings_of_the_page_are_settings() -> None:
    commands = re.findall(r"^slimrl train (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        assert load_config(TrainConfig, [], shlex.split(command)).task.name == "jsonl"
    keys = set(known_keys(TrainConfig))
    named = re.findall(r"`((?:task|rewards)\.[^`]*)`", PAGE)
    assert len(named) > 15
    for text in named:
        for setting in re.split(r" (?=[a-z]+\.)", text):
            assert setting.partition("=")[0] in keys, setting
            if "=" in setting:
                parse_override(setting)
