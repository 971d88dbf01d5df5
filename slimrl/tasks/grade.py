"""Stored outputs through the same checker that training and evaluation use."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slimrl.config.sandbox import SandboxConfig
from slimrl.config.task import TaskConfig
from slimrl.errors import DataError
from slimrl.measures import AtK, at_k, tally
from slimrl.records import right_answers
from slimrl.statistics import accuracy_interval
from slimrl.tasks.answers import Grade
from slimrl.tasks.checkers import fault
from slimrl.tasks.programs import grader_for
from slimrl.tasks.rows import Row, plain
from slimrl.tasks.sources import read_rows
from slimrl.tasks.styles import STYLES
from slimrl.tasks.votes import votes


@dataclass(frozen=True)
class GradeSummary:
    """Shares of right completions, 0 to 1: of all rows, and as means over problems with 95 % intervals."""

    n: int
    """Rows."""
    strict: float
    lenient: float
    problems: int
    samples: int
    """Fewest rows of a problem."""
    accuracy: float
    """Strict, a mean over problems."""
    low: float
    high: float
    at_k: AtK = field(default_factory=dict)
    uncompared: int = 0
    """Problems some of whose answers were not compared with all others (`slimrl/tasks/votes.py`), for maj@k."""

    def table(self) -> dict[str, Any]:
        """As JSON has it, with `pass@k` and `maj@k` beside the others."""
        found = asdict(self)
        return {**found.pop("at_k"), **found}


def grade_file(task_config: TaskConfig, file: str, out: str | None) -> GradeSummary:
    """Grade rows of {"id", "answer", "completion"}; needs the task's style and checker, not its data.

    Thinking, and end tokens that a stored output may still hold, are ignored (`slimrl/tasks/thinking.py`).
    With `out`, writes one JSON line a row: {"id", "strict", "lenient", "extracted_strict", "extracted_lenient", "answer",
    "vote"}. Rows with the same id and gold answer are samples of one problem, and `vote` tells their answers apart (`votes`);
    where that answer was not compared with all others, the row has "uncompared": true.

    Raises DataError, naming file:line, for a bad row, and for a gold answer that the checker could never find right.
    """
    rows, grades = read_rows(file), []
    problems: dict[tuple[str, str], list[int]] = {}
    """Places of the rows with one id and gold answer."""
    with closing(grader_for(task_config.checker, SandboxConfig())) as grader:
        for place, row in enumerate(rows):
            name = row.answer("id")
            answer, completion = row.answers("answer"), row.text("completion", blank=True)
            if not any(fault(task_config.checker, one) == "" for one in right_answers(answer)):
                row.fail(fault(task_config.checker, answer))
            problems.setdefault((name, answer), []).append(place)
            grades.append(grader.grade(completion, answer, STYLES[task_config.style]))
        voted: dict[int, int | None] = {}
        uncompared: set[int] = set()
        """Places of rows."""
        counted = 0
        for places in problems.values():
            found = votes(grader, [(grades[place].extracted_strict, grades[place].strict) for place in places])
            voted |= dict(zip(places, found.cast, strict=True))
            uncompared |= {places[index] for index in found.uncompared}
            counted += bool(found.uncompared)
    if out is not None:
        _write(out, rows, grades, voted, uncompared)
    n = len(rows)
    tallies = [tally((grades[place].strict, voted[place]) for place in places) for places in problems.values()]
    shares = [one.share for one in tallies]
    low, high = accuracy_interval(shares)
    return GradeSummary(
        n=n,
        strict=sum(grade.strict for grade in grades) / n,
        lenient=sum(grade.lenient for grade in grades) / n,
        problems=len(shares),
        samples=min(one.samples for one in tallies),
        accuracy=sum(shares) / len(shares),
        low=low,
        high=high,
        at_k=at_k(tallies),
        uncompared=counted,
    )


def _write(
    out: str, rows: Sequence[Row], grades: Sequence[Grade], voted: dict[int, int | None], uncompared: set[int]
) -> None:
    lines = []
    for place, (row, grade) in enumerate(zip(rows, grades, strict=True)):
        verdicts = asdict(grade) | {"answer": row.answers("answer"), "vote": voted[place]}
        del verdicts["undecided"]
        verdicts |= {"uncompared": True} if place in uncompared else {}
        lines.append(json.dumps({"id": plain(row.fields["id"]), **verdicts}, ensure_ascii=False) + "\n")
    try:
        Path(out).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror or error}); check the path") from None
