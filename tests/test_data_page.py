"""docs/data.md says what is found, its settings are settings, and its commands run.

The commands of its section on difficulty run in tests/cli/test_difficulty.py. A data set of the Hub needs a network: rows stand
in for what the library `datasets` would load, and everything else is real.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from slimrl.config.files import load_config, parse_override
from slimrl.config.mistakes import known_keys
from slimrl.config.schema import TrainConfig
from slimrl.records import right_answers
from slimrl.tasks import load_task
from slimrl.tasks.layout import ANSWER, CHOICES, CONTEXT, QUESTION, SOLUTION, WORKED
from slimrl.terms import Checker
from tests.cli.conftest import slimrl  # noqa: F401
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


SMALL = (
    "steps=1", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "evaluation.problems=2",
    "evaluation.greedy=false", "log.rollouts=false", "log.model=false",
)  # fmt: skip


def test_the_first_commands_run(slimrl, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """One step each, on a tiny model: Parquet, CSV with letters of options, and a data set of the Hub with two splits."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow as pa

    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(12)]
    parquet.write_table(pa.Table.from_pylist(rows), "rows.parquet")
    quiz = [f'"Which of {i} and {i + 9} is larger? A. the first B. the second",B' for i in range(12)]
    Path("questions.csv").write_text("\n".join(["question,answer", *quiz]))
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> list[dict[str, str]]:
        asked.append((name, subset, split))
        return rows if split == "train" else [{"question": "What is 40 + 1?", "answer": "41"}]

    block = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0].splitlines()
    assert len(block) == 3
    for number, command in enumerate(block):
        with monkeypatch.context() as hub:
            if "org/name" in command:
                hub.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
            result = slimrl(*shlex.split(command)[1:], *SMALL, f"model.path={tiny_folder}", f"name=r{number}")
        assert result.code == 0, (command, result.err)
        assert json.loads(Path(f"runs/r{number}/run.json").read_text())["status"] == "finished"
    assert asked == [("org/name", "main", "train"), ("org/name", "main", "test")]


def loaded(tmp_path: Path, row: dict[str, Any], *settings: str) -> Any:
    """The first problem of two rows of this shape."""
    rows = [json.dumps(row), json.dumps(row).replace("Q1", "Q2")]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    config = load_config(TrainConfig, [], [f"task.path={tmp_path}/rows.jsonl", *settings]).task
    task = load_task(config, instruction="", seed=0)
    return task, (*task.train, *task.test)[0]


def test_the_columns_of_the_page_are_read(tmp_path: Path) -> None:
    (line,) = re.findall(
        r"`(task\.columns\.question=\S+)`, `(task\.columns\.answer=\S+)`, `(task\.columns\.\S+)`", PAGE
    )
    row = {"extra_info": {"question": "Q1"}, "labels": {"text": ["7", "8"]}, "difficulty": "hard"}
    _, problem = loaded(tmp_path, row, *line)
    assert (problem.question[0], problem.answer, problem.difficulty) == ("Q", "7", 0.0)


def test_the_answers_of_the_page_are_right(tmp_path: Path) -> None:
    several, boolean = (json.loads(text) for text in re.findall(r"`(\{\"answer\": [^`]*\})`", PAGE))
    task, problem = loaded(tmp_path, {"question": "Q1", **several}, "task.checker=exact")
    assert right_answers(problem.answer) == ("7", "seven")
    assert all(task.grade(f"#### {text}", problem.answer).strict for text in ("7", "seven"))
    task, problem = loaded(tmp_path, {"question": "Q1", **boolean}, "task.checker=exact")
    verdicts = [task.grade(f"#### {text}", problem.answer).strict for text in ("yes", "true", "no")]
    assert verdicts == [True, True, False]
