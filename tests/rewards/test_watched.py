"""Rewards of weight 0: measured in training and held out, and never paid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimrl.algorithm.groups import Collected
from slimrl.algorithm.metrics import describe
from slimrl.api.rewards import read_rewards
from slimrl.config.files import build
from slimrl.config.rewards import RewardsConfig
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.records import Completion, Problem
from slimrl.report.run import write_run_page
from slimrl.rewards import Reward, load_rewards
from slimrl.rewards.gold import check_gold
from slimrl.rewards.scoring import Sampled, score, unpaid_when_truncated
from slimrl.study.spec import load_study
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from tests.test_train import SMALL, run

PROBLEM = Problem("p", "What is 9 + 9?", "18")
TASK = Task("test", (PROBLEM,), (), (), STYLES["hashes"], Grader("numeric"), "", {})
TEXTS = ["#### 18", "#### 17"]


def _fails(**_: object) -> list[float]:
    raise ValueError("out of order")


def _scored(*rewards: Reward, strict: bool = False, finish: str = "stop"):
    done = [Completion((1,), (2, 3), (0.0, 0.0), finish) for _ in TEXTS]  # type: ignore[arg-type]
    return score(Sampled(PROBLEM, done, TEXTS, step=1, strict=strict), rewards, TASK)


def _reward(name: str, weight: float, values: list[float | None]) -> Reward:
    return Reward(name, lambda **_: values, weight, None, None)


PAID = _reward("paid", 2.0, [1.0, 0.0])


def test_a_watched_reward_changes_no_reward() -> None:
    alone = _scored(PAID)
    beside = _scored(PAID, _reward("seen", 0.0, [5.0, 1e308]))
    assert [r.reward for r in beside.rollouts] == [r.reward for r in alone.rollouts] == [2.0, 0.0]
    assert [r.scores for r in beside.rollouts] == [{"paid": 1.0, "seen": 5.0}, {"paid": 0.0, "seen": 1e308}]


def test_a_watched_reward_that_fails_costs_its_score_and_nothing_else() -> None:
    group = _scored(PAID, Reward("seen", _fails, 0.0, None, None))
    assert [(r.reward, r.unscorable) for r in group.rollouts] == [(2.0, ""), (0.0, "")]
    assert {r.unmeasured for r in group.rollouts} == {"reward seen raised ValueError: out of order"}
    metrics = describe(Collected((group,), (), (group,), wanted=1), "reward")
    assert (metrics["unscorable"], metrics["unmeasured"], metrics["rewards/paid/mean"]) == (0.0, 1.0, 0.5)
    with pytest.raises(SettingsError, match="reward seen raised ValueError: out of order"):
        _scored(PAID, Reward("seen", _fails, 0.0, None, None), strict=True)


def test_what_is_only_watched_makes_nothing_scorable() -> None:
    silent = _reward("paid", 1.0, [None, 1.0])
    group = _scored(silent, _reward("seen", 0.0, [1.0, 1.0]))
    assert [r.unscorable for r in group.rollouts] == ["no reward applies", ""]
    assert [(r.reward, r.unscorable) for r in _scored(_reward("seen", 0.0, [1.0, None])).rollouts] == [(0, ""), (0, "")]


def test_truncated_completions_keep_the_scores_that_are_not_paid() -> None:
    rewards = (PAID, _reward("seen", 0.0, [5.0, 6.0]))
    group = unpaid_when_truncated(_scored(*rewards, finish="length"), rewards)
    assert [(r.reward, r.scores) for r in group.rollouts] == [(0, {"paid": 0, "seen": 5}), (0, {"paid": 0, "seen": 6})]


def test_gold_answers_owe_nothing_to_a_watched_reward(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def seen(completions, **columns):\n    return [0.5] * len(completions)\n")
    config = RewardsConfig.model_validate(
        {"watched": ["repetition"], "custom": {f"{tmp_path}/mine.py:seen": {"weight": 0.0, "low": 0.0, "high": 1.0}}}
    )
    rewards = load_rewards(config, TASK, max_new_tokens=64)
    assert [(r.name, r.weight) for r in rewards] == [("correct", 1.0), ("repetition", 0.0), ("seen", 0.0)]
    report = check_gold(TASK, [PROBLEM], rewards)
    assert (report.failures, report.maximum) == ((), 1.0)
    assert [(trial.reward, trial.scores) for trial in report.trials] == [("seen", (0.5,))]


def test_lists_of_python_watch_with_weight_0() -> None:
    def seen(completions: list[str], **_: object) -> list[float]:
        return [0.0 for _ in completions]

    given = read_rewards(["correct", ("repetition", 0), (seen, 0)])
    assert given.settings["watched"] == ["repetition"]
    config = RewardsConfig.model_validate(given.settings)
    assert config.paid == ("correct",)
    assert config.measured == ("correct", "repetition", "__main__:seen")
    with pytest.raises(SettingsError, match="repetition is given twice"):
        read_rewards([("repetition", 0), "repetition"])


@pytest.mark.parametrize(
    ("rewards", "sentence"),
    [
        ({"watched": ["correct"]}, "correct is the accuracy, which is always measured; remove it"),
        ({"watched": ["repetitions"]}, "'repetitions' is no built-in reward and no judge, which are format, "),
        (
            {"watched": ["f"], "custom": {"my.py:f": 0.0}},
            "f is a function of yours, which is always measured; remove it",
        ),
        ({"repetition_ngram": 4}, "rewards.repetition_ngram has no effect without rewards.repetition above 0"),
        ({"correct": 0.0, "watched": ["format"]}, "every reward has weight 0"),
    ],
)
def test_what_cannot_be_watched(rewards: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        build(TrainConfig, {"rewards": rewards})


def test_settings_of_a_watched_reward_act() -> None:
    config = build(
        TrainConfig,
        {"rewards": {"watched": ["repetition", "soft_overlong"], "repetition_ngram": 4, "overlong_buffer": 8}},
    )
    assert config.rewards.repetition_ngram == 4
    with pytest.raises(ValueError, match=r"overlong_buffer=8 exceeds"):
        config.rewards.check_buffer(4)


def test_a_run_is_the_same_with_watched_rewards_and_measures_them_everywhere(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def seen(completions, **columns):\n    return [float(len(text) % 5) for text in completions]\n"
    )
    own = f"rewards.custom.{tmp_path}/mine.py:seen={{weight: 0, low: 0, high: 4}}"
    plain = run(tmp_path, "plain", *SMALL)
    watched = run(tmp_path, "watched", *SMALL, own, "rewards.watched=[repetition]", "rewards.workers=0")
    assert (watched.weights, watched.optimizer) == (plain.weights, plain.optimizer)
    keys = {f"{mode}rewards/{name}" for mode in ("", "greedy_") for name in ("seen", "repetition")}
    assert keys <= {*watched.difference["test"]}
    assert keys <= {*watched.before}
    folder = Path(watched.run)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all({"rewards/seen/mean", "rewards/repetition/mean"} <= {*line} for line in lines)
    same = [json.loads(line)["reward"] for line in (Path(plain.run) / "metrics.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in lines] == same
    row = json.loads((folder / "evals" / "step-00000000.jsonl").read_text().splitlines()[0])
    assert row["bounds"] == {"repetition": [-1.0, 0.0], "seen": [0.0, 4.0]}
    page = write_run_page(folder).read_text()
    assert "seen" in page
    assert "repetition" in page


def test_a_study_may_rest_on_a_reward_that_some_arms_only_watch(tmp_path: Path) -> None:
    text = "primary: test/rewards/repetition\narms: {pays: rewards.repetition=0.5}\nsettings: {rewards: {watched: [repetition]}}\n"
    (tmp_path / "study.yaml").write_text(text)
    assert [arm.config.rewards.repetition for arm in load_study([str(tmp_path / "study.yaml")]).arms][:1] == [0.0]
    (tmp_path / "study.yaml").write_text(text.replace("watched: [repetition]", "format: 0.1"))
    with pytest.raises(
        SettingsError, match=r"which lack repetition; to measure it unpaid, name it in rewards\.watched"
    ):
        load_study([str(tmp_path / "study.yaml")])
