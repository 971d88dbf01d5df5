"""Tasks: problems, the form of an answer, and the checker that grades it.

This room knows nothing of models, rollouts and rewards. `load_task` builds a task from settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from slimrl.config.sandbox import SandboxConfig
from slimrl.config.task import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Problem, Rejected, Turns
from slimrl.tasks.answers import Grade, Grader
from slimrl.tasks.checkers import answer_fault
from slimrl.tasks.programs import ProgramGrader, grader_for
from slimrl.tasks.rates import Rate, rated
from slimrl.tasks.shuffled import Shuffled
from slimrl.tasks.styles import STYLES, Style
from slimrl.terms import Answers


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
    notes: tuple[str, ...] = ()
    """Sentences on how the data was read."""
    rates: Mapping[str, Rate] = field(default_factory=dict)
    """Success rates of the training problems by their id, where the settings have a file of them."""
    opening: Callable[[Problem], Turns] = lambda _: ()
    """The prompt of an environment that writes its own; empty for that of the problem."""

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        own = self.opening(problem)
        return prompt_messages(self.instruction, replace(problem, turns=own) if own else problem)

    def grade(self, text: str, answer: str) -> Grade:
        """Strict and lenient verdict on a completion."""
        return self.grader.grade(text, answer, self.style)

    @property
    def runs_programs(self) -> bool:
        """True where a verdict takes long, so that `begin` is worth a call before it is asked for."""
        return isinstance(self.grader, ProgramGrader)

    def begin(self, texts: Sequence[str], answer: str) -> None:
        """Begin what takes long of the verdicts on completions of a problem."""
        self.grader.begin(texts, answer, self.style)

    def gold_text(self, problem: Problem) -> str:
        """The gold answer in the required form, which every reward must pay in full; any answer where there is none."""
        return self.style.render(problem.solution, problem.answer or ANY_ANSWER)

    def earns(self, problem: Problem) -> bool:
        """True if the gold text must be graded right: there is an answer, and a checker that finds it in its own text."""
        return self.grader.earns(problem.answer)


ANY_ANSWER = "1"


def prompt_messages(instruction: str, problem: Problem) -> list[dict[str, str]]:
    """A problem's prompt as chat messages; a system message of its own stands in the place of the instruction."""
    if not problem.turns:
        return chat_messages(instruction, problem.question)
    own = [{"role": role, "content": content} for role, content in problem.turns]
    return own if not instruction or own[0]["role"] == "system" else [{"role": "system", "content": instruction}, *own]


def chat_messages(instruction: str, question: str) -> list[dict[str, str]]:
    """A question as chat messages, with a system message unless the instruction is empty."""
    system = [{"role": "system", "content": instruction}] if instruction else []
    return [*system, {"role": "user", "content": question}]


Encode = Callable[[list[dict[str, str]], str], object]


@dataclass(frozen=True)
class Checks:
    """The demands on rows of data."""

    encode: Encode = lambda *_: None
    """Gets the prompt of each row, as messages, and its gold text; raises DataError for a bad row."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    """In which the programs of rows, and later of completions, are run."""
    replay: Callable[[Turns], object] | None = None
    """Gets the episode of each row that demonstrates one; raises DataError for a bad row. None where conversations are no
    episodes.
    """


def load_task(
    config: TaskConfig,
    *,
    instruction: str,
    seed: int,
    checks: Checks = Checks(),
    answers: Answers = "needed",
    training: bool = True,
) -> Task:
    """Build the task named by the settings; `seed` decides the training problems of endless tasks, and shuffled answers.

    `answers` says which rows of a user's own data need one; without `training` there may be no training problems.
    Raises DataError (naming file:line) for bad data and SettingsError for impossible settings.
    """
    from slimrl.tasks import arithmetic, files, guess

    style, grader = STYLES[config.style], grader_for(config.checker, checks.sandbox)
    if config.name == "arithmetic":
        splits = arithmetic.load(config.arithmetic, seed=seed)
        demonstrators = arithmetic.demonstrators(config.arithmetic, style)
    elif config.name == "guess":
        splits, demonstrators = guess.load(seed=seed), {}
    else:

        def encode_row(problem: Problem) -> None:
            formed = config.checker in ("choice", "regex") and problem.answer
            if formed and (found := answer_fault(config.checker, problem.answer)):
                raise DataError(found)
            checks.encode(prompt_messages(instruction, problem), style.render(problem.solution, problem.answer))
            if checks.replay is not None:
                checks.replay(problem.episode)

        verify = grader.faults if isinstance(grader, ProgramGrader) else lambda _: {}
        load = partial(files.load, answers=answers, training=training, verify=verify)
        splits = load(config, encode_row, episodes=checks.replay is not None)
        demonstrators = {"solution": lambda problem, _: _demonstration(problem, style)}
    if training and not len(splits.train):
        raise SettingsError(f"task {config.name} has no training problems; check task.path")
    train, rates, on_rates = rated(splits.train, config) if config.rates else (splits.train, {}, ())
    notes = [*splits.notes, *on_rates]
    if config.answers == "shuffled" and len(train):
        train = Shuffled(train, seed)
        notes.append(
            "task.answers=shuffled: every training problem has the answer of another one, held-out problems have theirs"
        )
    problems = train, splits.test, splits.harder
    if not config.is_made and (config.checker == "none" or not any(problem.answer for problem in splits.test)):
        notes.append("no held-out answer is checked, so accuracy is 0 whatever a model writes")
    return Task(
        config.name,
        *problems,
        style,
        grader,
        instruction,
        demonstrators,
        splits.rejected,
        tuple(notes),
        rates,
    )


def _demonstration(problem: Problem, style: Style) -> str:
    """The worked solution to imitate, in the required form where there is an answer."""
    return style.render(problem.solution, problem.answer) if problem.answer else problem.solution
