"""Reward functions in the shapes that people write: scored, or refused in a sentence, as TRL 1.16 does.

Where this differs from TRL on purpose, the row says so: TRL takes any iterable, reads NaN as None and pays infinity.
"""

# ruff: noqa: ARG001, ARG002, ARG003, ARG004, ARG005  (reward functions take what TRL passes)

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from slimrl.errors import SettingsError
from slimrl.records import Completion, Problem
from slimrl.rewards import Reward
from slimrl.rewards.scoring import Sampled, score
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES

PROBLEM = Problem("p/1", "How many of 12, 13 and 18?", "18", "13 + 5 = 18", 1.0, {"tag": "easy"})
TEXTS = ["a", "bbb"]
LENGTHS = [1.0, 3.0]


def plain(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def keywords_only(*, completions: list[str], **kwargs: Any) -> list[float]:
    return plain(completions)


def all_named(prompts: Any, completions: list[str], completion_ids: Any, **kwargs: Any) -> list[float]:
    assert len(prompts) == len(completion_ids) == len(completions)
    return plain(completions)


def by_answer(completions: list[str], answer: list[str], tag: list[str], **kwargs: Any) -> list[float]:
    assert (answer, tag) == (["18"] * 2, ["easy"] * 2)
    return plain(completions)


def by_ids(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def with_state(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
    assert (trainer_state.global_step, trainer_state.max_steps) == (3, 40)
    return plain(completions)


def with_logs(completions: list[str], log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
    log_extra("length", plain(completions))
    log_metric("longest", max(map(len, completions)))
    return plain(completions)


def with_optional_logs(completions: list[str], log_extra: Any = None, **kwargs: Any) -> list[float]:
    assert log_extra is not None
    return plain(completions)


def no_catch_all(completions: list[str]) -> list[float]:
    return plain(completions)


def wrong_name(texts: list[str], **kwargs: Any) -> list[float]:
    return plain(texts)


def yields(completions: list[str], **kwargs: Any) -> Iterator[float]:
    yield from plain(completions)


async def later(completions: list[str], **kwargs: Any) -> list[float]:
    return plain(completions)


class Object:
    """Called as an instance, bound as a method, or on the class."""

    def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        return plain(completions)

    def method(self, completions: list[str], **kwargs: Any) -> list[float]:
        return plain(completions)

    @classmethod
    def of_the_class(cls, completions: list[str], **kwargs: Any) -> list[float]:
        return plain(completions)

    @staticmethod
    def static(completions: list[str], **kwargs: Any) -> list[float]:
        return plain(completions)


class Later:
    async def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        return plain(completions)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def scaled(factor: float, completions: list[str], **kwargs: Any) -> list[float]:
    return [factor * x for x in plain(completions)]


def values(found: Callable[[], Any]) -> Callable[..., Any]:
    return lambda completions, **_: found()


SCORED: dict[str, tuple[Callable[..., Any], list[float | None]]] = {
    "function": (plain, LENGTHS),
    "lambda": (lambda completions, **kwargs: plain(completions), LENGTHS),
    "keyword-only": (keywords_only, LENGTHS),
    "every argument by name": (all_named, LENGTHS),
    "columns of the data": (by_answer, LENGTHS),
    "ids alone": (by_ids, [2.0, 3.0]),
    "partial": (functools.partial(scaled, 2.0), [2.0, 6.0]),
    "partial by keyword": (functools.partial(plain, unused=1), LENGTHS),
    "callable object": (Object(), LENGTHS),
    "method": (Object().method, LENGTHS),
    "classmethod": (Object.of_the_class, LENGTHS),
    "staticmethod": (Object.static, LENGTHS),
    "decorated": (decorated(plain), LENGTHS),
    "trainer_state": (with_state, LENGTHS),
    "log_extra and log_metric": (with_logs, LENGTHS),
    "log_extra that is optional": (with_optional_logs, LENGTHS),
    "async def": (later, LENGTHS),
    "async __call__": (Later(), LENGTHS),
    "async partial": (functools.partial(later, unused=1), LENGTHS),
    "list of None": (values(lambda: [None, 1.0]), [None, 1.0]),
    "tuple": (values(lambda: (1.0, 0.0)), [1.0, 0.0]),
    "integers": (values(lambda: [1, -2]), [1.0, -2.0]),
    "booleans": (values(lambda: [True, False]), [1.0, 0.0]),
    "array": (values(lambda: np.array([1.0, 0.5])), [1.0, 0.5]),
    "array of integers": (values(lambda: np.array([1, 2])), [1.0, 2.0]),
    "NumPy's scalars": (values(lambda: [np.float32(0.5), np.int64(2)]), [0.5, 2.0]),
    "NumPy's booleans": (values(lambda: [np.bool_(True), np.bool_(False)]), [1.0, 0.0]),
    "tensor": (values(lambda: torch.tensor([1.0, 0.5])), [1.0, 0.5]),
    "tensor with a gradient": (values(lambda: torch.tensor([1.0, 0.5], requires_grad=True)), [1.0, 0.5]),
    "list of tensors": (values(lambda: [torch.tensor(1.0), torch.tensor(0.5)]), [1.0, 0.5]),
    "generator": (yields, LENGTHS),
    "map": (values(lambda: map(float, "12")), [1.0, 2.0]),
    "every column by name (TRL: TypeError)": (
        lambda completions, prompts, completion_ids, id, question, answer, solution, difficulty, tag: plain(
            completions
        ),
        LENGTHS,
    ),
    "fractions (TRL: TypeError)": (values(lambda: [Fraction(1, 2), 1]), [0.5, 1.0]),
}
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "no **kwargs": (no_catch_all, "raised TypeError: "),
    "another name of the argument": (wrong_name, "raised TypeError: "),
    "None": (values(lambda: None), "returned NoneType instead of a list"),
    "one number": (values(lambda: 1.0), "returned float instead of a list"),
    "tensor of one number": (values(lambda: torch.tensor(1.0)), "returned Tensor instead of a list"),
    "too few": (values(lambda: [1.0]), "returned 1 values for 2 completions"),
    "too many": (values(lambda: [1.0] * 3), "returned 3 values for 2 completions"),
    "texts": (values(lambda: ["1", "2"]), "returned str instead of a number"),
    "complex numbers": (values(lambda: [1j, 2j]), "returned complex instead of a number"),
    "a column": (values(lambda: np.ones((2, 1))), "returned list instead of a number"),
    "a coroutine of a plain function": (lambda completions, **_: later(completions), "returned coroutine instead of a list"),
    "a class": (Object, "raised TypeError: "),
    "NaN (TRL: None)": (values(lambda: [float("nan")] * 2), "returned nan"),
    "infinity (TRL: paid)": (values(lambda: [float("inf")] * 2), "returned inf"),
    "a set (TRL: in any order)": (values(lambda: {1.0, 2.0}), "returned set instead of a list"),
    "a mapping (TRL: its keys)": (values(lambda: {1.0: 1, 2.0: 2}), "returned dict instead of a list"),
}  # fmt: skip


def rollouts(function: Callable[..., Any]) -> Any:
    task = Task("test", (PROBLEM,), (), (), STYLES["hashes"], Grader("numeric"), "", {})
    done = [Completion((1,), tuple(range(2 + i)), (0.0,) * (2 + i), "stop") for i in range(2)]
    reward = Reward("mine", function, 2.0, None, None)
    return score(Sampled(PROBLEM, done, TEXTS, step=3, steps=40), [reward], task).rollouts


def test_there_are_as_many_shapes_as_were_asked_for() -> None:
    assert len(SCORED) >= 27
    assert len(REFUSED) >= 12


@pytest.mark.parametrize("shape", SCORED)
def test_scored(shape: str) -> None:
    function, wanted = SCORED[shape]
    found = rollouts(function)
    assert [dict(r.scores) for r in found] == [{} if x is None else {"mine": x} for x in wanted]
    assert [r.reward for r in found] == [0.0 if x is None else 2 * x for x in wanted]
    assert [r.unscorable for r in found] == ["no reward applies" if x is None else "" for x in wanted]


@pytest.mark.parametrize("shape", REFUSED)
def test_refused(shape: str) -> None:
    function, reason = REFUSED[shape]
    for rollout in rollouts(function):
        assert rollout.unscorable.startswith(f"reward mine {reason}")
        assert (rollout.reward, dict(rollout.scores)) == (0.0, {})


MISFITS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "no **kwargs": (no_catch_all, ["; correct the function: add **columns to its parameters, which takes all that it does not name"]),
    "a column that the row lacks": (
        lambda completions, subject, **kwargs: plain(completions),
        ["; correct the function: this row has no subject, but answer, completion_ids, completions, difficulty, id, prompts, question, solution, tag: "],
    ),
    "another name of the argument": (wrong_name, ["; correct the function: this row has no texts, but ", "rename the parameter or give it a default"]),
    "a function that makes the reward": (
        lambda max_len, buffer: plain,
        ["; correct the function: this row has no max_len and no buffer, but ", "; where it makes the reward function, set its arguments in rewards.custom"],
    ),
    "messages, as TRL gives them for conversations": (
        lambda completions, **kwargs: [len(completion[0]["content"]) for completion in completions],  # type: ignore[index]
        ["; prompts and completions are texts: read them so, or annotate completions as list[list[dict]] to get messages"],
    ),
    "a mistake of its own": (lambda completions, **kwargs: len(3), ["; correct the function or remove it from rewards"]),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_function_whose_parameters_are_not_the_columns_is_told_the_columns(misfit: str) -> None:
    function, wanted = MISFITS[misfit]
    task = Task("test", (PROBLEM,), (), (), STYLES["hashes"], Grader("numeric"), "", {})
    sampled = Sampled(PROBLEM, [Completion((1,), (2,), (0.0,), "stop")], ["a"], step=0, strict=True)
    with pytest.raises(SettingsError, match=r"^reward mine raised TypeError: ") as raised:
        score(sampled, [Reward("mine", function, 1.0, None, None)], task)
    assert all(part in str(raised.value) for part in wanted), str(raised.value)
