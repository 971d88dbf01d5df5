"""Rewards of length and repetition, by hand."""

from __future__ import annotations

import math

import pytest

from slimrl.config.rewards import RewardsConfig
from slimrl.errors import SettingsError
from slimrl.records import Completion, Problem
from slimrl.rewards import load_rewards
from slimrl.rewards.builtin import Cosine, repeated
from slimrl.rewards.gold import check_gold
from slimrl.rewards.scoring import Sampled, score
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES

PAPER = Cosine(right_short=2.0, right_long=1.0, wrong_short=-10.0, wrong_long=0.0, exceeded=-10.0)
PROBLEM = Problem("p/1", "How many of 12, 13 and 18?", "18")
TASK = Task("test", (PROBLEM,), (), (), STYLES["hashes"], Grader("numeric"), "", {})


def test_the_defaults_are_the_paper_s() -> None:
    config = RewardsConfig(correct=0.0, cosine_length=1.0)
    (reward,) = load_rewards(config, TASK, max_new_tokens=8)
    assert (reward.low, reward.high, reward.best) == (-10.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("length", "right", "value"),
    [
        (0, True, 2.0), (50, True, 1.5), (99, True, 1.0), (0, False, -10.0), (50, False, -5.0), (99, False, 0.0),
        (25, True, 1.5 + math.sqrt(2) / 4), (75, False, -5.0 + 5 / math.sqrt(2)), (100, True, -10.0), (101, False, -10.0),
    ],
)  # fmt: skip
def test_cosine_length_by_hand(length: int, right: bool, value: float) -> None:
    assert PAPER.of(length, 100, right=right) == pytest.approx(value, abs=3e-3 if length == 99 else 1e-12)


def test_cosine_length_is_monotone_between_its_ends() -> None:
    rising = [PAPER.of(length, 64, right=False) for length in range(64)]
    falling = [PAPER.of(length, 64, right=True) for length in range(64)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(
    ("tokens", "ngram", "share"),
    [
        ([1, 2, 3, 4], 2, 0.0), ([5, 5, 5, 5, 5], 2, 0.75), ([1, 2, 1, 2, 1, 2], 2, 0.6), ([1, 2, 1, 2], 1, 0.5), ([], 3, 0.0),
        ([1, 2], 3, 0.0), ([7, 7, 7], 3, 0.0), ([7, 7, 7, 7], 3, 0.5),
    ],
)  # fmt: skip
def test_repetition_by_hand(tokens: list[int], ngram: int, share: float) -> None:
    assert repeated(tokens, ngram) == pytest.approx(share)


def test_both_are_paid_by_the_tokens_of_a_completion() -> None:
    config = RewardsConfig(correct=0.0, cosine_length=0.5, repetition=2.0, repetition_ngram=2, cosine_exceeded=-4.0)
    rewards = load_rewards(config, TASK, max_new_tokens=8)
    tokens = [(1, 2, 3, 4), (5, 5, 5, 5), (1, 2, 3, 4, 5, 6, 7, 8)]
    done = [Completion((1,), ids, (0.0,) * len(ids), "stop") for ids in tokens]
    group = score(Sampled(PROBLEM, done, ["#### 18", "#### 17", "#### 18"], step=0), rewards, TASK)
    cosine, repetition = ([r.scores[name] for r in group.rollouts] for name in ("cosine_length", "repetition"))
    assert cosine == pytest.approx([1.5, -5.0, -4.0])
    assert repetition == pytest.approx([0.0, -2 / 3, 0.0])
    assert [r.reward for r in group.rollouts] == pytest.approx([0.75, -2.5 - 4 / 3, -2.0])


def test_gold_answers_stand_for_no_tokens() -> None:
    """Also where long answers are paid better than short ones: the check asks for what an empty completion earns."""
    for settings, gold, maximum in (({}, 2.0, 2.0), ({"cosine_right_short": 1.0, "cosine_right_long": 3.0}, 1.0, 1.0)):
        config = RewardsConfig.model_validate({"correct": 0.0, "cosine_length": 1.0, "repetition": 0.5, **settings})
        rewards = load_rewards(config, TASK, max_new_tokens=8)
        report = check_gold(TASK, [PROBLEM], rewards)
        assert (report.failures, report.maximum, rewards[0].best) == ((), maximum, gold)
        wrong = Problem("p/2", "q", "about 5")
        assert {f.reward for f in check_gold(TASK, [wrong], rewards).failures} == {"correct", "cosine_length"}


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"zero_truncated pays a completion that is cut off more than rewards\.cosine_length"
    ):
        RewardsConfig(cosine_length=1.0, zero_truncated=True)
    task = Task("test", (PROBLEM,), (), (), STYLES["hashes"], Grader("none"), "", {})
    with pytest.raises(SettingsError, match=r"rewards\.cosine_length compares with right answers"):
        load_rewards(RewardsConfig(correct=0.0, cosine_length=1.0), task, max_new_tokens=8)
