"""Reward functions of the program that called SlimRL: scored in its process, with the outcomes of every other."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.preflight.notes import program_note
from slimrl.preflight.payment import measurable
from slimrl.records import Group
from slimrl.rewards import load_rewards
from slimrl.rewards.custom import offering, rewards_digest
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


def test_no_workers_start_for_them_alone() -> None:
    assert worker_count(rewards_of({HERE + "f": 1.0})) == 0
    assert worker_count(rewards_of({HERE + "f": 1.0, "r.py:g": 1.0})) > 0
    with pytest.raises(ValueError, match=r"rewards\.deadline acts on rewards\.custom in workers"):
        rewards_of({HERE + "f": 1.0}, deadline=3.0)


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


def test_the_note_names_them() -> None:
    note = program_note(TrainConfig(rewards=rewards_of({HERE + "f": 1.0, HERE + "g": 0.5, "r.py:h": 1.0})))
    assert note.startswith("f, g: no worker can load this part of the program")
    assert program_note(TrainConfig()) == ""
