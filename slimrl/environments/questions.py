"""A question by itself, as `slimrl sample` asks it, which is of no task and has no right answer."""

from __future__ import annotations

from typing import Any

from slimrl.errors import DataError
from slimrl.records import Problem


class UnansweredError(DataError, AttributeError):
    """An environment reads the answer of a question that has none."""


class Question(Problem):
    """A problem without an `answer`: whoever reads it raises UnansweredError, where an empty text would be in every turn."""

    def __init__(self, question: str) -> None:
        super().__init__("question", question, "")

    def __getattribute__(self, name: str) -> Any:
        if name == "answer":
            raise UnansweredError("reads problem.answer, and there is none")
        return super().__getattribute__(name)

    def __reduce__(self) -> tuple[type[Question], tuple[str]]:
        return Question, (self.question,)
