"""The built-in rewards: each is a function, a row of the table BUILT_IN, and a weight of that name in `config/rewards.py`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from slimrl.config.rewards import RewardsConfig
from slimrl.randomness import generator
from slimrl.rewards import case_study as study
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


@dataclass(frozen=True)
class BuiltIn:
    """A row of the table."""

    function: Callable[..., Any]
    """TRL's signature, after the positional arguments that `needs` names."""
    low: float
    high: float
    """Bounds before the weight."""
    needs: tuple[str, ...] = ()
    """Of `task`, `max_new_tokens` and `buffer`: the arguments that come first."""
    style: str = ""
    """The task.style that the function reads; empty: any."""
    answer: bool = False
    """The function compares with the gold answer."""
    draws: bool = False
    """Chance decides, from the keyword `draw`: the run's seed and step."""
    as_published: Callable[..., Any] | None = None
    """The function with its published defects, for rewards.as_published."""


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
    "soft_overlong": BuiltIn(soft_overlong_reward, -1.0, 0.0, needs=("max_new_tokens", "buffer")),
    "random": BuiltIn(random_, 0.0, 1.0, draws=True),
}
"""Every built-in reward by the name of its weight, in the order in which scores are written."""


def needs_answers(config: RewardsConfig) -> bool:
    """True if a built-in reward that compares with the gold answer is paid; a function of the user's own may do without."""
    return any(row.answer and getattr(config, name) for name, row in BUILT_IN.items())
