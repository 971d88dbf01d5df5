"""The check that gold answers earn the maximum, before anything is trained on them."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from slimrl.errors import SettingsError
from slimrl.records import Completion, Group, Played, Problem, Rollout
from slimrl.rewards import Reward
from slimrl.rewards.judge import Judge
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
class GoldTrial:
    """The scores that the gold answers of a sample of rows got from a reward which nothing is demanded of."""

    reward: str
    rows: int
    scores: tuple[float, ...]
    """Of the rows to which it applies, in their order."""


@dataclass(frozen=True)
class GoldReport:
    """The result of checking the gold answers of `n` problems."""

    n: int
    failures: tuple[GoldFailure, ...]
    maximum: float
    """Weighted sum that a gold answer is held to: of the rewards whose best value is known."""
    trials: tuple[GoldTrial, ...] = ()
    """One for each of the other rewards."""


Submit = Callable[[Sampled], Future[Group]]  # scores the completions of a problem, now or later


Completed = Callable[[Sequence[str]], Sequence[tuple[str, Sequence[int]]]]
"""Texts as they read when a completion holds them, and its ids."""


def bare(texts: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """The texts as they are, without ids."""
    return [(text, ()) for text in texts]


def check_gold(
    task: Task,
    problems: Sequence[Problem],
    rewards: Sequence[Reward],
    submit: Submit | None = None,
    completed: Completed = bare,
    episodes: bool = False,
) -> GoldReport:
    """Checks that each gold answer, rendered in the required form, earns the maximum of every reward and is graded right.

    An empty completion stands for it, so soft overlong punishment is at its maximum, 0, and cosine_length at its value for a
    right answer of no length; the user's functions get the ids of `completed`, which encodes and decodes texts as completions
    are. A reward without a known best value, or that is a judge, is tried on a few rows, evenly spread: it must neither fail
    nor leave all of them without a score. For an endless training set pass a sample. With `submit` rewards are asked through
    it; with `episodes` gold answers are episodes of one turn. Raises SettingsError where a reward function misbehaves.
    """
    empty = Completion(prompt_ids=(), token_ids=(), logprobs=(), finish="stop")
    pairs = [*zip(problems, completed([task.gold_text(problem) for problem in problems]), strict=True)]
    tried = {reward.name: _tried(reward, len(problems)) for reward in rewards if reward.sample}
    bests = {
        reward.name: reward.best
        for reward in rewards
        if reward.best is not None and not reward.sample and not reward.draws
    }
    sampled = [
        Sampled(
            problem,
            [empty],
            [text],
            step=0,
            strict=True,
            skip=frozenset(n for n in tried if index not in tried[n]),
            played=[Played((("assistant", text),))] if episodes else (),
            gold_ids=(ids,),
        )
        for index, (problem, (text, ids)) in enumerate(pairs)
    ]
    asked = [] if submit is None else [submit(one) for one in sampled]
    failures = []
    seen: dict[str, list[Rollout]] = {name: [] for name in tried}
    for index, (problem, (text, _)) in enumerate(pairs):
        (rollout,) = (asked[index].result() if asked else score(sampled[index], rewards, task)).rollouts
        for name in tried.keys() - sampled[index].skip:
            seen[name].append(rollout)
        wanted = dict(bests)
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
    maximum = math.fsum(reward.weight * bests[reward.name] for reward in rewards if reward.name in bests)
    functions = {reward.name: reward.function for reward in rewards}
    trials = tuple(_trial(name, rollouts, functions[name]) for name, rollouts in seen.items() if rollouts)
    return GoldReport(len(problems), tuple(failures), maximum, trials)


def _tried(reward: Reward, n: int) -> frozenset[int]:
    """Indices of the gold answers, of n, that a reward is tried on."""
    return frozenset() if reward.reads_environments else _spread(n, reward.sample)


def _spread(n: int, wanted: int) -> frozenset[int]:
    """Indices of `wanted` of n rows, or of all, at equal distances."""
    return frozenset(i * n // wanted for i in range(wanted)) if wanted < n else frozenset(range(n))


def _trial(name: str, rollouts: Sequence[Rollout], function: object) -> GoldTrial:
    """Raises SettingsError where each of the rows failed, if only by what is excused in one."""
    scores = tuple(rollout.scores[name] for rollout in rollouts if name in rollout.scores)
    failures = (reason for rollout in rollouts for reason in (rollout.unscorable, rollout.unmeasured))
    reasons = [reason for reason in failures if reason.startswith(f"reward {name} ")]
    if reasons and len(reasons) == len(rollouts):
        way_out = "correct rewards or the judge"
        if isinstance(function, Judge):
            shown = [function.failure.where, function.failure.remedy or way_out]
            way_out = ", ".join(filter(None, shown))
        raise SettingsError(
            f"{reasons[0]}, and so on all of {len(rollouts)} gold answers that it was tried on; {way_out}"
        )
    return GoldTrial(name, len(rollouts), scores)
