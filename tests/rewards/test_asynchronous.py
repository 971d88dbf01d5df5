"""Asynchronous reward functions: awaited together, each with its own deadline and its own failure."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.rewards import RewardsConfig
from slimrl.records import Completion, Group, Problem
from slimrl.rewards import load_rewards
from slimrl.rewards.scoring import Sampled, score
from slimrl.rewards.workers import Scorer
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES

PROBLEM = Problem("p/1", "How many of 12, 13 and 18?", "18")
TASK = Task("test", (PROBLEM,), (), (), STYLES["hashes"], Grader("numeric"), "", {})
SECONDS = 60.0
"""So that what should not hang fails instead."""
CODE = """
import asyncio, os, sys, time

opened, met, loops = asyncio.Event(), [], set()

async def waits(completions, **_):
    await asyncio.wait_for(opened.wait(), 30)
    return [1.0] * len(completions)

async def opens(completions, **_):
    opened.set()
    return [2.0] * len(completions)

async def same_loop(completions, **_):
    loops.add(asyncio.get_running_loop())
    return [float(len(loops))] * len(completions)

async def fails(completions, **_):
    raise KeyError("colour")

async def leaves(completions, **_):
    sys.exit(3)

async def cancels(completions, **_):
    raise asyncio.CancelledError

async def sleeps(completions, log_metric, **_):
    log_metric("tries", 1)
    await asyncio.sleep(3600)

async def holds_on(completions, **_):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def blocks(completions, **_):
    time.sleep(3600)

async def ends(completions, **_):
    os._exit(3)

async def threads(completions, **_):
    await asyncio.to_thread(time.sleep, 3600)

async def logs(completions, log_extra, log_metric, **_):
    await asyncio.sleep(0)
    log_extra("length", [len(text) for text in completions])
    log_metric("mean", 2)
    log_metric("mean", 4)
    return [None if text == "none" else 3.0 for text in completions]

class Later:
    async def __call__(self, completions, **_):
        return [4.0] * len(completions)

later = Later()

def plain(completions, **_):
    return [5.0] * len(completions)
"""


def rewards_of(folder: Path, *names: str, **more: Any) -> RewardsConfig:
    (folder / "mine.py").write_text(CODE)
    return RewardsConfig.model_validate(
        {"correct": 0.0, "custom": {f"{folder}/mine.py:{name}": 1 for name in names}, **more}
    )


def sampled(*texts: str) -> Sampled:
    return Sampled(PROBLEM, [Completion((1,), (2,), (0.0,), "stop") for _ in texts], texts, step=0)


def groups_of(config: RewardsConfig, workers: int, *samples: Sampled) -> list[Group]:
    rewards = load_rewards(config, TASK, max_new_tokens=8, elsewhere=workers > 0)
    with Scorer(TASK, rewards, config, max_new_tokens=8, workers=workers, show=sys.stderr.write) as scorer:
        futures = [scorer.submit(sample) for sample in samples]
        return [future.result(SECONDS) for future in futures]


@pytest.mark.parametrize("workers", [0, 1])
def test_they_are_awaited_together(workers: int, tmp_path: Path) -> None:
    """The first waits for what only the second does; scores stand in the order of the settings all the same."""
    config = rewards_of(tmp_path, "waits", "plain", "opens", "later", "same_loop")
    for group in groups_of(config, workers, sampled("a", "b"), sampled("c")):
        for rollout in group.rollouts:
            assert list(rollout.scores.items()) == [
                ("waits", 1.0),
                ("plain", 5.0),
                ("opens", 2.0),
                ("later", 4.0),
                ("same_loop", 1.0),
            ]
            assert rollout.reward == 13.0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("name", "reason"),
    [("fails", "raised KeyError: 'colour'"), ("leaves", "raised SystemExit: 3"), ("cancels", "raised CancelledError")],
)
def test_a_failure_costs_its_own_outcome(name: str, reason: str, workers: int, tmp_path: Path) -> None:
    for group in groups_of(rewards_of(tmp_path, name, "later", "plain"), workers, sampled("a"), sampled("b")):
        (rollout,) = group.rollouts
        assert (rollout.scores, rollout.reward) == ({"later": 4.0, "plain": 5.0}, 0.0)
        assert rollout.unscorable == f"reward {name} {reason}"


@pytest.mark.parametrize("name", ["sleeps", "holds_on", "blocks", "threads"])
def test_a_late_one_costs_its_own_outcome(name: str, tmp_path: Path) -> None:
    """Also where it does not let itself be cancelled, or keeps the others from running at all."""
    config = rewards_of(tmp_path, "plain", "later", name, "logs", deadline=1.0)
    first, second = groups_of(config, 1, sampled("a"), sampled("b"))
    for group in (first, second):
        (rollout,) = group.rollouts
        assert rollout.scores == {"plain": 5.0, "later": 4.0, "logs": 3.0}
        assert rollout.unscorable == f"reward {name} took longer than rewards.deadline=1 s"


def test_one_that_ends_the_worker_costs_its_own_outcome(tmp_path: Path) -> None:
    (group,) = groups_of(rewards_of(tmp_path, "ends", "later", "logs"), 1, sampled("a"))
    assert group.rollouts[0].scores == {"later": 4.0, "logs": 3.0}
    assert group.rollouts[0].unscorable == "reward ends ended its worker by exit code 3"


@pytest.mark.parametrize("workers", [0, 1])
def test_what_they_log_arrives(workers: int, tmp_path: Path) -> None:
    (group,) = groups_of(rewards_of(tmp_path, "logs", "plain"), workers, sampled("ab", "none"))
    assert [dict(r.logged) for r in group.rollouts] == [{"logs": {"length": 2}}, {"logs": {"length": 4}}]
    assert group.metrics == {"mean": (2.0, 4.0)}
    assert [dict(r.scores) for r in group.rollouts] == [{"logs": 3.0, "plain": 5.0}, {"plain": 5.0}]


def test_what_a_late_one_logged_arrives_too(tmp_path: Path) -> None:
    (group,) = groups_of(rewards_of(tmp_path, "sleeps", deadline=1.0), 1, sampled("a"))
    assert group.metrics == {"tries": (1.0,)}


def test_a_program_with_a_loop_of_its_own_may_score(tmp_path: Path) -> None:
    rewards = load_rewards(rewards_of(tmp_path, "later", "same_loop"), TASK, max_new_tokens=8)

    async def notebook() -> Group:
        return score(sampled("a"), rewards, TASK)

    assert asyncio.run(notebook()).rollouts[0].scores == {"later": 4.0, "same_loop": 1.0}
