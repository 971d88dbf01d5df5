"""The two rewards that most runs need: a right answer, and the required form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slimrl.tasks import Task


def correct(
    completions: Sequence[str],
    *,
    task: Task,
    answer: Sequence[str],
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """1 where the strictly read answer is the gold answer, else 0; None where the checker gave no verdict in time."""
    grades = [task.grade(text, gold) for text, gold in zip(completions, answer, strict=True)]
    return [None if grade.undecided else float(grade.strict) for grade in grades]


def format_(
    completions: Sequence[str],
    *,
    task: Task,
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """1 where the completion has the whole required form, right or wrong, else 0."""
    return [float(task.style.well_formed(text)) for text in completions]
