"""What is paid. A reward is a function with TRL's signature, a weight and declared bounds.

    def reward(completions, **columns) -> list[float | None]

`columns` holds, one item a completion: prompts, completion_ids, id, question, answer, solution, difficulty, and every
other field of the data row. None means "does not apply here" and is left out of the sum, as in TRL (a data set of several
tasks has a reward for each); a completion to which no reward applies is unscorable, which is not 0.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from slimrl.config.rewards import RewardsConfig
from slimrl.errors import SettingsError
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.rewards import case_study
from slimrl.rewards.answer import UNDECIDED, correct, format_
from slimrl.rewards.custom import load_function
from slimrl.rewards.length import soft_overlong, soft_overlong_reward

if TYPE_CHECKING:
    from slimrl.tasks import Task

__all__ = [
    "GoldFailure", "GoldReport", "Outcome", "Reward", "Unscored", "assemble", "check_gold", "load_rewards", "outcomes_of",
    "score", "soft_overlong", "unpaid_when_truncated",
]  # fmt: skip


@dataclass(frozen=True)
class Reward:
    """A function of completions, and what it counts."""

    name: str
    function: Callable[..., Any]
    """TRL's signature; returns one float, or None, for each completion."""
    weight: float
    low: float
    high: float
    """Bounds before the weight; the gold answer must earn the better one."""
    completions: Literal["text", "messages"] = "text"

    @property
    def best(self) -> float:
        """What the gold answer must earn: `high`, or `low` where the weight is negative."""
        return self.high if self.weight > 0 else self.low


_BOUNDS = {
    "correct": (0.0, 1.0),
    "format": (0.0, 1.0),
    "match_format_exactly": (0.0, 3.0),
    "match_format_approximately": (-2.0, 2.0),
    "check_answer": (-1.0, 3.0),
    "check_numbers": (0.0, 1.5),
    "soft_overlong": (-1.0, 0.0),
}
_CASE_STUDY = ("match_format_exactly", "match_format_approximately", "check_answer", "check_numbers")


def load_rewards(
    config: RewardsConfig, task: Task, *, max_new_tokens: int, elsewhere: bool = False
) -> tuple[Reward, ...]:
    """The rewards whose weight is not 0; with `elsewhere` the user's code is not run here, since workers call it.

    Raises SettingsError where the case study's rewards meet another style than its tags, a custom function cannot be
    loaded, or two rewards have the same name.
    """
    functions: dict[str, Callable[..., Any]] = {
        "correct": partial(correct, task),
        "format": partial(format_, task),
    }
    for name in _CASE_STUDY:
        functions[name] = getattr(case_study, f"{name}_published" if config.as_published else name)
        if getattr(config, name) and task.style.name != "tags":
            raise SettingsError(
                f"rewards.{name} reads the case study's tags, which task.style={task.style.name} does not ask for; "
                "set task.style=tags"
            )
    functions["soft_overlong"] = partial(soft_overlong_reward, max_new_tokens, config.buffer(max_new_tokens))
    rewards = [
        Reward(name, function, getattr(config, name), *_BOUNDS[name])
        for name, function in functions.items()
        if getattr(config, name)
    ]
    for spec, custom in config.custom.items():
        if custom.weight == 0:
            continue
        name = spec.rpartition(":")[2]
        if any(name == reward.name for reward in rewards):
            raise SettingsError(f"rewards.custom: {spec!r} has the name of another reward, {name}; rename the function")
        function = _called_elsewhere if elsewhere else load_function(spec)
        rewards.append(Reward(name, function, custom.weight, custom.low, custom.high, custom.completions))
    return tuple(rewards)


def _called_elsewhere(**_: Any) -> list[float]:
    raise AssertionError("this process loads no reward functions of the user's")


def unpaid_when_truncated(group: Group) -> Group:
    """The group with 0 for every truncated completion, whatever it would have earned, in every reward (Dr. GRPO's code)."""
    rollouts = [
        replace(r, reward=0.0, scores=dict.fromkeys(r.scores, 0.0)) if r.completion.finish == "length" else r
        for r in group.rollouts
    ]
    return replace(group, rollouts=tuple(rollouts))


@dataclass(frozen=True)
class Unscored:
    """Why a reward has no score for a completion."""

    reason: str
    """Goes on from the reward's name."""
    where: str = ""
    """Innermost lines of the function that failed."""
    excused: bool = False
    """No fault of the function: a checker found no verdict in time."""


Outcome = float | Unscored | None
"""Of one reward for one completion; None: it does not apply."""


def score(
    problem: Problem,
    completions: Sequence[Completion],
    texts: Sequence[str],
    rewards: Sequence[Reward],
    task: Task,
    *,
    step: int,
    strict: bool = False,
) -> Group:
    """What the completions of one problem earn.

    A completion that a reward fails on (a value that is no number, not finite or outside of its bounds; an exception; a
    checker's missed deadline), or to which no reward applies, is `unscorable`, never 0. With `strict`, as in the gold
    check and in a run's first step, failures of the function raise SettingsError instead, naming the reward, the problem,
    the completion and where it happened.
    """
    outcomes = {reward.name: outcomes_of(reward, problem, completions, texts, task) for reward in rewards}
    correct = [task.grade(text, problem.answer).strict for text in texts]
    return assemble(problem, completions, texts, rewards, correct, outcomes, step=step, strict=strict)


def assemble(
    problem: Problem,
    completions: Sequence[Completion],
    texts: Sequence[str],
    rewards: Sequence[Reward],
    correct: Sequence[bool],
    outcomes: Mapping[str, Sequence[Outcome]],
    *,
    step: int,
    strict: bool = False,
) -> Group:
    """The group of what every reward says of every completion, as `score` has it."""
    weights = {reward.name: reward.weight for reward in rewards}
    rollouts = []
    for row, (completion, text, right) in enumerate(zip(completions, texts, correct, strict=True)):
        scores: dict[str, float] = {}
        reason = ""
        for reward in rewards:
            outcome = outcomes[reward.name][row]
            if isinstance(outcome, Unscored):
                if strict and not outcome.excused:
                    raise SettingsError(_refusal(reward.name, outcome, problem, text))
                reason = reason or f"reward {reward.name} {outcome.reason}"
            elif outcome is not None:
                scores[reward.name] = outcome
        reason = reason or ("" if scores else "no reward applies")
        total = 0.0 if reason else math.fsum(weights[name] * value for name, value in scores.items())
        rollouts.append(Rollout(problem, completion, text, right, scores, total, reason))
    return Group(tuple(rollouts), step)


def _refusal(name: str, outcome: Unscored, problem: Problem, text: str) -> str:
    at = f" ({outcome.where})" if outcome.where else ""
    return (
        f"reward {name} {outcome.reason}{at} on problem {problem.id}, completion {text[:80]!r}; mend the function or "
        "remove it from rewards"
    )


def outcomes_of(
    reward: Reward, problem: Problem, completions: Sequence[Completion], texts: Sequence[str], task: Task
) -> list[Outcome]:
    """What one reward says of the completions; whatever it does wrong is said of them, never raised."""
    try:
        values = _call(reward, problem, completions, texts, task)
        if hasattr(values, "tolist"):  # an array or a tensor
            values = values.tolist()
        if not isinstance(values, list | tuple):
            return [Unscored(f"returned {type(values).__name__} instead of a list")] * len(texts)
        if len(values) != len(texts):
            return [Unscored(f"returned {len(values)} values for {len(texts)} completions")] * len(texts)
        return [None if value is None else _checked(reward, value) for value in values]
    except (Exception, SystemExit) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        return [Unscored(f"raised {type(error).__name__}: {reason}", _innermost(error))] * len(texts)


def _innermost(error: BaseException) -> str:
    """The last two places of a traceback that are not ours, as `file.py:12 in function`."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return ", ".join(
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno} in {frame.name}" for frame in reversed(frames[-2:])
    )


def _call(reward: Reward, problem: Problem, completions: Sequence[Completion], texts: Sequence[str], task: Task) -> Any:
    """Whatever the function returns; raises whatever it raises."""
    n = len(texts)
    messages = task.messages(problem)
    as_messages = reward.completions == "messages"
    own: dict[str, object] = {
        "id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "solution": problem.solution,
        "difficulty": problem.difficulty,
    }
    columns = {name: [value] * n for name, value in {**problem.columns, **own}.items()}
    return reward.function(
        prompts=[messages if as_messages else "\n\n".join(m["content"] for m in messages) for _ in range(n)],
        completions=[[{"role": "assistant", "content": text}] if as_messages else text for text in texts],
        completion_ids=[list(completion.token_ids) for completion in completions],
        **columns,
    )


def _checked(reward: Reward, value: object) -> float | Unscored:
    """The value as a float, or what is wrong with it."""
    if value is UNDECIDED:
        return Unscored(UNDECIDED.value, excused=True)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy's or torch's
        value = value.item()
    if not isinstance(value, Real):
        return Unscored(f"returned {type(value).__name__} instead of a number")
    number = float(value)
    if not math.isfinite(number):
        return Unscored(f"returned {number}")
    if not reward.low - 1e-6 <= number <= reward.high + 1e-6:
        return Unscored(f"returned {number:g}, outside of its bounds {reward.low:g} to {reward.high:g}")
    return number


@dataclass(frozen=True)
class GoldFailure:
    """A gold answer that does not earn what it should."""

    id: str
    answer: str
    reward: str
    """`correct` also where that reward has no weight: accuracy is measured by it whatever is paid."""
    got: float | None
    expected: float
    text: str
    """What was scored."""


@dataclass(frozen=True)
class GoldReport:
    """What gold answers earn."""

    n: int
    """Problems checked."""
    failures: tuple[GoldFailure, ...]
    maximum: float
    """Weighted sum that a perfect completion earns."""


Submit = Callable[[Problem, Sequence[Completion], Sequence[str]], Future[Group]]
"""Asks for what completions of a problem earn, strictly."""
ReadBack = Callable[[Sequence[str]], Sequence[str]]
"""Texts as a tokenizer encodes and decodes them."""


def check_gold(
    task: Task,
    problems: Sequence[Problem],
    rewards: Sequence[Reward],
    submit: Submit | None = None,
    read_back: ReadBack | None = None,
) -> GoldReport:
    """Whether each gold answer, rendered in the required form, earns the maximum of every reward and is graded right.

    An empty completion stands for its tokens, so soft overlong punishment is at its maximum, 0. For an endless training set
    pass a sample. With `submit` rewards are asked through it. With `read_back` gold texts are scored as they come back from
    the policy's tokenizer, which is how completions are. Raises SettingsError where a reward function misbehaves.
    """
    empty = Completion(prompt_ids=(), token_ids=(), logprobs=(), finish="stop")
    texts: Sequence[str] = [task.gold_text(problem) for problem in problems]
    texts = texts if read_back is None else read_back(texts)
    pairs = list(zip(problems, texts, strict=True))

    def scored(problem: Problem, text: str) -> Group:
        return score(problem, [empty], [text], rewards, task, step=0, strict=True)

    asked = [] if submit is None else [submit(problem, [empty], [text]) for problem, text in pairs]
    failures = []
    for index, (problem, text) in enumerate(pairs):
        rollout = (asked[index].result() if asked else scored(problem, text)).rollouts[0]
        wanted = {reward.name: reward.best for reward in rewards}
        got: dict[str, float | None] = {name: rollout.scores.get(name) for name in wanted}
        if "correct" not in wanted:
            wanted["correct"], got["correct"] = 1.0, float(rollout.correct)
        for name, best in wanted.items():
            value = got[name]
            if value is None and not rollout.unscorable:
                continue  # a reward that does not apply to this row
            if value is None or abs(value - best) > 1e-6:
                failures.append(GoldFailure(problem.id, problem.answer, name, value, best, text))
    return GoldReport(len(problems), tuple(failures), math.fsum(reward.weight * reward.best for reward in rewards))
