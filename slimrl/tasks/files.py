"""Problems from files and from the Hub: GSM8K, AIME, MATH, SVAMP, and the user's own data.

Each kind of row has one short function that turns it into a Problem, wherever the rows come from; the columns of a user's own
data are found (`slimrl/tasks/layout.py`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from slimrl.config.task import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Problem, Rejected
from slimrl.tasks.code import code_problem
from slimrl.tasks.formats import CONVERT
from slimrl.tasks.layout import Layout, check_columns, find_layout, split_hashes
from slimrl.tasks.questions import asked, held_out, normalized
from slimrl.tasks.rows import Row, RowError, bad_rows
from slimrl.tasks.sources import find_sources
from slimrl.terms import Answers


@dataclass(frozen=True)
class Splits:
    """The problems of a task."""

    train: Sequence[Problem]
    test: Sequence[Problem]
    harder: Sequence[Problem] = ()
    rejected: tuple[Rejected, ...] = ()
    """Rows that were left out."""
    notes: tuple[str, ...] = ()
    """Sentences on the columns that were read, where their names are not our own."""


Reader = Callable[[Row, str], Problem]  # (row, id for problems that have none) -> Problem
Encode = Callable[[Problem], object]
"""Raises DataError for a problem that the tokenizer or its template cannot write as it is."""
Asked = dict[str, tuple[Row, Problem]]  # problems by normalized question, each with its row


Verify = Callable[[Sequence[Problem]], Mapping[str, str]]
"""By the id of a problem, why its solution does not earn what it should."""


def load(
    config: TaskConfig,
    encode: Encode = lambda _: None,
    *,
    answers: Answers = "needed",
    training: bool = True,
    verify: Verify = lambda _: {},
    episodes: bool = False,
) -> Splits:
    """The splits of a task that is read from files or the Hub.

    Without held-out data of its own, a tenth of the questions of `task.path` is held out, chosen by a hash of the
    question (`questions.held_out`), after repeats are removed. Without `task.path` the training problems come from the Hub,
    and without `task.test_path` the held-out ones do. `answers` says which rows of `jsonl` data need one, and
    `episodes` how their conversations are read (`find_layout`). Without `training` no problems to train on are looked for on the
    Hub where the held-out ones are elsewhere (`task.test_path`).

    A row is bad if it cannot be read, repeats an id or a question of its file, is refused by `encode` or `verify`, or is a
    training row with a held-out question. With `task.on_bad_row=error` bad rows raise DataError, naming file:line; with `skip`
    they are left out, and an error is raised only if a split has no row left.
    """
    source, held_out_source = find_sources(config, training=training)
    name = config.name
    try:
        rows = [] if source is None else source.rows()
    except DataError as error:
        if config.test_path and not config.path:
            raise SettingsError(f"task.test_path is set but task.path is not, and {error}") from None
        raise
    check_columns(config.columns, rows)
    held = [] if held_out_source is None else held_out_source.rows()
    find = partial(find_layout, config=config, answers=answers, episodes=episodes)
    reader, note = _reader(config, rows, held, find)
    hold = partial(_verified, verify)
    train, rejected = hold(*_problems(reader, f"{name}/train" if held_out_source else name, rows, encode))
    notes = ["" if source is None else note]  # of no rows there is nothing to say
    if held_out_source is None:
        test = {question: train.pop(question) for question in held_out(train)}
        if not test and not rejected:
            raise DataError(f"{config.path} has one row, none can be held out; add rows or set task.test_path")
    else:
        reader, note = _reader(config, held, rows, find)
        test, rejected_test = hold(*_problems(reader, f"{name}/test", held, encode))
        rejected += [*rejected_test, *_overlap(train, test)]
        notes += [note] if note != notes[0] else []
    _check_left(config, rejected, {**({} if source is None else {"training": train}), "held-out": test})
    kept_train, kept_test = (tuple(problem for _, problem in split.values()) for split in (train, test))
    columns = tuple(f"task.{key}: {note}" for key, note in zip(("path", "test_path"), notes, strict=False) if note)
    if held_out_source is None and not training:
        way_out = "to hold out a whole file, give it as task.test_path alone"
        columns += (f"task.path: measures the {len(test)} of its problems that are held out; {way_out}",)
    return Splits(kept_train, kept_test, rejected=tuple(rejected), notes=columns)


def _check_left(config: TaskConfig, rejected: Sequence[Rejected], splits: Mapping[str, Asked]) -> None:
    """Raises DataError for bad rows, unless they may be left out and every split has others."""
    them = "it" if len(rejected) == 1 else "them"
    if rejected and config.on_bad_row == "error" and all(splits.values()):
        raise DataError(f"{bad_rows(rejected)}; task.on_bad_row=skip leaves {them} out")
    for split, kept in splits.items():
        if rejected and not kept:
            correct = f"; no {split} row is left, so correct {them}"
            # a file in another format has no rows to correct, and its sentence names the way out
            raise DataError(bad_rows(rejected) + ("" if rejected[0].reason.endswith(CONVERT) else correct))


def _reader(
    config: TaskConfig, rows: Sequence[Row | Rejected], others: Sequence[Row | Rejected], find: Callable[..., Layout]
) -> tuple[Reader, str]:
    """The reader of a file's rows, beside those of the `others` file, and a note on the columns that it reads."""
    if config.name != "jsonl":
        return _READERS[config.name], ""
    layout = find(rows, others=others)
    return layout.problem, layout.note


def _problems(
    reader: Reader, prefix: str, rows: Sequence[Row | Rejected], encode: Encode
) -> tuple[Asked, list[Rejected]]:
    """The problems of a file by question, and its bad rows; a problem without an id is named after `prefix` and its row."""
    kept: Asked = {}
    rejected: list[Rejected] = []
    ids: dict[str, str] = {}
    for index, row in enumerate(rows):  # bad rows count too, so correcting one changes no other id
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        try:
            problem = reader(row, f"{prefix}/{index:05d}")
            question = normalized(asked(problem))
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


def _verified(verify: Verify, kept: Asked, rejected: list[Rejected]) -> tuple[Asked, list[Rejected]]:
    """The problems whose solutions are right, and the other rows among the rejected ones."""
    faults = verify([problem for _, problem in kept.values()])
    bad = {question: faults[problem.id] for question, (_, problem) in kept.items() if problem.id in faults}
    left = {question: found for question, found in kept.items() if question not in bad}
    return left, [*rejected, *(kept[question][0].rejected(why) for question, why in bad.items())]


def _overlap(train: Asked, test: Asked) -> list[Rejected]:
    """Remove the questions from `train` that are held out too, so that the evaluation stays the same."""
    rejected = []
    for question in [known for known in train if known in test]:
        row, held = train.pop(question)[0], test[question][0].where
        reason = f"the training question is also the held-out question {held}, which would flatter the evaluation"
        rejected.append(row.rejected(f"{reason}; remove one of them"))
    return rejected


def _gsm8k(row: Row, new_id: str) -> Problem:
    """`answer` holds the solution with <<48/2=24>> calculator marks and a last line `#### 72`."""
    way_out = "add it, or set task.name=jsonl for plain answers"
    answer, solution, marks = split_hashes(row, "answer", row.text("answer"), way_out)
    rest = row.rest("question", "answer", "id")
    return Problem(new_id, row.text("question"), answer, solution, marks, rest)


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


_READERS: dict[str, Reader] = {"gsm8k": _gsm8k, "aime": _aime, "math": _math, "svamp": _svamp, "code": code_problem}
"""The readers of data sets whose columns are known."""
