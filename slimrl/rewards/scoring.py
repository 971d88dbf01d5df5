"""From the completions of one problem to a scored group: call each reward, check its values, pay the weighted sum."""

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from slimrl.errors import SettingsError
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.rewards import Reward
from slimrl.rewards.builtin import UNDECIDED
from slimrl.tasks import Task


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
    seed: int = 0
    """Of the run; with the step it decides what rewards draw."""

    @property
    def draw(self) -> tuple[int, int]:
        """Seed and step, on which rewards that draw depend."""
        return self.seed, self.step


@dataclass(frozen=True)
class Unscored:
    """A completion for which a reward has no score."""

    reason: str
    """Continues a sentence that begins with the reward's name."""
    where: str = ""
    """Innermost lines of the function that failed."""
    excused: bool = False
    """No fault of the function: a checker found no verdict in time."""


Outcome = float | Unscored | None  # the result of one reward for one completion; None: the reward does not apply


def score(sampled: Sampled, rewards: Sequence[Reward], task: Task) -> Group:
    """The group of one problem's completions with what each of them earns.

    A completion that a reward fails on (a value that is no number, not finite or outside of its bounds; an exception; a
    checker's missed deadline), or to which none of them applies, is `unscorable`, never 0; where there are no rewards at all, it
    is 0. If `sampled` is strict, failures of the function raise SettingsError, which names the reward, the problem, the
    completion and the line.
    """
    correct = [task.grade(text, sampled.problem.answer).strict for text in sampled.texts]
    return assemble(sampled, rewards, correct, {reward.name: outcomes_of(reward, sampled, task) for reward in rewards})


def assemble(
    sampled: Sampled, rewards: Sequence[Reward], correct: Sequence[bool], outcomes: Mapping[str, Sequence[Outcome]]
) -> Group:
    """The group, from the verdict on each completion and the outcomes of each reward by name; raises as `score` does."""
    weights = {reward.name: reward.weight for reward in rewards}
    rollouts = []
    for row, (completion, text, right) in enumerate(zip(sampled.completions, sampled.texts, correct, strict=True)):
        scores: dict[str, float] = {}
        reason = ""
        for reward in rewards:
            outcome = outcomes[reward.name][row]
            if isinstance(outcome, Unscored):
                if sampled.strict and not outcome.excused:
                    raise _refusal(reward.name, outcome, sampled.problem, text)
                reason = reason or f"reward {reward.name} {outcome.reason}"
            elif outcome is not None:
                scores[reward.name] = outcome
        reason = reason or ("" if scores or not rewards else "no reward applies")
        total = 0.0 if reason else math.fsum(weights[name] * value for name, value in scores.items())
        rollouts.append(Rollout(sampled.problem, completion, text, right, scores, total, reason))
    return Group(tuple(rollouts), sampled.step)


def unpaid_when_truncated(group: Group) -> Group:
    """The group with 0 for every truncated completion, whatever it would have earned, in every reward (Dr. GRPO's code)."""
    rollouts = [
        replace(r, reward=0.0, scores=dict.fromkeys(r.scores, 0.0)) if r.completion.finish == "length" else r
        for r in group.rollouts
    ]
    return replace(group, rollouts=tuple(rollouts))


def _refusal(name: str, outcome: Unscored, problem: Problem, text: str) -> SettingsError:
    at = f" ({outcome.where})" if outcome.where else ""
    return SettingsError(
        f"reward {name} {outcome.reason}{at} on problem {problem.id}, completion {text[:80]!r}; correct the function or "
        "remove it from rewards"
    )


def outcomes_of(reward: Reward, sampled: Sampled, task: Task) -> list[Outcome]:
    """The outcome of one reward for each completion; a failure of its function is an outcome too and never raised."""
    texts = sampled.texts
    try:
        values = _call(reward, sampled, task)
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
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in reversed(frames[-2:]))


def _call(reward: Reward, sampled: Sampled, task: Task) -> Any:
    """The values that the function returns; raises what it raises."""
    problem, n = sampled.problem, len(sampled.texts)
    messages = task.messages(problem)
    as_messages = reward.completions == "messages"
    own = {name: getattr(problem, name) for name in ("id", "question", "answer", "solution", "difficulty")}
    if not problem.solution:  # the data may have its answers in a column of this name, as TRL's data sets do
        own["solution"] = problem.columns.get("solution", "")
    columns = {name: [value] * n for name, value in {**problem.columns, **own}.items()}
    drawn = {"draw": sampled.draw} if reward.draws else {}
    return reward.function(
        prompts=[messages if as_messages else "\n\n".join(m["content"] for m in messages) for _ in range(n)],
        completions=[[{"role": "assistant", "content": text}] if as_messages else text for text in sampled.texts],
        completion_ids=[list(completion.token_ids) for completion in sampled.completions],
        **{**columns, **drawn},
    )


def _checked(reward: Reward, value: object) -> float | Unscored:
    """The value as a float, or the reason why it is none."""
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
