"""Runs whose task is a package of `verifiers`: its settings by default, verdicts by its scores, trained, measured and resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from slimrl.config.files import load_config, read_yaml
from slimrl.config.places import anchored
from slimrl.config.schema import EvalConfig, SftRunConfig, TrainConfig
from slimrl.environments.verifiers import bridge
from slimrl.errors import SettingsError
from slimrl.evaluate import evaluate
from slimrl.preflight.difficulty import measure_rates, measured_problems
from slimrl.preflight.setup import prepare, prepare_measuring
from slimrl.runs.reader import read_metrics
from slimrl.tasks.rates import Rate
from tests.environments import stand_in
from tests.environments.guess import GUESS
from tests.session.test_resume import StopAt, content, interrupt, run

SMALL = ("steps=2", "rollout.max_new_tokens=64", "rollout.problems=4", "rollout.group_size=4")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A game that is won by any even number, which the tiny model sometimes writes."""
    for name, module in stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    bridge.cache_clear()
    won = 'if guess == str(state["secret"])'
    assert won in GUESS
    (tmp_path / "game.py").write_text(GUESS.replace(won, 'if guess[-1:] in ("2", "4", "6", "8")'))
    return f"task.name=verifiers:{tmp_path / 'game.py'}"


def test_a_package_is_trained_recorded_measured_and_resumed(package: str, tmp_path: Path) -> None:
    stop = StopAt(-1)
    run(tmp_path, "a", package, *SMALL, stop=stop)
    lines = (tmp_path / "a" / "rollouts" / "step-00000001.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        logged = row["logged"]["environment"]
        assert row["scores"]["environment"] == row["reward"]
        assert row["reward"] == logged["won"] - 0.25 * logged["tries"] + 0.5 * logged["bonus"]
        assert row["correct"] == (row["reward"] >= 0.5)
        assert logged["tries"] == sum(role == "assistant" for role, _ in row["turns"])
    assert {row["correct"] for row in rows} == {True, False}
    metrics = read_metrics(tmp_path / "a")[0]
    assert metrics["logged/won"] == sum(row["logged"]["environment"]["won"] for row in rows) / len(rows)
    assert interrupt(tmp_path, "b", round(0.6 * (-1 - stop.left)), package, *SMALL) == 75
    run(tmp_path, "b", package, *SMALL, resume=True)
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_the_accuracy_of_a_package_is_the_share_of_episodes_that_pass(package: str) -> None:
    config = load_config(EvalConfig, [], [package, "rollout.max_new_tokens=64", "evaluation.problems=2"])
    setup = prepare_measuring(config)
    assert setup.scorer is not None
    with setup.scorer:
        found = evaluate(setup, step=0).test
    assert len(found.rows) == 4
    for row in found.rows:
        assert row.strict == row.lenient == (row.scores["environment"] >= 0.5)  # type: ignore[operator]


def test_problems_of_a_package_have_rates_by_which_they_are_chosen(package: str, tmp_path: Path) -> None:
    config = load_config(EvalConfig, [], [package, "rollout.max_new_tokens=64"])
    setup = prepare(config)
    problems = measured_problems(setup, "train", 6)
    found: list[Rate] = []
    assert measure_rates(setup, problems, 4, found.append) == []
    assert 0 < sum(rate.right for rate in found) < 24, "scores decide, since a package has no checker"
    assert {rate.samples for rate in found} == {4}
    file = tmp_path / "rates.jsonl"
    file.write_text("".join(json.dumps(rate.row()) + "\n" for rate in found))
    chosen = load_config(TrainConfig, [], [package, f"task.rates={file}", "task.success_rate=[0.1, 1]"])
    task = prepare(chosen).task
    assert {p.id: 1 - p.difficulty for p in task.train} == {r.id: r.rate for r in found if r.rate >= 0.1}
    assert any("task.rates: success rates" in note for note in task.notes)


def test_environment_and_rubric_are_the_defaults() -> None:
    config = load_config(TrainConfig, [], ["task.name=verifiers:my-game", "environment.arguments={level: 2}"])
    assert config.environment.name == config.task.name == "verifiers:my-game"
    assert config.environment.arguments == {"level": 2}
    assert config.rewards.paid == ("environment",)
    mixed = load_config(TrainConfig, [], ["task.name=verifiers:my-game", "rewards.environment=0.5", "rewards.random=1"])
    assert mixed.rewards.paid == ("environment", "random")


def test_a_file_in_a_settings_file_is_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task:\n  name: verifiers:games/guess.py\n")
    task = anchored(read_yaml(str(tmp_path / "a.yaml")), tmp_path)["task"]
    assert task == {"name": f"verifiers:{tmp_path}/games/guess.py"}
    assert load_config(EvalConfig, [str(tmp_path / "a.yaml")]).environment.name == task["name"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["task.name=verifiers:a", "task.path=b.jsonl"], "task.path has no effect with task.name=verifiers:a, whose package has data"),
        (["task.name=verifiers:a", "task.instruction=Play."], "task.instruction has no effect with task.name=verifiers:a"),
        (["task.name=verifiers:a", "environment.name=b.py:B"], "task.name=verifiers:a has an environment of its own"),
        (["environment.name=verifiers:a"], "environment.name=verifiers:a plays the problems of its package only; set task.name=verifiers:a"),
        (["task.name=verifiers:"], "task.name='verifiers:' is not one of arithmetic, "),
    ],
)  # fmt: skip
def test_refusals(settings: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_config(TrainConfig, [], settings)


def test_nothing_to_imitate() -> None:
    with pytest.raises(SettingsError, match=r"task.name=verifiers:a has no worked solutions to imitate"):
        load_config(SftRunConfig, [], ["task.name=verifiers:a"])


def test_another_task_for_the_model_of_a_package(package: str, tmp_path: Path) -> None:
    from slimrl.cli.arguments import model_settings

    run(tmp_path, "a", package, *SMALL)
    own = model_settings(str(tmp_path / "a"), [], None)
    assert own.task.name == own.environment.name == package.removeprefix("task.name=")
    other = model_settings(str(tmp_path / "a"), [], "arithmetic")
    assert (other.task.name, other.environment.name, other.rewards.environment) == ("arithmetic", "", 0.0)
