"""One call of a reward function: its arguments, which are TRL's, what it logs meanwhile, and its values checked."""

import asyncio
import inspect
import json
import math
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from numbers import Real
from typing import Any

from slimrl.errors import places, reason
from slimrl.records import Completion, Played, Problem
from slimrl.rewards.builtin import UNDECIDED
from slimrl.rewards.outcomes import Outcome, Scored, Unscored
from slimrl.rewards.reward import FURTHER, Reward
from slimrl.tasks import Task

TEXTS = (
    "prompts and completions are texts: read them so, or annotate completions as list[list[dict]] to get messages, as TRL gives "
    "them for conversations"
)
"""The way out for a function that takes texts for messages."""


@dataclass(frozen=True)
class Sampled:
    """The completions of one problem before they are scored."""

    problem: Problem
    completions: Sequence[Completion]
    texts: Sequence[str]
    """The decoded completions."""
    step: int
    strict: bool = False
    """A reward that fails raises instead of leaving the completion unscorable: the gold check and a run's first step."""
    steps: int = 1
    """Of the whole run; functions divide by it, so it is 1 before there is one."""
    seed: int = 0
    """Of the run; with the step it decides what rewards draw."""
    skip: frozenset[str] = frozenset()
    """Names of rewards that are not asked, as if they did not apply."""
    played: Sequence[Played] = ()
    """Of episodes of several turns, one a completion."""
    patience: int = 1
    """Times `rewards.deadline`, which is for a group, that a function may take: an evaluation may have more completions of a
    problem than a group of the training has."""

    gold_ids: Sequence[Sequence[int]] = ()
    """Tokens of gold answers, for which empty completions stand, as the user's functions get them."""

    @property
    def draw(self) -> tuple[int, int]:
        """Seed and step, on which rewards that draw depend."""
        return self.seed, self.step


@dataclass(frozen=True)
class TrainerState:
    """TRL's `trainer_state`, of which a reward function may read how far the run is."""

    global_step: int
    """Steps that are done."""
    max_steps: int
    """Steps of the whole run; 1 where gold answers are checked before it."""


@dataclass(frozen=True)
class Log:
    """Takes what a function logs during one call."""

    completions: int
    columns: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def extra(self, column: str, values: Sequence[object]) -> None:
        """TRL's `log_extra`: a column of the rollouts, one value a completion; raises ValueError for another number of them."""
        plain = [_plain(value) for value in values]
        if len(plain) != self.completions:
            raise ValueError(f"log_extra got {len(plain)} values of {column} for {self.completions} completions")
        self.columns[str(column)] = plain

    def metric(self, name: str, value: float) -> None:
        """TRL's `log_metric`: a number of this call, of which a step's metrics have the mean; raises TypeError for none."""
        self.metrics.setdefault(str(name), []).append(float(value))


def arguments(reward: Reward, sampled: Sampled, task: Task) -> dict[str, list[Any]]:
    """The columns that a reward is called with, one value a completion; without `answer` or `solution` where the row has none."""
    problem, n = sampled.problem, len(sampled.texts)
    messages = task.messages(problem)
    as_messages = reward.takes_messages
    own = {name: getattr(problem, name) for name in ("id", "question", "answer", "solution", "difficulty")}
    if not problem.solution:  # the data may have its answers in a column of this name, as TRL's data sets do
        own["solution"] = problem.columns.get("solution", "")
    for name in ("answer", "solution"):
        if not own[name]:  # a function that names it fails, where an empty text would be in every completion
            del own[name]
    columns = {name: [value] * n for name, value in {**problem.columns, **own}.items()}
    gold = sampled.gold_ids if reward.custom else ()
    if sampled.played:
        columns["turns"] = [_said(sampled, row) for row in range(n)]
        # functions compute with a number, which a gold answer, being no episode, does not have
        missing = 0.0 if gold else None
        columns["environment_score"] = [missing if one.score is None else one.score for one in sampled.played]
        columns["turn_rewards"] = [list(played.rewards) for played in sampled.played]
    return columns | {
        "prompts": [messages if as_messages else "\n\n".join(m["content"] for m in messages) for _ in range(n)],
        "completions": [_said(sampled, n) if as_messages else text for n, text in enumerate(sampled.texts)],
        "completion_ids": [list(ids) for ids in gold or (completion.token_ids for completion in sampled.completions)],
    }


def _said(sampled: Sampled, row: int) -> list[dict[str, str]]:
    """A completion as messages: its turns, with the environment's between them."""
    turns = sampled.played[row].turns if sampled.played else (("assistant", sampled.texts[row]),)
    return [{"role": role, "content": content} for role, content in turns]


class Call:
    """One call of one reward for the completions of a problem; a failure is an outcome of it and never raised."""

    def __init__(self, reward: Reward, sampled: Sampled, task: Task) -> None:
        self.reward = reward
        self.patience = sampled.patience
        self._log = Log(len(sampled.texts))
        self._columns: dict[str, Any] = {**arguments(reward, sampled, task)}
        if reward.draws:
            self._columns["draw"] = sampled.draw
        given: dict[str, Any] = {"trainer_state": TrainerState(sampled.step, sampled.steps)}
        given |= {"log_extra": self._log.extra, "log_metric": self._log.metric}
        self._columns |= {name: given[name] for name in reward.further}
        if reward.takes_environments and any(played.environment is not None for played in sampled.played):
            self._columns["environments"] = [played.environment for played in sampled.played]

    @property
    def completions(self) -> int:
        """The number of completions."""
        return self._log.completions

    def scored(self) -> Scored:
        """Call the function."""
        try:
            return self._checked(self.reward.function(**self._columns))
        except (Exception, SystemExit) as error:
            return self._failed(error)

    async def awaited(self) -> Scored:
        """Call a function that is asynchronous."""
        try:
            coroutine: Coroutine[Any, Any, Any] = self.reward.function(**self._columns)
            return self._checked(await coroutine)
        except asyncio.CancelledError:  # the time is up
            raise
        except BaseException as error:  # of any kind: one that reached the loop would end it for all
            return self._failed(error)

    def without(self, what: Unscored) -> Scored:
        """The result where no completion has a score."""
        return self._result([what] * self._log.completions)

    def _result(self, outcomes: Sequence[Outcome]) -> Scored:
        """Outcomes with what was logged up to now: a call that is late may still log more."""
        return Scored(outcomes, dict(self._log.columns), {name: tuple(x) for name, x in self._log.metrics.items()})

    def _failed(self, error: BaseException) -> Scored:
        remedy = _misfit(self.reward.function, self._columns) if isinstance(error, TypeError) else ""
        if isinstance(error, TypeError) and "string indices" in str(error) and not self.reward.takes_messages:
            remedy = TEXTS
        return self.without(Unscored(f"raised {type(error).__name__}: {reason(error)}", places(error), remedy=remedy))

    def _checked(self, values: object) -> Scored:
        found, n = _listed(values, self._log.completions), self._log.completions
        if found is None:
            return self.without(Unscored(f"returned {type(values).__name__} instead of a list"))
        if len(found) != n:
            count = f"more than {n}" if isinstance(values, Iterator) and len(found) > n else str(len(found))
            return self.without(Unscored(f"returned {count} values for {n} completions"))
        outcomes = [None if value is None else checked(self.reward, value) for value in found]
        return self._result(outcomes)


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """True for `async def` functions, and for objects whose __call__ is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _listed(values: object, count: int) -> list[Any] | None:
    """The returned values as a list, of an endless iterator no more than is needed; None for what is no list."""
    if inspect.iscoroutine(values):
        values.close()  # or Python warns that it was never awaited
        return None
    if hasattr(values, "tolist"):  # an array or a tensor
        values = values.tolist()
    if isinstance(values, Iterator):
        values = list(islice(values, count + 1))
    return [*values] if isinstance(values, list | tuple) else None


def checked(reward: Reward, value: object) -> float | Unscored:
    """The value as a float, or the reason why it is none."""
    if isinstance(value, Unscored):  # of a judge
        return value
    if value is UNDECIDED:
        return Unscored(UNDECIDED.value, excused=True)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy's or torch's
        value = value.item()
    if not isinstance(value, Real):
        return Unscored(f"returned {type(value).__name__} instead of a number")
    number = float(value)
    if not math.isfinite(number):
        return Unscored(f"returned {number}")
    low, high = (-math.inf if reward.low is None else reward.low), (math.inf if reward.high is None else reward.high)
    if not low - 1e-6 <= number <= high + 1e-6:
        return Unscored(f"returned {number:g}, outside of its bounds {low:g} to {high:g}")
    return number


def _plain(value: object) -> Any:
    """A value as JSON can hold it, so that it survives the way from a worker and into a file."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    text = json.dumps(value, default=str, skipkeys=True, ensure_ascii=False).encode("utf-8", "replace").decode()
    return json.loads(text, parse_constant=str.lower)


def _misfit(function: Callable[..., Any], columns: Mapping[str, Any]) -> str:
    """The way out for a function whose parameters are not the columns; empty where they are, or where they are unknown."""
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return ""
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    lacking = [p.name for p in named if p.default is p.empty and p.name not in columns]
    ways = []
    if lacking:
        rest = ", ".join(sorted(columns.keys() - {*FURTHER}))
        ways.append(
            f"this row has no {' and no '.join(lacking)}, but {rest}: rename the parameter or give it a default"
        )
    if not any(p.kind is p.VAR_KEYWORD for p in parameters) and columns.keys() - {p.name for p in named}:
        ways.append("add **columns to its parameters, which takes all that it does not name")
        if lacking:
            ways.append("where it makes the reward function, set its arguments in rewards.custom")
    return f"correct the function: {'; '.join(ways)}" if ways else ""
