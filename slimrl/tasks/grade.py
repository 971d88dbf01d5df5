"""Stored outputs through the same checker that training and evaluation use."""

import json
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
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
from slimrl.tasks.code import code_problem
from slimrl.tasks.programs import grader_for
from slimrl.tasks.rows import Row, RowError, plain
from slimrl.tasks.sources import find_sources, read_rows
from slimrl.tasks.styles import STYLES
from slimrl.tasks.votes import votes

UNREAD = "unread"
"""The `task.path` of settings whose data are not read."""
MODES = ("sampled", "greedy")
APART = ("task", "split", "mode", "sample")
"""Fields of an evaluation's rows that tell them apart, as `slimrl compare` reads them."""
AHEAD = 256
"""Outputs whose programs are begun before the verdict on the first of them is asked for."""


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
    greedy: float | None = None
    """Strict share of the greedy rows of an evaluation's file, which the other numbers leave out; None without such rows."""

    def table(self) -> dict[str, Any]:
        """As JSON has it, with `pass@k` and `maj@k` beside the others."""
        found = asdict(self)
        if self.greedy is None:
            del found["greedy"]
        return {**found.pop("at_k"), **found}


@dataclass(frozen=True)
class Output:
    """A stored output to grade."""

    row: Row
    id: str
    answer: str
    """Of a program its tests, as `Suite.answer` has them."""
    text: str
    place: tuple[str, str, str]
    """Task, split and mode of a row that `slimrl eval --out` wrote; empty, empty and `sampled` for any other."""
    broke_off: bool
    """An episode whose environment failed, which counts as wrong."""


def grade_file(
    task_config: TaskConfig, file: str, out: str | None, sandbox: SandboxConfig | None = None
) -> GradeSummary:
    """Grade rows of {"id", "answer", "completion"}, or those that `slimrl eval --out` wrote; needs the task's style and checker,
    not its data. Programs run in the `sandbox` against the tests of their row, or of the problem of this id in `task.path`.

    Thinking, and end tokens that a stored output may still hold, are ignored (`slimrl/thinking.py`).
    With `out`, writes one JSON line a row: {"id", "strict", "lenient", "extracted_strict", "extracted_lenient", "answer",
    "vote"}, and what tells the rows of an evaluation apart. Rows with the same id and gold answer are samples of one problem,
    and `vote` tells their answers apart (`votes`); where that answer was not compared with all others, the row has
    "uncompared": true. Greedy completions of an evaluation are graded and are no samples.

    Raises DataError, naming file:line, for a bad row, and for a gold answer that the checker could never find right.
    """
    style = STYLES[task_config.style]
    problems: dict[tuple[str, ...], list[int]] = {}
    """Places of the samples of a problem."""
    outputs = read_outputs(task_config, file)
    with closing(grader_for(task_config.checker, sandbox or SandboxConfig())) as grader:
        grades = []
        for place, one in enumerate(outputs):
            if not any(fault(task_config.checker, answer) == "" for answer in right_answers(one.answer)):
                one.row.fail(fault(task_config.checker, one.answer))
            if place % AHEAD == 0:
                for coming in outputs[place : place + AHEAD]:
                    grader.begin([coming.text], coming.answer, style)
            problems.setdefault((*one.place, one.id, one.answer), []).append(place)
            grade = grader.grade(one.text, one.answer, style)
            grades.append(replace(grade, strict=False, lenient=False) if one.broke_off else grade)
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
        _write(out, outputs, grades, voted, uncompared)
    return _summary(outputs, grades, voted, problems, counted)


def _summary(
    outputs: Sequence[Output],
    grades: Sequence[Grade],
    voted: dict[int, int | None],
    problems: dict[tuple[str, ...], list[int]],
    uncompared: int,
) -> GradeSummary:
    """Of the sampled rows, with the greedy ones by themselves; of these where there are no others."""
    by_mode = {
        mode: [grade for one, grade in zip(outputs, grades, strict=True) if one.place[2] == mode] for mode in MODES
    }
    mode = next(mode for mode in MODES if by_mode[mode])
    drawn, greedy = by_mode[mode], by_mode["greedy"]
    tallies = [
        tally((grades[place].strict, voted[place]) for place in places)
        for (_, _, own, *_), places in problems.items()
        if own == mode
    ]
    shares = [one.share for one in tallies]
    low, high = accuracy_interval(shares)
    return GradeSummary(
        n=len(drawn),
        strict=sum(grade.strict for grade in drawn) / len(drawn),
        lenient=sum(grade.lenient for grade in drawn) / len(drawn),
        problems=len(shares),
        samples=min(one.samples for one in tallies),
        accuracy=sum(shares) / len(shares),
        low=low,
        high=high,
        at_k=at_k(tallies),
        uncompared=uncompared,
        greedy=sum(grade.strict for grade in greedy) / len(greedy) if greedy else None,
    )


def read_outputs(config: TaskConfig, file: str) -> list[Output]:
    """The outputs of a file; raises DataError, naming file:line, for a row without an id, a text or a gold answer."""
    found = []
    known: dict[str, str] | None = None
    for row in read_rows(file):
        name, mode = row.answer("id"), row.optional_text("mode") or "sampled"
        if mode not in MODES:
            row.fail(f"mode {mode[:20]!r} is neither sampled nor greedy")
        of_evaluation = "mode" in row.fields and "completion" not in row.fields
        text = row.text("text" if of_evaluation else "completion", blank=True)
        if config.name != "code" or "answer" in row.fields:
            answer = row.answers("answers", "answer") if of_evaluation else row.answers("answer")
        elif {"test_list", "entry_point"} & row.fields.keys():
            answer = code_problem(row, name).answer
        elif config.path != UNREAD:
            known = _tests_by_id(config) if known is None else known
            answer = known.get(name, "")
            if not answer:
                row.fail(f"task.path={config.path} has no problem of the id {name[:60]!r}; correct one of them")
        else:
            row.missing(["answer"], ", or name the file of the problems in task.path")
        place = row.optional_text("task"), row.optional_text("split"), mode
        found.append(Output(row, name, answer, text, place, bool(row.optional_text("failed"))))
    return found


def _tests_by_id(config: TaskConfig) -> dict[str, str]:
    """The tests of all problems of a task, training and held out, whose rows can be read."""
    source, held_out = find_sources(config, training=bool(config.path))
    named = [("code", source)] if held_out is None else [("code/train", source), ("code/test", held_out)]
    found = {}
    for prefix, rows in named:
        if rows is None:
            continue
        for index, row in enumerate(rows.rows()):
            with suppress(RowError):
                if isinstance(row, Row):
                    problem = code_problem(row, f"{prefix}/{index:05d}")
                    found[problem.id] = problem.answer
    return found


def _write(
    out: str,
    outputs: Sequence[Output],
    grades: Sequence[Grade],
    voted: dict[int, int | None],
    uncompared: set[int],
) -> None:
    lines = []
    for place, (one, grade) in enumerate(zip(outputs, grades, strict=True)):
        row = one.row
        verdicts = asdict(grade) | {"answer": one.answer, "vote": voted[place]}
        del verdicts["undecided"]
        verdicts |= {"uncompared": True} if place in uncompared else {}
        apart = {key: plain(row.fields[key]) for key in APART if "mode" in row.fields and key in row.fields}
        line = {**apart, "id": plain(row.fields["id"]), **verdicts}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    try:
        Path(out).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror or error}); check the path") from None
