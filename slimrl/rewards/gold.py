"""The check that gold answers earn the maximum, before anything is trained on them."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from slimrl.records import Completion, Group, Problem
from slimrl.rewards import Reward
from slimrl.rewards.scoring import Sampled, score
from slimrl.tasks import Task


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
    """The text that was scored."""


@dataclass(frozen=True)
class GoldReport:
    """The result of checking the gold answers of `n` problems."""

    n: int
    failures: tuple[GoldFailure, ...]
    maximum: float
    """Weighted sum that a perfect completion earns."""


Submit = Callable[[Sampled], Future[Group]]  # scores the completions of a problem, now or later


def check_gold(
    task: Task,
    problems: Sequence[Problem],
    rewards: Sequence[Reward],
    submit: Submit | None = None,
    read_back: Callable[[Sequence[str]], Sequence[str]] = list,
) -> GoldReport:
    """Checks that each gold answer, rendered in the required form, earns the maximum of every reward and is graded right.

    An empty completion stands for its tokens, so soft overlong punishment is at its maximum, 0. For an endless training set
    pass a sample. With `submit` rewards are asked through it. `read_back` encodes and decodes gold texts with the policy's
    tokenizer, as completions are. Raises SettingsError where a reward function misbehaves.
    """
    empty = Completion(prompt_ids=(), token_ids=(), logprobs=(), finish="stop")
    texts = read_back([task.gold_text(problem) for problem in problems])
    pairs = zip(problems, texts, strict=True)
    sampled = [Sampled(problem, [empty], [text], step=0, strict=True) for problem, text in pairs]
    asked = [] if submit is None else [submit(one) for one in sampled]
    failures = []
    for index, (problem, text) in enumerate(zip(problems, texts, strict=True)):
        (rollout,) = (asked[index].result() if asked else score(sampled[index], rewards, task)).rollouts
        wanted = {reward.name: reward.best for reward in rewards if not reward.draws}
        got: dict[str, float | None] = {name: rollout.scores.get(name) for name in wanted}
        if not task.earns(problem):
            wanted.pop("correct", None)
        elif "correct" not in wanted:
            wanted["correct"], got["correct"] = 1.0, float(rollout.correct)
        for name, best in wanted.items():
            value = got[name]
            if value is None and not rollout.unscorable:
                continue  # a reward that does not apply to this row
            if value is None or abs(value - best) > 1e-6:
                failures.append(GoldFailure(problem.id, problem.answer, name, value, best, text))
    return GoldReport(len(problems), tuple(failures), math.fsum(reward.weight * reward.best for reward in rewards))
