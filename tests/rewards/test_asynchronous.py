"""Asynchronous reward functions: awaited together, each with its own deadline and its own failure."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.rewards import RewardsConfig
from slimrl.errors import SettingsError
from slimrl.records import Completion, Group, Problem
from slimrl.rewards import load_rewards
from slimrl.rewards.asynchronous import AT_ONCE
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


SEVERAL = """
import asyncio, os, pathlib

here = pathlib.Path(__file__).parent
begun, everyone = [], asyncio.Event()
now, calls = 0, []

async def holds(completions, **_):
    while completions[0] == "first" and not (here / "go").exists():
        await asyncio.sleep(0.01)
    return [1.0] * len(completions)

async def meets(completions, **_):
    if completions[0] != "first":
        begun.append(completions)
    if len(begun) == 16:
        everyone.set()
    if completions[0] != "first":
        await asyncio.wait_for(everyone.wait(), 20)
    return [1.0] * len(completions)

async def counts(completions, **_):
    global now
    now += len(completions)
    await asyncio.sleep(0.01)
    seen = now
    await asyncio.sleep(0.01)
    now -= len(completions)
    return [float(seen)] * len(completions)

async def hurts(completions, **_):
    if completions[0] == "leave":
        os._exit(3)
    if completions[0] == "sleep":
        await asyncio.sleep(3600)
    if completions[0] == "fail":
        raise ValueError("no")
    return [float(len(text)) for text in completions]

def numbers(completions, **_):
    calls.append(completions)
    return [float(len(calls))] * len(completions)
"""


def several(folder: Path, names: list[str], *samples: Sampled, **more: Any) -> list[Group | BaseException]:
    """The groups from one worker, which has another one, as large as may be, until all of them are submitted."""
    (folder / "several.py").write_text(SEVERAL)
    custom = {f"{folder}/several.py:{name}": 1 for name in [*names, "holds"]}
    config = RewardsConfig.model_validate({"correct": 0.0, "custom": custom, **more})
    rewards = load_rewards(config, TASK, max_new_tokens=8, elsewhere=True)
    with Scorer(TASK, rewards, config, max_new_tokens=8, workers=1, show=sys.stderr.write) as scorer:
        futures = [scorer.submit(sample) for sample in (sampled(*["first"] * AT_ONCE), *samples)]
        (folder / "go").touch()
        return [future.exception(SECONDS) or future.result() for future in futures[1:]]


def scores(groups: list[Group | BaseException], name: str) -> list[float | None]:
    return [group.rollouts[0].scores.get(name) if isinstance(group, Group) else None for group in groups]


def test_a_worker_awaits_several_groups_at_once(tmp_path: Path) -> None:
    """Such as gold answers, which are groups of one."""
    groups = several(tmp_path, ["meets"], *[sampled(f"text {i}") for i in range(AT_ONCE)])
    assert scores(groups, "meets") == [1.0] * AT_ONCE


@pytest.mark.parametrize(("size", "most"), [(3, AT_ONCE - AT_ONCE % 3), (AT_ONCE + 1, AT_ONCE + 1)])
def test_a_worker_awaits_a_bounded_number_of_completions(size: int, most: int, tmp_path: Path) -> None:
    found = scores(several(tmp_path, ["counts"], *[sampled(*["a"] * size)] * 7), "counts")
    assert max(number or 0 for number in found) == most


def test_of_several_groups_a_failure_costs_its_own_outcome(tmp_path: Path) -> None:
    texts = ["a", "leave", "sleep", "fail", "ab", "leave"]
    groups = several(tmp_path, ["hurts", "numbers"], *map(sampled, texts), deadline=1.0)
    assert scores(groups, "hurts") == [1.0, None, None, None, 2.0, None]
    assert [scored is None for scored in scores(groups, "numbers") + scores(groups, "holds")] == [False] * 12
    left, late = "ended its worker by exit code 3", "took longer than rewards.deadline=1 s"
    reasons = ["", left, late, "raised ValueError: no", "", left]
    assert [group.rollouts[0].unscorable for group in groups if isinstance(group, Group)] == [
        f"reward hurts {reason}" if reason else "" for reason in reasons
    ]


def test_of_several_groups_a_strict_one_fails_by_its_own_name(tmp_path: Path) -> None:
    problems = [Problem(f"p/{i}", "q", "18") for i in range(4)]
    texts = ["a", "fail", "b", "fail"]
    samples = [replace(sampled(text), problem=p, strict=True) for text, p in zip(texts, problems, strict=True)]
    groups = several(tmp_path, ["hurts"], *samples)
    assert scores(groups, "hurts") == [1.0, None, 1.0, None]
    for index in (1, 3):
        assert isinstance(groups[index], SettingsError)
        assert re.match(rf"reward hurts raised ValueError: no .* on problem p/{index}, ", str(groups[index]))


def test_plain_functions_beside_them_are_called_group_by_group(tmp_path: Path) -> None:
    groups = several(tmp_path, ["numbers", "hurts"], *[sampled("a", "bc") for _ in range(5)])
    assert scores(groups, "numbers") == [2.0, 3.0, 4.0, 5.0, 6.0]  # 1 is the group before them
