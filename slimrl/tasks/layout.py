"""The columns of a user's own data: which of them holds what, and the problem that a row makes.

A `Layout` is found once for a file, by names that are in use (docs/data.md), and `task.columns` comes before all of them. Every
row is then read by the same layout, so that a row which lacks a column is a bad row and is not read in another way.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from slimrl.config.task import ColumnsConfig, TaskConfig
from slimrl.errors import SettingsError
from slimrl.records import Problem, Rejected, Turns
from slimrl.tasks.choices import (
    Counted,
    counted,
    counted_options,
    listed,
    lists_options,
    options,
    right_options,
    word_option,
    yes_or_no,
)
from slimrl.tasks.formats import are_messages
from slimrl.tasks.rows import MISSING, Row
from slimrl.tasks.styles import last_box
from slimrl.tasks.turns import read_turns, split_episode
from slimrl.terms import Answers

NONE = "none"
"""The name of a column in `task.columns` that stands for no column."""
NO_DIFFICULTY = "write difficulties as numbers, or set task.columns.difficulty=none to leave them out"
LOOKED_AT = 100
"""Rows by which a layout is found."""
MOST = 0.9
"""Share of them that end with their answer for a worked solution; the others are bad rows, and change no other's reading."""
QUESTION = ("question", "prompt", "problem", "instruction", "query", "messages", "conversations")
ANSWER = (
    "answer", "answers", "ground_truth", "reward_model.ground_truth", "expected_answer", "final_answer", "answerKey", "target",
    "label", "gold",
)  # fmt: skip
WORKED = ("solution", "output", "response", "completion")
"""Columns that hold the answer where none of ANSWER is there: alone, or at the end of a worked solution."""
SOLUTION = ("solution", "reference_solution")
INSTRUCTION = "instruction"
CONTEXT = ("input", "context")
"""The column that continues the instruction of Alpaca's and Dolly's rows."""
PASSAGES = (*CONTEXT, "passage", "paragraph", "article", "story")
"""Columns of a text that a question may be about (SQuAD, BoolQ); where one is not in the prompts, a note says so."""
CHOICES = ("choices", "options")
OWN = ("question", "answer", "solution", "id", "difficulty")
"""Names under which reward functions get what a problem is made of."""


@dataclass(frozen=True)
class Layout:
    """Names of columns; an empty one is there for nothing."""

    question: str
    answer: str
    """The same as `question` where the answer is the assistant's last message."""
    solution: str
    id: str
    difficulty: str
    choices: str
    context: str
    worked: Literal["", "hashes", "boxed"] = ""
    """The answer is the end of a worked solution: a last line `#### 72`, or the last box."""
    unasked: bool = False
    """A row may lack the answer."""
    counted: Counted = ""
    """Answers are indexes of the options."""
    yes_no: tuple[str, ...] = ()
    """Options that the rows have no column of, since the answers are these words."""
    unread: str = ""
    """A column that looks like a text to read and is in no prompt."""
    episodes: bool = False
    """A conversation that ends with the assistant's turn is an episode from its first one on."""
    unknown: tuple[str, ...] = ()
    """Of `question` and `answer`, those for which no column was found."""

    @property
    def note(self) -> str:
        """A sentence on the columns; empty where they have the names of our own."""
        usual = (self.question, self.answer) == ("question", "answer") and self.solution in ("", "solution")
        if usual and not (self.choices or self.yes_no or self.context or self.worked or self.unread):
            return ""
        question = self.question + (f" and {self.context}" if self.context else "")
        answer = self.answer if self.answer != self.question else "the assistant's last message"
        end = {"": "", "hashes": " behind its last ####", "boxed": " in its last box"}[self.worked]
        found = [f"question from {question}", f"answer from {answer}{end}" if answer else "no answers"]
        found += [f"solution from {self.solution}"] if self.solution else []
        index = " by the answer's index, from 0" if self.counted == "from 0" else ""
        found += [f"options from {self.choices}{index}"] if self.choices else []
        more = f"; the options are {' and '.join(self.yes_no)}, which the answers are" if self.yes_no else ""
        if self.unread:
            more += f"; no prompt holds {self.unread}: write it into the question where it belongs there, "
            more += f"or set task.columns.context={self.unread}"
        return f"{', '.join(found)} (task.columns names other columns){more}"

    def problem(self, row: Row, new_id: str) -> Problem:
        """The problem of a row. Raises RowError for a bad one."""
        self._require(row, "question", self.question)
        turns, said = self._conversation(row, self.question)
        reply = said[-1][1] if said else ""
        if not turns or turns[-1][0] != "user":
            row.fail(f"field {self.question!r} has no question, a message of the user's before the answer; correct it")
        question = turns[-1][1]
        if more := self.context and row.optional_text(self.context).strip():
            parts = (question, more) if self.question.lower() == INSTRUCTION else (more, question)
            question = "\n\n".join((parts[0].rstrip(), parts[1]))
        labels, texts = options(row, self.choices) if self.choices else ([], [])
        if written := texts or [*self.yes_no]:
            question = f"{question.rstrip()}\n{listed(written)}"
        answer, solution, steps = self._answer(row, reply, labels, texts)
        shown = [
            key for key in (self.solution, self.answer) if key and key != self.question and are_messages(row.at(key))
        ]
        if shown and self.episodes:
            _, said = self._conversation(row, shown[0])
        apart = self.solution in shown and self.episodes
        worked = row.optional_text(self.solution) if self.solution and not apart and len(said) <= 1 else ""
        name = row.at(self.id) if self.id else None
        difficulty = row.number(self.difficulty, way_out=NO_DIFFICULTY) if self.difficulty else 0.0
        own = [key for key in OWN if getattr(self, key) == key]
        return Problem(
            id=new_id if name in (None, MISSING, "") else row.answer(self.id),
            question=question,
            answer=answer,
            solution=worked or (said[-1][1] if apart and said else solution),
            difficulty=difficulty or steps,
            columns=row.rest(*own),
            turns=(*turns[:-1], ("user", question)) if len(turns) > 1 else (),
            episode=said if len(said) > 1 else (),
        )

    def _conversation(self, row: Row, field: str) -> tuple[Turns, Turns]:
        """The prompt in a field, and what follows it: the assistant's reply, or an episode."""
        turns = read_turns(row, field, episodes=self.episodes)
        if self.episodes:
            return split_episode(row, field, turns)
        replied = turns[-1][0] == "assistant"
        return (turns[:-1], turns[-1:]) if replied else (turns, ())

    def _answer(self, row: Row, reply: str, labels: list[str], texts: list[str]) -> tuple[str, str, float]:
        """Answer, worked solution and number of calculator marks."""
        replied = self.answer == self.question
        lacks = not reply if replied else row.at(self.answer) in (MISSING, None, "")
        if not self.answer or (self.unasked and lacks):
            return "", reply, 0.0
        if replied and not reply:
            row.fail(f"field {self.question!r} ends without an answer of the assistant's; add it or remove the row")
        self._require(row, "answer", self.answer)
        whole = reply if replied else self._reply(row) or row.answers(self.answer)
        solution = "" if replied else reply
        if texts:
            if self.counted:
                return counted_options(row, whole, texts, self.counted), solution, 0.0
            letter = right_options(row, self.answer, whole, choices=self.choices, labels=labels, texts=texts)
            return letter, solution, 0.0
        if self.yes_no:
            return word_option(row, whole, self.yes_no), solution, 0.0
        if self.worked == "hashes":
            return split_hashes(row, self.answer, whole, "add it or remove the row")
        if self.worked == "boxed":
            if not (answer := last_box(whole)):
                row.fail(
                    f"field {self.answer!r} has no \\boxed{{...}}, which the others have; add it or remove the row"
                )
            return answer, whole, 0.0
        return whole, solution, 0.0

    def _reply(self, row: Row) -> str:
        """The last text of an answer of messages, as TRL's conversational completions; empty for another."""
        messages = are_messages(row.at(self.answer))
        return read_turns(row, self.answer, episodes=self.episodes)[-1][1] if messages else ""

    def _require(self, row: Row, role: str, column: str) -> None:
        if row.at(column) is not MISSING:
            return
        if column == role:
            row.missing((column,), f"; task.columns.{role} names another" if role in self.unknown else "")
        row.fail(f"the row has no field {column!r}, in which the others have the {role}; add it or remove the row")


def split_hashes(row: Row, field: str, whole: str, way_out: str) -> tuple[str, str, float]:
    """(answer, solution, number of calculator marks) of GSM8K's text, with <<48/2=24>> marks and a last line `#### 72`."""
    solution, marker, answer = whole.rpartition("####")
    if not marker or not answer.strip():
        row.fail(f"field {field!r} has no last line '#### number'; {way_out}")
    marks = re.findall(r"<<[^<>]*>>", solution)
    for mark in marks:
        solution = solution.replace(mark, "")
    return answer.strip(), solution.strip(), float(len(marks))


def find_layout(
    rows: Sequence[Row | Rejected],
    config: TaskConfig,
    others: Sequence[Row | Rejected] = (),
    *,
    answers: Answers,
    episodes: bool = False,
) -> Layout:
    """The layout of a file's rows; `answers` says which need one, and with `task.checker=none` none does. Conversations are
    `episodes` where an environment plays them.

    Rows of the `others` file tell too whether answers are indexes, so that both are read in the same way.
    """
    seen = [row for row in rows if isinstance(row, Row)][:LOOKED_AT]

    def column(role: str, names: Iterable[str], default: str = "") -> str:
        given = str(getattr(config.columns, role, ""))
        return "" if given == NONE else given or next(filter(None, (_spelling(seen, n) for n in names)), default)

    question = column("question", QUESTION, "question")
    answer = column("answer", [*ANSWER, *(name for name in WORKED if name != question)])
    none = config.checker == NONE
    if not answer and config.columns.answer != NONE:
        replies = [row.at(question) for row in seen]
        told = any(are_messages(value) and _ends_with_reply(value) for value in replies)
        answer = question if told else "answer" if answers == "needed" and not none else ""
    worked: Literal["", "hashes", "boxed"] = ""
    texts = [text for row in seen if (text := _whole(row, answer))]
    if _mostly(_has_hashes(text) for text in texts):
        worked = "hashes"
    elif (answer in WORKED or answer == question) and _mostly(last_box(text) for text in texts):
        worked = "boxed"
    solution, offered = column("solution", SOLUTION), column("choices", CHOICES)
    choices = offered if config.checker == "choice" else ""
    whole = [row for row in (*rows, *others) if isinstance(row, Row)]
    by_word = config.checker == "choice" and not choices and config.columns.choices != NONE and not worked
    by_word = by_word and not any(lists_options(row.at(question)) for row in whole if question)
    context = column("context", CONTEXT if question.lower() == INSTRUCTION else ())
    passages = () if context or config.columns.context == NONE else PASSAGES
    unread = next(filter(None, (_spelling(seen, name) for name in passages)), "")
    read = unread in (question, answer, solution, choices) or not any(_is_text(row.at(unread)) for row in seen)
    return Layout(
        question=question,
        answer=answer,
        solution="" if solution == answer else solution,
        id=column("id", ["id"]),
        difficulty=column("difficulty", ["difficulty"]),
        choices=choices,
        counted=counted(whole, answer, choices) if choices and answer and answer != question else "",
        yes_no=yes_or_no((row.at(answer) for row in whole), MOST) if by_word and answer not in ("", question) else (),
        context=context,
        unread="" if read else unread,
        worked=worked,
        unasked=none or answers == "unneeded",
        episodes=episodes,
        unknown=tuple(name for name in ("question", "answer") if not _spelling(seen, name)),
    )


def check_columns(columns: ColumnsConfig, rows: Sequence[Row | Rejected]) -> None:
    """Raises SettingsError for a name in `task.columns` that no row has."""
    whole = [row for row in rows if isinstance(row, Row)]
    for role, name in columns:
        if whole and name not in ("", NONE) and all(row.at(name) is MISSING for row in whole):
            raise SettingsError(
                f"task.columns.{role}={name} is in none of the rows (the first has: {whole[0].names()})"
            )


def _spelling(rows: Sequence[Row], name: str) -> str:
    """The name as the rows spell it, `Question` for `question`; empty where none of them has it."""
    if any(row.at(name) is not MISSING for row in rows):
        return name
    return next((field for row in rows for field in row.fields if field.lower() == name.lower()), "")


def _is_text(value: object) -> bool:
    """True for more than one word."""
    return isinstance(value, str) and len(value.split()) > 1


def _ends_with_reply(messages: object) -> bool:
    last = messages[-1] if isinstance(messages, list) else {}
    return str(last.get("role", last.get("from"))) in ("assistant", "gpt", "model")


def _whole(row: Row, answer: str) -> str:
    """The text in which a row has its answer, as far as it has one; empty for other values."""
    value = row.at(answer) if answer else MISSING
    if are_messages(value):
        assert isinstance(value, list)
        value = value[-1].get("content", value[-1].get("value")) if _ends_with_reply(value) else ""
    return value if isinstance(value, str) else ""


def _mostly(found: Iterable[object]) -> bool:
    verdicts = [bool(one) for one in found]
    return sum(verdicts) >= MOST * len(verdicts) > 0


def _has_hashes(text: str) -> bool:
    _, marker, answer = text.rpartition("####")
    return bool(marker and answer.strip()) and "\n" not in answer.strip()
