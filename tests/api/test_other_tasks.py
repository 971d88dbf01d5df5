"""A run is measured on tasks of other kinds than its own: what belongs to its task alone is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slimrl.api.measuring import change_task, measuring_settings
from slimrl.cli.arguments import model_settings
from slimrl.config.files import build, dump_yaml, load_config, merge
from slimrl.config.schema import EvalConfig, TrainConfig
from slimrl.errors import SettingsError

RUNS: dict[str, dict[str, Any]] = {
    "code": {
        "task": {"name": "code", "path": "a.jsonl", "style": "code", "checker": "tests"},
        "sandbox": {"cpu_seconds": 2.0},
        "rewards": {"correct": 0.0, "tests_passed": 1.0},
    },
    "guess": {
        "task": {"name": "guess"},
        "environment": {"name": "guess", "turns": 5},
        "rewards": {"correct": 0.0, "environment": 1.0},
    },
    "gsm8k": {"task": {"name": "gsm8k", "style": "hashes"}},
}


@pytest.mark.parametrize("own", RUNS)
@pytest.mark.parametrize(
    "other",
    [
        {"task": {"name": "arithmetic"}},
        {"task": {"name": "code", "path": "b.jsonl"}},
        {"task": {"name": "guess"}, "environment": {"name": "guess"}},
    ],
)
def test_a_task_of_another_kind(own: str, other: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    base, name = merge({}, RUNS[own]), other["task"]["name"]
    change_task(base, name, tmp_path, other_data=True)
    config = build(EvalConfig, merge(base, other), "x.yaml")
    assert config.task.name == name
    assert config.task.style == ("code" if name == "code" else "hashes")
    assert config.environment.name == ("guess" if name == "guess" else "")
    assert not config.rewards.tests_passed


OWN: dict[str, list[str]] = {
    "arithmetic": [],
    "calculator": ["environment.name=calculator", "environment.turns=6", "task.arithmetic.max_number=999", "evaluation.harder_problems=0"],
    "guess": [
        "task.name=guess", "environment.name=guess", "environment.arguments={per_turn: true}", "environment.turns=10", "rewards.correct=0",
        "rewards.environment=1", "algorithm.credit=turn", "evaluation.harder_problems=0",
    ],
    "code": ["task.name=code", "task.path=a.jsonl", "rewards.tests_passed=1", "sandbox.cpu_seconds=2", "evaluation.harder_problems=0"],
}  # fmt: skip


@pytest.fixture(params=OWN)
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a run, with its settings as a run stores them: all of them."""
    folder = tmp_path / str(request.param)
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "config.yaml").write_text(dump_yaml(load_config(TrainConfig, [], OWN[request.param])))
    return folder


@pytest.mark.parametrize(
    ("settings", "task", "environment", "turns"),
    [
        (["task.name=arithmetic", "environment.name="], "arithmetic", "", 8),
        (["task.name=code", "task.path=b.jsonl", "environment.name="], "code", "", 8),
        (["task.name=guess", "environment.name=guess", "environment.turns=3"], "guess", "guess", 3),
        (
            ["task.name=jsonl", "task.path=b.jsonl", "environment.name=a.py:A", "environment.turns=3"],
            "jsonl",
            "a.py:A",
            3,
        ),
        (["task.name=arithmetic", "environment.name=calculator", "environment.turns=2"], "arithmetic", "calculator", 2),
    ],
)
def test_settings_name_another_task_or_environment(
    left: Path, settings: list[str], task: str, environment: str, turns: int
) -> None:
    """From the command line and from Python."""
    keywords = merge({}, {})
    for setting in settings:
        key, _, value = setting.partition("=")
        section, _, name = key.partition(".")
        keywords = merge(keywords, {section: {name: int(value) if value.isdecimal() else value}})
    for config in (model_settings(str(left), settings, None), measuring_settings(str(left), keywords)):
        assert (config.task.name, config.environment.name, config.environment.turns) == (task, environment, turns)
        same = environment == "guess" and left.name == "guess"
        assert config.environment.arguments == ({"per_turn": True} if same else {})
        assert bool(config.rewards.environment) == (
            left.name == "guess" and bool(environment) and (same or task == "guess")
        )


@pytest.mark.parametrize("settings", [["environment.name="], []])
def test_a_run_is_measured_without_its_environment(settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(dump_yaml(load_config(TrainConfig, [], OWN["calculator"])))
    config = model_settings(str(tmp_path), settings, None)
    assert (config.environment.name, config.environment.turns) == (("", 8) if settings else ("calculator", 6))
    assert config.task.arithmetic.max_number == 999


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["task.name=code"], "task.name=code needs task.path=FILE"),
        (["task.name=guess"], "set environment.name=guess"),
        (
            ["environment.name=", "environment.turns=3", "environment.deadline=2"],
            "environment.turns and environment.deadline have no effect without environment.name; remove them, or set it",
        ),
    ],
)
def test_what_must_still_be_given_is_named_at_once(settings: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(dump_yaml(load_config(TrainConfig, [], OWN["calculator"])))
    with pytest.raises(SettingsError, match=sentence):
        model_settings(str(tmp_path), settings, None)
