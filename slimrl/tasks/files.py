"""Problems from local files and from the Hub: GSM8K, AIME, MATH, SVAMP, and the user's own JSONL.

Each kind of row has one short function that turns it into a Problem; data sets from the Hub go through the same ones.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from slimrl.config.sections import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Problem, Rejected
from slimrl.tasks.formats import CONVERT
from slimrl.tasks.questions import held_out, normalized
from slimrl.tasks.rows import Row, RowError, Spelled, bad_rows, plain, scan_rows


@dataclass(frozen=True)
class Splits:
    """The problems of a task."""

    train: Sequence[Problem]
    test: Sequence[Problem]
    harder: Sequence[Problem] = ()
    rejected: tuple[Rejected, ...] = ()
    """Rows that were left out."""


Reader = Callable[[Row, str], Problem]  # (row, id for problems that have none) -> Problem
Encode = Callable[[Problem], object]
"""Raises DataError for a problem that the tokenizer or its template cannot write as it is."""
Asked = dict[str, tuple[Row, Problem]]  # problems by normalized question, each with its row


def load(config: TaskConfig, encode: Encode = lambda _: None) -> Splits:
    """The splits of a task that is read from files or the Hub.

    With `task.path` and without `task.test_path`, about a tenth of the file's questions is held out, chosen by a hash of the
    question (`questions.held_out`), after repeats are removed. Without `task.path` the training problems come from the Hub,
    and without `task.test_path` the held-out ones do.

    A row is bad if it cannot be read, repeats an id or a question of its file, is refused by `encode`, or is a training row
    with a held-out question. With `task.on_bad_row=error` bad rows raise DataError, naming file:line; with `skip` they are
    left out, and an error is raised only if a split has no row left.
    """
    if config.path and not config.test_path:
        train, rejected = _problems(config.name, config.name, scan_rows(config.path), encode)
        test = {question: train.pop(question) for question in held_out(train)}
        if not test and not rejected:
            raise DataError(f"{config.path} has one row, none can be held out; add rows or set task.test_path")
    else:
        train_rows, test_rows = _rows(config)
        train, rejected = _problems(config.name, f"{config.name}/train", train_rows, encode)
        test, rejected_test = _problems(config.name, f"{config.name}/test", test_rows, encode)
        rejected += [*rejected_test, *_overlap(train, test)]
    them = "it" if len(rejected) == 1 else "them"
    if rejected and config.on_bad_row == "error" and train and test:
        raise DataError(f"{bad_rows(rejected)}; task.on_bad_row=skip leaves {them} out")
    for split, kept in (("training", train), ("held-out", test)):
        if rejected and not kept:
            correct = f"; no {split} row is left, so correct {them}"
            # a file in another format has no rows to correct, and its sentence names the way out
            raise DataError(bad_rows(rejected) + ("" if rejected[0].reason.endswith(CONVERT) else correct))
    kept_train, kept_test = (tuple(problem for _, problem in split.values()) for split in (train, test))
    return Splits(kept_train, kept_test, rejected=tuple(rejected))


def _rows(config: TaskConfig) -> tuple[Sequence[Row | Rejected], Sequence[Row | Rejected]]:
    """Rows of the training and of the held-out file, from the Hub if no file is named."""
    if config.path:
        return scan_rows(config.path), scan_rows(config.test_path)
    if not config.test_path:
        return _hub_rows(config.name, "train"), _hub_rows(config.name, "test")
    test = scan_rows(config.test_path)
    try:
        return _hub_rows(config.name, "train"), test
    except DataError as error:
        raise SettingsError(f"task.test_path is set but task.path is not, and {error}") from None


def _problems(name: str, prefix: str, rows: Sequence[Row | Rejected], encode: Encode) -> tuple[Asked, list[Rejected]]:
    """The problems of a file by question, and its bad rows; a problem without an id is named after `prefix` and its row."""
    kept: Asked = {}
    rejected: list[Rejected] = []
    ids: dict[str, str] = {}
    for index, row in enumerate(rows):  # bad rows count too, so correcting one changes no other id
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        try:
            problem = _READERS[name](row, f"{prefix}/{index:05d}")
            question = normalized(problem.question)
            if problem.id in ids:
                row.fail(f"id {problem.id[:60]!r} is also that of {ids[problem.id]}; give each row its own")
            if question in kept:
                row.fail(f"the question is also that of {kept[question][0].where}; remove one of them")
            encode(problem)
        except DataError as error:
            rejected.append(row.rejected(error.reason if isinstance(error, RowError) else str(error)))
        else:
            ids[problem.id] = row.where
            kept[question] = row, problem
    return kept, rejected


def _overlap(train: Asked, test: Asked) -> list[Rejected]:
    """Remove the questions from `train` that are held out too, so that the evaluation stays the same."""
    rejected = []
    for question in [asked for asked in train if asked in test]:
        row, held = train.pop(question)[0], test[question][0].where
        reason = f"the training question is also the held-out question {held}, which would flatter the evaluation"
        rejected.append(row.rejected(f"{reason}; remove one of them"))
    return rejected


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
    texts = row.text(*question), row.answer(*answer), row.optional_text(*solution)
    return Problem(new_id, *texts, row.number("difficulty"), rest)


def _math(row: Row, new_id: str) -> Problem:
    """MATH and MATH-500; `level` is the difficulty, 1 to 5, also if it is written `Level 3`."""
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
"""(task, split) -> (data set, its configuration if it has several, its split)"""


def _hub_rows(name: str, split: str) -> list[Row]:
    repository, configuration, hub_split = _HUB[name, split]
    try:
        import datasets

        found: Iterable[Mapping[str, object]] = datasets.load_dataset(repository, configuration, split=hub_split)
        raw = [dict(fields) for fields in found]
    except Exception as error:  # whatever the network, the cache or the library raises, the way out is the same
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        way_out = f"set task.path{'' if split == 'train' else ' and task.test_path'} to a local file"
        sentence = f"data set {repository} could not be read from the Hub ({type(error).__name__}: {reason}); {way_out}"
        raise DataError(sentence) from None
    rows = [
        Row(f"{repository} {hub_split} row {index}", {key: _spelled(value) for key, value in fields.items()})
        for index, fields in enumerate(raw)
    ]
    if repository == "di-zhang-fdu/AIME_1983_2024":
        # its 2024 problems are the test split, in slightly other words that an exact match would miss
        rows = [row for row in rows if str(plain(row.fields.get("Year"))) != "2024"]
    return rows


def _spelled(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    return Spelled(str(value)) if is_number else value
