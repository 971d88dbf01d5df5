"""Problems from local files and from the Hub: GSM8K, AIME, MATH, SVAMP, and any JSONL of yours.

Each kind of row has one short function that turns it into a Problem; data sets from the Hub go through the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from slimrl.config import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Problem
from slimrl.tasks.rows import Row, Spelled, plain, read_rows


@dataclass(frozen=True)
class Splits:
    """The problems of a task."""

    train: Sequence[Problem]
    test: Sequence[Problem]
    harder: Sequence[Problem] = ()


Reader = Callable[[Row, str], Problem]
"""(row, id for problems that have none) -> Problem"""


def load(config: TaskConfig) -> Splits:
    """The splits of a task that is read from files or the Hub.

    With `task.path` and without `task.test_path`, the last tenth of the file (at least one row) is held out. Without
    `task.path` the training problems come from the Hub, and so do held-out ones where no `task.test_path` is given.

    Raises DataError, naming file:line, for a bad row, a repeated id within a split, and a held-out question that is
    also a training question.
    """
    reader = _READERS[config.name]
    if config.path:
        train = read_rows(config.path)
        test = read_rows(config.test_path) if config.test_path else []
        if not config.test_path:
            if len(train) < 2:
                raise DataError(f"{config.path} has one row, none can be held out; add rows or set task.test_path")
            held_out = max(1, len(train) // 10)
            train, test = train[:-held_out], train[-held_out:]
    elif config.test_path:
        test = read_rows(config.test_path)
        try:
            train = _hub_rows(config.name, "train")
        except DataError as error:
            raise SettingsError(f"task.test_path is set but task.path is not, and {error}") from None
    else:
        train, test = _hub_rows(config.name, "train"), _hub_rows(config.name, "test")
    train_problems = _problems(config.name, "train", train, reader)
    test_problems = _problems(config.name, "test", test, reader)
    _refuse_overlap(train, train_problems, test, test_problems)
    return Splits(train_problems, test_problems)


def _problems(name: str, split: str, rows: Sequence[Row], reader: Reader) -> tuple[Problem, ...]:
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for index, row in enumerate(rows):
        problem = reader(row, f"{name}/{split}/{index:05d}")
        if problem.id in seen:
            row.fail(f"id {problem.id!r} is also that of {seen[problem.id]}; give each row its own")
        seen[problem.id] = row.where
        problems.append(problem)
    return tuple(problems)


def _refuse_overlap(
    train: Sequence[Row], train_problems: Sequence[Problem], test: Sequence[Row], test_problems: Sequence[Problem]
) -> None:
    asked = {problem.question: row.where for row, problem in zip(train, train_problems, strict=True)}
    for row, problem in zip(test, test_problems, strict=True):
        if problem.question in asked:
            raise DataError(
                f"{row.where}: the held-out question is also the training question {asked[problem.question]}, "
                "which would flatter the evaluation; remove one of them"
            )


def _gsm8k(row: Row, new_id: str) -> Problem:
    """`answer` holds the solution with <<48/2=24>> calculator marks and a last line `#### 72`."""
    whole = row.text("answer")
    solution, marker, answer = whole.rpartition("####")
    if not marker or not answer.strip():
        row.fail("field 'answer' has no last line '#### number'; add it, or set task.name=jsonl for plain answers")
    marks = re.findall(r"<<[^<>]*>>", solution)
    for mark in marks:
        solution = solution.replace(mark, "")
    rest = row.rest("question", "answer", "id")
    return Problem(new_id, row.text("question"), answer.strip(), solution.strip(), float(len(marks)), rest)


def _aime(row: Row, new_id: str) -> Problem:
    """Both families of field names in use; `025` stays as it is and compares equal to 25."""
    question = ("problem", "question", "Question")  # the Hub's AIME_1983_2024 capitalises its own
    answer = ("answer", "expected_answer", "Answer")
    solution = ("solution", "reference_solution")
    rest = row.rest(*question, *answer, *solution, "difficulty", "id")
    return Problem(
        new_id, row.text(*question), row.answer(*answer), row.optional_text(*solution), row.number("difficulty"), rest
    )


def _math(row: Row, new_id: str) -> Problem:
    """MATH and MATH-500; `level` is the difficulty, 1 to 5, also where it is written `Level 3`."""
    level = row.fields.get("level")
    digits = re.search(r"[0-9]", level) if isinstance(level, str) else None
    difficulty = float(digits[0]) if digits else 0.0 if isinstance(level, str) else row.number("level")
    rest = row.rest("problem", "question", "answer", "solution", "level", "id")
    question, answer = row.text("problem", "question"), row.answer("answer")
    return Problem(new_id, question, answer, row.optional_text("solution"), difficulty, rest)


def _svamp(row: Row, new_id: str) -> Problem:
    """Body and Question joined (358 of 1000 bodies lack their full stop); the answer 51.0 is written 51."""
    body = row.text("Body").strip()
    body += "" if body[-1] in ".?!,;:" else "."
    answer = re.sub(r"^(-?[0-9]+)\.0+$", r"\1", row.answer("Answer").strip())
    equation = row.optional_text("Equation").strip()
    operations = float(len(re.findall(r"[-+*/](?= )", equation)))
    rest = row.rest("Body", "Question", "Answer", "Equation", "id")
    return Problem(new_id, f"{body} {row.text('Question').strip()}", answer, equation, operations, rest)


def _jsonl(row: Row, new_id: str) -> Problem:
    """`question`, `answer`, optional `solution`, `id`, `difficulty`; every other field is for reward functions."""
    own = row.fields.get("id")
    name = new_id if own is None else row.answer("id")
    rest = row.rest("question", "answer", "solution", "id", "difficulty")
    question, answer = row.text("question"), row.answer("answer")
    return Problem(name, question, answer, row.optional_text("solution"), row.number("difficulty"), rest)


_READERS: dict[str, Reader] = {"gsm8k": _gsm8k, "aime": _aime, "math": _math, "svamp": _svamp, "jsonl": _jsonl}

_HUB: Mapping[tuple[str, str], tuple[str, str | None, str]] = {
    ("gsm8k", "train"): ("openai/gsm8k", "main", "train"),
    ("gsm8k", "test"): ("openai/gsm8k", "main", "test"),
    ("math", "train"): ("nlile/hendrycks-MATH-benchmark", None, "train"),
    ("math", "test"): ("HuggingFaceH4/MATH-500", None, "test"),
    ("aime", "train"): ("di-zhang-fdu/AIME_1983_2024", None, "train"),
    ("aime", "test"): ("HuggingFaceH4/aime_2024", None, "train"),
    ("svamp", "train"): ("ChilleD/SVAMP", None, "train"),
    ("svamp", "test"): ("ChilleD/SVAMP", None, "test"),
}
"""(task, split) -> (data set, its configuration where it has several, its split)"""


def _hub_rows(name: str, split: str) -> list[Row]:
    repository, configuration, hub_split = _HUB[name, split]
    try:
        import datasets

        found: Iterable[Mapping[str, object]] = datasets.load_dataset(repository, configuration, split=hub_split)
        raw = [dict(fields) for fields in found]
    except Exception as error:  # whatever the network, the cache or the library raises, the way out is the same
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise DataError(
            f"data set {repository} could not be read from the Hub ({type(error).__name__}: {reason}); "
            f"set task.path{'' if split == 'train' else ' and task.test_path'} to a local file"
        ) from None
    rows = [Row(f"{repository} {hub_split} row {index}", _spell(fields)) for index, fields in enumerate(raw)]
    if repository == "di-zhang-fdu/AIME_1983_2024":
        # its 2024 problems are the test split, in slightly other words that an exact match would miss
        rows = [row for row in rows if str(plain(row.fields.get("Year"))) != "2024"]
    return rows


def _spell(fields: Mapping[str, object]) -> dict[str, object]:
    def spell(value: object) -> object:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return Spelled(str(value)) if is_number else value

    return {key: spell(value) for key, value in fields.items()}
