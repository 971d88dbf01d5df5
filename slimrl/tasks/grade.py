"""Stored outputs through the same checker that training and evaluation use."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from slimrl.config.sections import TaskConfig
from slimrl.errors import DataError
from slimrl.tasks.answers import Grade, Grader
from slimrl.tasks.numbers import parse_number
from slimrl.tasks.rows import Row, plain, read_rows
from slimrl.tasks.styles import STYLES


@dataclass(frozen=True)
class GradeSummary:
    """Shares of right completions, 0 to 1."""

    n: int
    strict: float
    lenient: float


def grade_file(task_config: TaskConfig, file: str, out: str | None) -> GradeSummary:
    """Grade rows of {"id", "answer", "completion"}; needs the task's style and checker, not its data.

    Thinking, and end tokens that a stored output may still hold, are ignored (`slimrl/tasks/thinking.py`).
    With `out`, writes one JSON line a row: {"id", "strict", "lenient", "extracted_strict", "extracted_lenient"}. An id
    may occur several times (several samples of a problem).

    Raises DataError, naming file:line, for a bad row, and for a gold answer that the checker could never find right.
    """
    rows = read_rows(file)
    grader = Grader(task_config.checker)
    strict = lenient = 0
    with ExitStack() as stack:
        stack.callback(grader.close)
        lines = []
        for row, grade in _grades(task_config, grader, rows):
            strict += grade.strict
            lenient += grade.lenient
            lines.append(_line(row, grade))
    if out is not None:
        try:
            Path(out).write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{out} cannot be written ({error.strerror or error}); check the path") from None
    return GradeSummary(len(rows), strict / len(rows), lenient / len(rows))


def _grades(config: TaskConfig, grader: Grader, rows: list[Row]) -> Iterator[tuple[Row, Grade]]:
    style = STYLES[config.style]
    for row in rows:
        row.answer("id")
        answer, completion = row.answer("answer"), row.text("completion", blank=True)
        if config.checker == "numeric" and parse_number(answer) is None:
            row.fail(f"answer {answer[:60]!r} is not one number; set task.checker=symbolic, or correct the answer")
        yield row, grader.grade(completion, answer, style)


def _line(row: Row, grade: Grade) -> str:
    result = {
        "id": plain(row.fields["id"]),
        "strict": grade.strict,
        "lenient": grade.lenient,
        "extracted_strict": grade.extracted_strict,
        "extracted_lenient": grade.extracted_lenient,
    }
    return json.dumps(result, ensure_ascii=False) + "\n"
