"""Stored outputs through the same checker that training and evaluation use."""

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from slimrl.config.sections import TaskConfig
from slimrl.errors import DataError
from slimrl.records import right_answers
from slimrl.tasks.answers import Grader
from slimrl.tasks.checkers import fault
from slimrl.tasks.rows import plain
from slimrl.tasks.sources import read_rows
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
    rows, grades, lines = read_rows(file), [], []
    with closing(Grader(task_config.checker)) as grader:
        for row in rows:
            row.answer("id")
            answer, completion = row.answers("answer"), row.text("completion", blank=True)
            if not any(fault(task_config.checker, one) == "" for one in right_answers(answer)):
                row.fail(fault(task_config.checker, answer))
            grades.append(grader.grade(completion, answer, STYLES[task_config.style]))
            verdicts = asdict(grades[-1])
            del verdicts["undecided"]
            lines.append(json.dumps({"id": plain(row.fields["id"]), **verdicts}, ensure_ascii=False) + "\n")
    if out is not None:
        try:
            Path(out).write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{out} cannot be written ({error.strerror or error}); check the path") from None
    strict, lenient = sum(grade.strict for grade in grades), sum(grade.lenient for grade in grades)
    return GradeSummary(len(rows), strict / len(rows), lenient / len(rows))
