"""The two rewards that most runs need: a right answer, and the required form."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slimrl.tasks import Task


class Undecided(Enum):
    """The verdict that a checker did not reach before its deadline: neither right nor wrong."""

    UNDECIDED = "reached no verdict in time"


UNDECIDED = Undecided.UNDECIDED


def correct(
    task: Task,
    /,
    completions: Sequence[str],
    *,
    answer: Sequence[str],
    **columns: object,  # noqa: ARG001
) -> list[float | Undecided]:
    """1 where the strictly read answer is the gold answer, else 0; UNDECIDED where the checker gave no verdict in time.

    The task is positional only: a data set may well have a column of that name.
    """
    grades = [task.grade(text, gold) for text, gold in zip(completions, answer, strict=True)]
    return [UNDECIDED if grade.undecided else float(grade.strict) for grade in grades]


def format_(
    task: Task,
    /,
    completions: Sequence[str],
    **columns: object,  # noqa: ARG001
) -> list[float]:
    """1 where the completion has the whole required form, right or wrong, else 0."""
    return [float(task.style.well_formed(text)) for text in completions]
