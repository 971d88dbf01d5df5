"""The settings of tasks: where problems come from and how answers are read."""

import os
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, WrapValidator, field_validator, model_validator

from slimrl.config.base import Section
from slimrl.config.environment import package_of
from slimrl.terms import Checker, Template


def _moment(value: str) -> str:
    """The value, if it is `auto` or a local date or time in ISO's form; raises ValueError for anything else."""
    try:
        zone = None if value == "auto" else datetime.fromisoformat(value).tzinfo
    except ValueError:
        raise ValueError(f"task.date={value!r} is no date; write it as 2026-11-25, or auto") from None
    if zone is not None:
        raise ValueError(f"task.date={value!r} has a time zone, and chat templates read local time; remove it")
    return value


def _interval(ends: list[float]) -> list[float]:
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1:
        raise ValueError(f"task.success_rate={ends} is no interval of rates; write it as [0.1, 0.9]")
    return ends


def _or_package(name: Any, one_of: Any) -> Any:
    """The name of a task, of which a package of `verifiers` is none of the choices."""
    return name if isinstance(name, str) and package_of(name) else one_of(name)


Moment = Annotated[str, AfterValidator(_moment)]
EVERY_RATE = [0.0, 1.0]


class ArithmeticConfig(Section):
    max_steps: Annotated[int, Field(ge=1, le=6)] = 3
    """Training and test problems take 1 to this many reasoning steps."""
    harder_steps: Annotated[int, Field(ge=1, le=8)] = 4
    """The harder split takes exactly this many steps; more than `max_steps`."""
    max_number: Annotated[int, Field(ge=10, le=999)] = 20
    """Largest number in a question, a solution or an answer."""

    @model_validator(mode="after")
    def _harder_is_harder(self) -> Self:
        if self.harder_steps <= self.max_steps:
            raise ValueError(
                f"harder_steps ({self.harder_steps}) must exceed max_steps ({self.max_steps}); raise harder_steps"
            )
        return self


class ColumnsConfig(Section):
    question: str = ""
    """Column of the question, a text or chat messages; dots reach into nested rows, as `extra_info.question`. Empty, here and
    below: a column of a known name (docs/data.md has the list)."""
    answer: str = ""
    """Column of the right answer, or of a list of right answers; `none` reads none."""
    solution: str = ""
    """Column of the worked solution, which `slimrl sft` imitates; `none` reads none."""
    id: str = ""
    """Column of a name for each row, no two of them equal; `none` numbers the rows."""
    difficulty: str = ""
    """Column of a number, for `curriculum.order=easy_first`; `none` reads none."""
    choices: str = ""
    """Column of the options to choose from, which `task.checker=choice` writes below the question; `none` reads none."""
    context: str = ""
    """Column of a text that goes before the question, such as a passage; below it where the question is an `instruction`."""


class TaskConfig(Section):
    name: Annotated[
        Literal["arithmetic", "guess", "gsm8k", "aime", "math", "svamp", "code", "jsonl"], WrapValidator(_or_package)
    ] = "arithmetic"
    """Source of the problems: `arithmetic` and `guess` (numbers for `environment.name=guess`) are built in; the others read files
    or the Hub; `code` asks for programs and runs them against tests in the sandbox (docs/sandbox.md); `jsonl` is any data of
    yours, and the default where there is a `path`. `verifiers:PACKAGE` is an environment of the package `verifiers`
    (docs/others-environments.md)."""
    path: str = ""
    """Training problems: a file (JSONL, JSON, CSV, TSV or Parquet, each also as .gz) or a data set on the Hub, `org/name`; empty:
    the Hub's own of this task (not for `jsonl` and `code`)."""
    test_path: str = ""
    """Held-out problems, given as `path` is; empty: `test_split` where there is one, else, with a `path`, about
    a tenth of its questions, chosen by a hash of the question: the order of the file does not matter, and rows stay on their
    side when others are added."""
    subset: str = ""
    """Configuration of the data set that `path` names on the Hub; empty: its only one."""
    split: str = ""
    """Split of that data set to train on; empty: `train`."""
    test_split: str = ""
    """Split of the held-out problems, of `test_path` on the Hub (empty: `test`) or else of the data set of `path`."""
    columns: ColumnsConfig = ColumnsConfig()
    """Names of the columns of `jsonl` data."""
    rates: str = ""
    """Success rates of the training problems, a file of `slimrl difficulty`: their difficulty is 1 minus the rate,
    `curriculum.order=learnability` begins with them, and problems without one are left out."""
    success_rate: Annotated[list[float], AfterValidator(_interval)] = EVERY_RATE
    """Train on problems with a success rate in this interval only, both ends included; needs `rates`."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error`: a row that is malformed, repeated, both trained on and held out, or changed by the chat template ends the run;
    `skip` leaves it out."""
    style: Literal["hashes", "boxed", "tags", "answer", "code"] = "hashes"
    """Form in which an answer must be written: `#### 72`, `\\boxed{72}`, the case study's tags, or `Answer: 72`; `code`, a fenced
    block of Python, belongs to `task.name=code`, and is its only form."""
    instruction: str = "auto"
    """The system message; empty sends none. `auto`: what `slimrl sft` taught the model with, else the style's own."""
    template: Template = "auto"
    """`chat`: the tokenizer's chat template; `plain`: "Question: ... Answer:"; `auto`: plain for a model that SlimRL
    trained on plain prompts, else chat where there is a template."""
    template_arguments: dict[str, bool | int | float | str] = Field(default={})
    """Arguments of the chat template besides the messages, as `{enable_thinking: false}` for Qwen3."""
    date: Moment = "auto"
    """The date that a chat template takes for today, with or without a time of day (2026-11-25T09:30:00). `auto`: the moment at
    which the run or the study begins, which stays when it is resumed or evaluated later."""
    checker: Checker = "numeric"
    """`numeric`: exact fractions; `symbolic`: LaTeX through math-verify (the extra `math`); `exact`: the same text, but for case
    and white space; `choice`: the letter of an option; `regex`: the right answer is a pattern that must fit the whole answer;
    `tests`: a program passes its tests, which is `task.name=code`; `none`: nothing is right or wrong, no answers are needed."""
    answers: Literal["right", "shuffled"] = "right"
    """`shuffled`, a control: every training problem has the answer of another one. Held-out problems keep theirs."""
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    """Shape of the built-in task's problems."""

    @property
    def is_made(self) -> bool:
        """True for a task whose problems are made on demand."""
        return self.name in ("arithmetic", "guess")

    @field_validator("path", "test_path", "rates")
    @classmethod
    def _home(cls, place: str) -> str:
        return os.path.expanduser(place)

    @model_validator(mode="before")
    @classmethod
    def _a_path_needs_no_name(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        if settings.get("name") == "code":
            return {"style": "code", "checker": "tests", **settings}
        named = "name" in settings or not (settings.get("path") or settings.get("test_path"))
        return settings if named else {**settings, "name": "jsonl"}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if package_of(self.name):
            self._of_a_package()
        if self.name in ("jsonl", "code") and not (self.path or self.test_path):
            raise ValueError(
                f"task.name={self.name} needs task.path=FILE, or task.path=org/name of a data set on the Hub"
            )
        for key, own in (("style", "code"), ("checker", "tests")):
            if (getattr(self, key) == own) != (self.name == "code"):
                raise ValueError(
                    f"task.{key}={getattr(self, key)} does not go with task.name={self.name}; remove it "
                    f"(task.name=code has task.{key}={own}, and no other task has)"
                )
        if self.name != "jsonl" and self.columns != ColumnsConfig():
            raise ValueError(
                f"task.columns has no effect with task.name={self.name}; set task.name=jsonl, or remove it"
            )
        if self.columns.choices and self.checker != "choice":
            raise ValueError("task.columns.choices has no effect without task.checker=choice; remove one")
        if self.is_made and (self.path or self.test_path):
            raise ValueError(f"task.name={self.name} makes its own problems; remove task.path, or set task.name=jsonl")
        for key in ("subset", "split", "test_split"):
            if self.is_made and getattr(self, key):
                raise ValueError(f"task.{key} has no effect with task.name={self.name}, which reads no data; remove it")
        if self.is_made and self.rates:
            raise ValueError(
                f"task.rates has no effect with task.name={self.name}, whose problems never end; remove it"
            )
        if self.success_rate != EVERY_RATE and not self.rates:
            raise ValueError(
                "task.success_rate has no effect without task.rates; measure the rates with slimrl difficulty, or remove it"
            )
        if self.is_made and self.on_bad_row != "error":
            raise ValueError(
                f"task.on_bad_row has no effect with task.name={self.name}, which reads no rows; remove it"
            )
        if self.name != "arithmetic" and self.arithmetic != ArithmeticConfig():
            raise ValueError(f"task.arithmetic has no effect with task.name={self.name}; remove it")
        return self

    def _of_a_package(self) -> None:
        """Raises ValueError for settings in whose place a package of `verifiers` has its own."""
        read = ("name", "template", "template_arguments", "date", "rates", "success_rate", "columns", "arithmetic")
        for key in (key for key in type(self).model_fields if key not in read):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"task.{key} has no effect with task.name={self.name}, whose package has data, prompts and rewards of its "
                    "own; remove it"
                )
