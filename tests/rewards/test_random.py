"""The random reward: a coin that follows from seed, step, problem and place, in any process, and that no gold answer beats."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from slimrl.config.rewards import RewardsConfig
from slimrl.records import Completion, Group, Problem
from slimrl.rewards import load_rewards
from slimrl.rewards.gold import check_gold
from slimrl.rewards.scoring import Sampled
from slimrl.rewards.workers import Scorer
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES

PROBLEMS = tuple(Problem(f"p/{i}", "How many?", "18", columns={"draw": "a column of this name"}) for i in range(40))
TASK = Task("test", PROBLEMS, (), (), STYLES["hashes"], Grader("numeric"), "", {})
CONFIG = RewardsConfig(correct=0.0, random=1.0)


def coins(workers: int = 0, *, seed: int = 0, step: int = 0, text: str = "#### 18") -> list[list[float]]:
    rows = [Completion((1,), (2,), (0.0,), "stop") for _ in range(8)]
    with Scorer(
        TASK, load_rewards(CONFIG, TASK, max_new_tokens=8), CONFIG, max_new_tokens=8, workers=workers
    ) as scorer:
        asked: list[Future[Group]] = [
            scorer.submit(Sampled(problem, rows, [text] * 8, step=step, seed=seed)) for problem in PROBLEMS
        ]
        groups = [future.result() for future in asked]
    assert not any(rollout.unscorable for group in groups for rollout in group.rollouts)
    return [[rollout.reward for rollout in group.rollouts] for group in groups]


def test_a_coin_is_a_function_of_seed_step_problem_and_place_alone() -> None:
    found = coins()
    assert coins() == coins(text="anything") == found, "not of the text, nor of what was asked before"
    assert found != coins(seed=1) != coins(step=1) != found
    thrown = [coin for group in found for coin in group]
    assert {*thrown} == {0.0, 1.0}
    assert abs(sum(thrown) / len(thrown) - 0.5) < 0.1, "320 coins"
    assert len({*map(tuple, found)}) > 30, "problems have coins of their own"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_throw_the_same_coins(workers: int) -> None:
    assert coins(workers, seed=3, step=7) == coins(seed=3, step=7)


def test_no_gold_answer_must_win_it() -> None:
    rewards = load_rewards(RewardsConfig(random=0.5), TASK, max_new_tokens=8)
    report = check_gold(TASK, PROBLEMS, rewards)
    assert report.failures == ()
    wrong = Task("test", PROBLEMS, (), (), STYLES["hashes"], Grader("choice"), "", {})
    rewards = load_rewards(RewardsConfig(random=0.5), wrong, max_new_tokens=8)
    assert {failure.reward for failure in check_gold(wrong, PROBLEMS, rewards).failures} == {"correct"}
