"""Stored outputs through the same checker that training and evaluation use, and which answers are the same vote."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from slimrl.config.sections import TaskConfig
from slimrl.errors import DataError
from slimrl.measures import AtK, at_k, tally
from slimrl.records import right_answers
from slimrl.statistics import accuracy_interval
from slimrl.tasks.answers import Grade, Grader
from slimrl.tasks.checkers import fault
from slimrl.tasks.numbers import parse_number
from slimrl.tasks.rows import Row, plain
from slimrl.tasks.sources import read_rows
from slimrl.tasks.styles import STYLES

ASKED = 64
"""Pairs of wrong answers to one problem that are put to a checker, which may be slow; further ones count as unequal."""

TOLD = ("numeric", "regex")
"""Checkers that are not asked about two wrong answers: numbers tell themselves apart, and an answer is no pattern."""


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

    def table(self) -> dict[str, Any]:
        """As JSON has it, with `pass@k` and `maj@k` beside the others."""
        found = asdict(self)
        return {**found.pop("at_k"), **found}


def votes(grader: Grader, answers: Sequence[tuple[str, bool]]) -> list[int | None]:
    """The vote of each sample of a problem, given its answer (empty for none) and its strict verdict: the index of the first
    sample with an equal answer, None without an answer.

    Right answers are equal. Wrong ones are where they are the same text, the same number, or where the checker says so.
    """
    known: dict[str | Fraction, int] = {}
    """The first sample with each wrong answer, by its text and by its number."""
    firsts: dict[int, str] = {}
    """The text of each wrong answer, by its first sample."""
    right, asked = None, 0
    found: list[int | None] = []
    for index, (answer, is_right) in enumerate(answers):
        if is_right:
            right = index if right is None else right
            found.append(right)
        elif not answer:
            found.append(None)
        else:
            number = parse_number(answer)
            vote = known.get(answer, None if number is None else known.get(number))
            for first, text in firsts.items():
                if vote is not None or asked == ASKED or grader.checker in TOLD:
                    break
                asked += 1
                vote = first if grader.compare(answer, text) else None
            vote = index if vote is None else vote
            if vote == index:
                firsts[index] = answer
            known.setdefault(answer, vote)
            if number is not None:
                known.setdefault(number, vote)
            found.append(vote)
    return found


def grade_file(task_config: TaskConfig, file: str, out: str | None) -> GradeSummary:
    """Grade rows of {"id", "answer", "completion"}; needs the task's style and checker, not its data.

    Thinking, and end tokens that a stored output may still hold, are ignored (`slimrl/tasks/thinking.py`).
    With `out`, writes one JSON line a row: {"id", "strict", "lenient", "extracted_strict", "extracted_lenient", "answer",
    "vote"}. Rows with the same id and gold answer are samples of one problem, and `vote` tells their answers apart (`votes`).

    Raises DataError, naming file:line, for a bad row, and for a gold answer that the checker could never find right.
    """
    rows, grades = read_rows(file), []
    problems: dict[tuple[str, str], list[int]] = {}
    """Places of the rows with one id and gold answer."""
    with closing(Grader(task_config.checker)) as grader:
        for place, row in enumerate(rows):
            name = row.answer("id")
            answer, completion = row.answers("answer"), row.text("completion", blank=True)
            if not any(fault(task_config.checker, one) == "" for one in right_answers(answer)):
                row.fail(fault(task_config.checker, answer))
            problems.setdefault((name, answer), []).append(place)
            grades.append(grader.grade(completion, answer, STYLES[task_config.style]))
        voted: dict[int, int | None] = {}
        for places in problems.values():
            cast = votes(grader, [(grades[place].extracted_strict, grades[place].strict) for place in places])
            voted |= dict(zip(places, cast, strict=True))
    if out is not None:
        _write(out, rows, grades, voted)
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
    )


def _write(out: str, rows: Sequence[Row], grades: Sequence[Grade], voted: dict[int, int | None]) -> None:
    lines = []
    for place, (row, grade) in enumerate(zip(rows, grades, strict=True)):
        verdicts = asdict(grade) | {"answer": row.answers("answer"), "vote": voted[place]}
        del verdicts["undecided"]
        lines.append(json.dumps({"id": plain(row.fields["id"]), **verdicts}, ensure_ascii=False) + "\n")
    try:
        Path(out).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror or error}); check the path") from None
