"""The built-in rewards: each is a function, a row of the table BUILT_IN, and a weight of that name in `config/rewards.py`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from enum import Enum
from typing import Any

from slimrl.config.rewards import RewardsConfig
from slimrl.randomness import generator
from slimrl.rewards import case_study as study
from slimrl.rewards.outcomes import total
from slimrl.tasks import Task


class Undecided(Enum):
    """The verdict that a checker did not reach before its deadline: neither right nor wrong."""

    UNDECIDED = "reached no verdict in time"


UNDECIDED = Undecided.UNDECIDED


def correct(
    task: Task, /, completions: Sequence[str], *, answer: Sequence[str], **_: object
) -> list[float | Undecided]:
    """1 where the strictly read answer is the gold answer, else 0; UNDECIDED where the checker gave no verdict in time.

    The task is positional only: a data set may well have a column of that name.
    """
    grades = [task.grade(text, gold) for text, gold in zip(completions, answer, strict=True)]
    return [UNDECIDED if grade.undecided else float(grade.strict) for grade in grades]


def format_(task: Task, /, completions: Sequence[str], **_: object) -> list[float]:
    """1 where the completion has the whole required form, right or wrong, else 0."""
    return [float(task.style.well_formed(text)) for text in completions]


def soft_overlong(length: int, max_new_tokens: int, buffer: int) -> float:
    """DAPO's soft overlong punishment, equation 13 of arXiv:2503.14476, between -1 and 0.

    Args:
        length: tokens of the completion, its stop token included.
        max_new_tokens: L_max, the budget.
        buffer: L_cache, tokens before the budget at which the punishment begins to grow.
    """
    return max(-1.0, min(0.0, (max_new_tokens - buffer - length) / buffer))


def soft_overlong_reward(
    max_new_tokens: int,
    buffer: int,
    /,
    completions: Sequence[object],  # noqa: ARG001  (part of the signature)
    *,
    completion_ids: Sequence[Sequence[int]],
    **_: object,
) -> list[float]:
    """`soft_overlong` of each completion, with TRL's signature."""
    return [soft_overlong(len(ids), max_new_tokens, buffer) for ids in completion_ids]


def random_(completions: Sequence[object], *, draw: tuple[int, int], **columns: Sequence[str]) -> list[float]:
    """1 or 0 with a chance of one half, from the run's seed and step (`draw`), the problem, and the place in the group."""
    names = columns["id"]
    return [float(generator(*draw, "coin", names[n], n).random() < 0.5) for n in range(len(completions))]


def environment(
    completions: Sequence[object],
    *,
    environment_score: Sequence[float | None] = (),
    turn_rewards: Sequence[Sequence[float | None]] = (),
    **_: object,
) -> list[float | None]:
    """The score that each episode has from its environment, plus the rewards of its turns; None where there is neither, as with
    gold answers.
    """
    given = [[score, *turns] for score, turns in zip(environment_score, turn_rewards, strict=True)]
    numbers = [[number for number in row if number is not None] for row in given or [[]] * len(completions)]
    return [total(row) if row else None for row in numbers]


@dataclass(frozen=True)
class Cosine:
    """The cosine length reward of arXiv:2502.03373: its values at both ends, and beyond, which are settings."""

    right_short: float
    right_long: float
    wrong_short: float
    wrong_long: float
    exceeded: float

    def of(self, length: int, max_new_tokens: int, *, right: bool) -> float:
        """The reward of a completion of `length` tokens, its stop token included, of at most `max_new_tokens`."""
        if length >= max_new_tokens:
            return self.exceeded
        short, long = (self.right_short, self.right_long) if right else (self.wrong_short, self.wrong_long)
        return long + (short - long) * (1 + math.cos(math.pi * length / max_new_tokens)) / 2


def cosine(config: RewardsConfig) -> Cosine:
    """The cosine length reward of the settings."""
    return Cosine(
        right_short=config.cosine_right_short,
        right_long=config.cosine_right_long,
        wrong_short=config.cosine_wrong_short,
        wrong_long=config.cosine_wrong_long,
        exceeded=config.cosine_exceeded,
    )


def cosine_values(config: RewardsConfig) -> tuple[float, float, float]:
    """Bounds, and the value of a gold answer, which stands for no tokens."""
    values = astuple(cosine(config))
    return min(values), max(values), config.cosine_right_short


def cosine_length(
    task: Task,
    max_new_tokens: int,
    cosine: Cosine,
    /,
    completions: Sequence[str],
    *,
    answer: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    **_: object,
) -> list[float | Undecided]:
    """`Cosine.of` each completion; UNDECIDED where the checker gave no verdict in time."""
    verdicts = zip(correct(task, completions, answer=answer), completion_ids, strict=True)
    return [x if x is UNDECIDED else cosine.of(len(ids), max_new_tokens, right=x == 1.0) for x, ids in verdicts]


def repeated(tokens: Sequence[int], ngram: int) -> float:
    """Share of the n-grams of `tokens` that occurred before, from 0 to below 1; 0 where there is no n-gram."""
    grams = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repetition(
    ngram: int,
    /,
    completions: Sequence[object],  # noqa: ARG001  (part of the signature)
    *,
    completion_ids: Sequence[Sequence[int]],
    **_: object,
) -> list[float]:
    """Minus the share of repeated n-grams of tokens of each completion."""
    return [0.0 - repeated(ids, ngram) for ids in completion_ids]  # and not -0.0


@dataclass(frozen=True)
class BuiltIn:
    """A row of the table."""

    function: Callable[..., Any]
    """TRL's signature, after the positional arguments that `needs` names."""
    low: float | None
    high: float | None
    """Bounds before the weight; None: unknown."""
    needs: tuple[str, ...] = ()
    """Of `task`, `max_new_tokens`, `buffer`, `cosine` and `ngram`: the arguments that come first."""
    style: str = ""
    """The task.style that the function reads; empty: any."""
    answer: bool = False
    """The function compares with the gold answer."""
    draws: bool = False
    """Chance decides, from the keyword `draw`: the run's seed and step."""
    pays_turns: bool = False
    """The value includes the sum of what the environment paid for each turn."""
    as_published: Callable[..., Any] | None = None
    """The function with its published defects, for rewards.as_published."""
    values: Callable[[RewardsConfig], tuple[float, float, float]] | None = None
    """Bounds, and what a gold answer earns, where settings decide them."""


BUILT_IN: dict[str, BuiltIn] = {
    "correct": BuiltIn(correct, 0.0, 1.0, needs=("task",), answer=True),
    "format": BuiltIn(format_, 0.0, 1.0, needs=("task",)),
    "match_format_exactly": BuiltIn(
        study.match_format_exactly, 0.0, 3.0, style="tags", as_published=study.match_format_exactly_published
    ),
    "match_format_approximately": BuiltIn(
        study.match_format_approximately,
        -2.0,
        2.0,
        style="tags",
        as_published=study.match_format_approximately_published,
    ),
    "check_answer": BuiltIn(
        study.check_answer, -1.0, 3.0, style="tags", answer=True, as_published=study.check_answer_published
    ),
    "check_numbers": BuiltIn(
        study.check_numbers, 0.0, 1.5, style="tags", answer=True, as_published=study.check_numbers_published
    ),
    "environment": BuiltIn(environment, None, None, pays_turns=True),
    "soft_overlong": BuiltIn(soft_overlong_reward, -1.0, 0.0, needs=("max_new_tokens", "buffer")),
    "cosine_length": BuiltIn(
        cosine_length, -10.0, 2.0, needs=("task", "max_new_tokens", "cosine"), answer=True, values=cosine_values
    ),
    "repetition": BuiltIn(repetition, -1.0, 0.0, needs=("ngram",)),
    "random": BuiltIn(random_, 0.0, 1.0, draws=True),
}
"""Every built-in reward by the name of its weight, in the order in which scores are written."""


def needs_answers(config: RewardsConfig) -> bool:
    """True if a built-in reward that compares with the gold answer is paid or watched; a function of the user's own may do
    without.
    """
    return any(BUILT_IN[name].answer for name in config.built_in)
