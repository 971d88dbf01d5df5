"""Reward functions of the program that called SlimRL: scored in its process, with the outcomes of every other."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.preflight.notes import program_notes
from slimrl.preflight.payment import measurable
from slimrl.records import Group, Problem
from slimrl.rewards import load_rewards
from slimrl.rewards.asynchronous import AT_ONCE
from slimrl.rewards.custom import offering, rewards_digest
from slimrl.rewards.gold import check_gold
from slimrl.rewards.workers import Scorer, worker_count
from tests.rewards.test_custom import SECONDS, TASK, group_of, rewards_of, sampled

HERE = "__main__:"


def program(functions: dict[str, Any], custom: dict[str, Any], workers: int, *texts: str) -> Group:
    with offering({HERE + name: function for name, function in functions.items()}):
        return group_of(rewards_of({**{HERE + name: 1.0 for name in functions}, **custom}), workers, *texts)


@pytest.mark.parametrize("workers", [0, 1])
def test_both_kinds_together(workers: int, tmp_path: Path) -> None:
    (tmp_path / "there.py").write_text(
        "import os\ndef pid(completions, **_):\n    return [float(os.getpid())] * len(completions)\n"
    )

    def here(completions: list[str], log_extra: Any, answer: list[str], **_: Any) -> list[float]:
        log_extra("answer", answer)
        return [float(os.getpid())] * len(completions)

    async def later(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    group = program({"here": here, "later": later}, {f"{tmp_path / 'there.py'}:pid": 0.0 + 1}, workers, "18", "170")
    first, second = group.rollouts
    assert first.scores["here"] == os.getpid()
    assert (first.scores["pid"] == os.getpid()) is (workers == 0)
    assert (first.scores["later"], second.scores["later"]) == (2.0, 3.0)
    assert first.reward == pytest.approx(sum(first.scores.values()))
    assert dict(first.logged) == {"here": {"answer": "18"}}


def raising(**_: Any) -> list[float]:
    raise ValueError("no score")


def short(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * (len(completions) - 1)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raising, "reward f raised ValueError: no score"),
        (short, "reward f returned 1 values for 2 completions"),
        (lambda completions, **_: [float("nan")] * len(completions), "reward f returned nan"),
        (lambda completions, **_: ["1"] * len(completions), "reward f returned str instead of a number"),
        (lambda completions, **_: [None] * len(completions), "no reward applies"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_is_never_paid(function: Any, reason: str, workers: int) -> None:
    group = program({"f": function}, {}, workers, "18", "17")
    assert [(rollout.reward, rollout.unscorable) for rollout in group.rollouts] == [(0.0, reason)] * 2


def test_they_are_called_in_the_thread_that_submits() -> None:
    seen: list[threading.Thread] = []

    def f(completions: list[str], **_: Any) -> list[float]:
        seen.append(threading.current_thread())
        return [1.0] * len(completions)

    config = rewards_of({HERE + "f": 1.0})
    with offering({HERE + "f": f}):
        rewards = load_rewards(config, TASK, max_new_tokens=8, elsewhere=True)
    with Scorer(TASK, rewards, config, max_new_tokens=8, workers=1) as scorer:
        scorer.submit(sampled("18")).result(SECONDS)
    assert seen == [threading.current_thread()]


@pytest.mark.parametrize("workers", [0, 1])
def test_asynchronous_ones_await_several_groups_at_once(workers: int, tmp_path: Path) -> None:
    """Gold answers, which are groups of one, are awaited as together as the completions of a group of the training."""
    (tmp_path / "there.py").write_text("def one(completions, **_):\n    return [1.0] * len(completions)\n")
    begun: list[str] = []
    everyone = asyncio.Event()

    async def meets(completions: list[str], **_: Any) -> list[float]:
        begun.extend(completions)
        if len(begun) == AT_ONCE:
            everyone.set()
        await asyncio.wait_for(everyone.wait(), SECONDS)
        return [1.0] * len(completions)

    config = rewards_of({HERE + "meets": 1.0, f"{tmp_path / 'there.py'}:one": 1.0})
    with offering({HERE + "meets": meets}):
        rewards = load_rewards(config, TASK, max_new_tokens=8, elsewhere=workers > 0)
    problems = [Problem(f"p/{i}", f"q{i}", "18") for i in range(AT_ONCE)]
    with Scorer(TASK, rewards, config, max_new_tokens=8, workers=workers) as scorer:
        report = check_gold(TASK, problems, rewards, scorer.submit)
    assert {trial.reward: sum(trial.scores) for trial in report.trials} == {"meets": AT_ONCE, "one": AT_ONCE}


def test_no_more_than_a_bounded_number_of_completions_is_awaited_at_once() -> None:
    """A group that is larger than the bound is awaited alone, and so are groups that do not fit beside another."""
    now, most = 0, 0

    async def counts(completions: list[str], **_: Any) -> list[float]:
        nonlocal now, most
        now += len(completions)
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= len(completions)
        return [1.0] * len(completions)

    config = rewards_of({HERE + "counts": 1.0})
    for size, expected in ((3, AT_ONCE - AT_ONCE % 3), (AT_ONCE + 1, AT_ONCE + 1)):
        most = 0
        with offering({HERE + "counts": counts}):
            rewards = load_rewards(config, TASK, max_new_tokens=8)
        with Scorer(TASK, rewards, config, max_new_tokens=8) as scorer:
            groups = [scorer.submit(sampled(*["18"] * size)) for _ in range(8)]
            assert [len(group.result(SECONDS).rollouts) for group in groups] == [size] * 8
        assert most == expected


def test_the_end_cancels_those_that_are_awaited() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def waits(completions: list[str], **_: Any) -> list[float]:
        begun.set()
        try:
            await asyncio.sleep(SECONDS)
        finally:
            cancelled.set()
        return [1.0] * len(completions)

    config = rewards_of({HERE + "waits": 1.0})
    with offering({HERE + "waits": waits}):
        rewards = load_rewards(config, TASK, max_new_tokens=8)
    with Scorer(TASK, rewards, config, max_new_tokens=8) as scorer:
        groups = [scorer.submit(sampled(*["18"] * AT_ONCE)) for _ in range(2)]  # the second waits for the first
        assert begun.wait(SECONDS)
    assert cancelled.wait(SECONDS)
    for group in groups:
        with pytest.raises(CancelledError):
            group.result(SECONDS)


def test_the_deadline_is_for_a_group_of_the_training() -> None:
    """An evaluation may have more completions of a problem, which may take as many times as long."""

    async def naps(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0.4)
        return [1.0] * len(completions)

    config = rewards_of({HERE + "naps": 1.0}, deadline=0.1)
    with offering({HERE + "naps": naps}):
        rewards = load_rewards(config, TASK, max_new_tokens=8)
    with Scorer(TASK, rewards, config, max_new_tokens=8) as scorer:
        groups = [scorer.submit(replace(sampled("18"), patience=patience)) for patience in (1, 1000)]
        late, fine = (group.result(SECONDS).rollouts[0] for group in groups)
    assert late.unscorable == "reward naps took longer than rewards.deadline=0.1 s"
    assert fine.scores == {"naps": 1.0}


def test_no_workers_start_for_them_alone() -> None:
    assert worker_count(rewards_of({HERE + "f": 1.0})) == 0
    assert worker_count(rewards_of({HERE + "f": 1.0, "r.py:g": 1.0})) > 0


def test_a_deadline_is_refused_where_no_function_has_one() -> None:
    config = rewards_of({HERE + "f": 1.0}, deadline=3.0)
    with offering({HERE + "f": short}), pytest.raises(SettingsError, match=r"^rewards\.deadline acts on .*; remove it"):
        load_rewards(config, TASK, max_new_tokens=8)
    with pytest.raises(ValueError, match=r"rewards\.memory acts on rewards\.custom in workers"):
        rewards_of({HERE + "f": 1.0}, memory=3.0)
    with pytest.raises(ValueError, match=r"rewards\.deadline acts on rewards\.custom in workers"):
        rewards_of({"r.py:f": 1.0}, deadline=3.0, workers=0)


def test_without_the_program_the_sentence_says_where_to_go_on() -> None:
    config = rewards_of({HERE + "f": 1.0})
    with pytest.raises(
        SettingsError, match=r"^rewards\.custom: '__main__:f' is a function of the Python program that began the run"
    ):
        load_rewards(config, TASK, max_new_tokens=8)
    kept, notes = measurable(config)
    assert kept.custom == {}
    assert notes[0].startswith("not measured: __main__:f is a function of the Python program that began the run")
    with offering({HERE + "f": len}):
        assert [*measurable(config)[0].custom] == [HERE + "f"]


def test_another_function_of_the_name_has_another_digest() -> None:
    config = rewards_of({HERE + "f": 1.0})
    digests = set()
    for function in (raising, short):
        with offering({HERE + "f": function}):
            digests.add(rewards_digest(config))
    assert len(digests | {rewards_digest(config)}) == 3
    assert rewards_digest(config) == rewards_digest(rewards_of({}))


def test_the_notes_name_them() -> None:
    async def later(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    config = rewards_of({HERE + "f": 1.0, HERE + "g": 0.5, HERE + "later": 1.0, "r.py:h": 1.0})
    with offering({HERE + "f": short, HERE + "g": raising, HERE + "later": later}):
        rewards = load_rewards(config, TASK, max_new_tokens=8, elsewhere=True)
    plain, awaited = program_notes(TrainConfig(rewards=config), rewards)
    assert plain.startswith("f, g: no worker can load this part of the program, so it is scored in this process")
    assert "without rewards.deadline" in plain
    assert awaited.startswith("later: no worker can load this part of the program, so it is awaited in this process;")
    assert program_notes(TrainConfig(), rewards) == []
