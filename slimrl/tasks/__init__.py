"""Tasks: problems, the form of an answer, and the checker that grades it.

This room knows nothing of models, rollouts and rewards. `load_task` builds a task from settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slimrl.config.sections import TaskConfig
from slimrl.errors import SettingsError
from slimrl.records import Problem, Rejected
from slimrl.tasks.answers import Grade, Grader
from slimrl.tasks.styles import STYLES, Style


@dataclass(frozen=True)
class Task:
    """Problems, how an answer must be written, and the checker."""

    name: str
    train: Sequence[Problem]
    """May be lazy and practically endless (the built-in task)."""
    test: Sequence[Problem]
    """Held out; never trained on."""
    harder: Sequence[Problem]
    """Held out and harder than the training problems; empty if the task has none."""
    style: Style
    grader: Grader
    instruction: str
    """System message; empty for none."""
    demonstrators: dict[str, Callable[[Problem, int], str]]
    """Texts to imitate by name, each a pure function of (problem, draw); `solution` is the right worked solution."""
    rejected: tuple[Rejected, ...] = ()
    """Rows of the data that were left out."""

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        return chat_messages(self.instruction, problem.question)

    def grade(self, text: str, answer: str) -> Grade:
        """Strict and lenient verdict on a completion."""
        return self.grader.grade(text, answer, self.style)

    def gold_text(self, problem: Problem) -> str:
        """The gold answer in the required form, which every reward must pay in full."""
        return self.style.render(problem.solution, problem.answer)


def chat_messages(instruction: str, question: str) -> list[dict[str, str]]:
    """A question as chat messages, with a system message unless the instruction is empty."""
    system = [{"role": "system", "content": instruction}] if instruction else []
    return [*system, {"role": "user", "content": question}]


Encode = Callable[[list[dict[str, str]], str], object]


def load_task(config: TaskConfig, *, instruction: str, seed: int, encode: Encode = lambda *_: None) -> Task:
    """Build the task named by the settings; `seed` decides the training problems of endless tasks only.

    `encode` gets the prompt of each row of data, as messages, and its gold text; it raises DataError for a bad row.
    Raises DataError (naming file:line) for bad data and SettingsError for impossible settings.
    """
    from slimrl.tasks import arithmetic, files

    style = STYLES[config.style]
    if config.name == "arithmetic":
        splits = arithmetic.load(config.arithmetic, seed=seed)
        demonstrators = arithmetic.demonstrators(config.arithmetic, style)
    else:

        def encode_row(problem: Problem) -> None:
            encode(chat_messages(instruction, problem.question), style.render(problem.solution, problem.answer))

        splits = files.load(config, encode_row)
        demonstrators = {"solution": lambda problem, _: style.render(problem.solution, problem.answer)}
    if not len(splits.train):
        raise SettingsError(f"task {config.name} has no training problems; check task.path")
    problems = splits.train, splits.test, splits.harder
    return Task(config.name, *problems, style, Grader(config.checker), instruction, demonstrators, splits.rejected)
