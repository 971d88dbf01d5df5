"""Measures of several samples per problem: pass@k, maj@k, and the paired comparison of two models.

Plain functions of counts, one `Tally` a problem. Means are over problems, intervals those of `slimrl/statistics.py`: the
problems are a sample of all problems of their kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import comb, inf, isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimrl.statistics import ADDED_TO_MEAN, accuracy_interval, bounded_interval, paired_difference

Estimate = dict[str, float]
"""`value`, `low`, `high` of one model; `first`, `second`, `difference`, `low`, `high` of two."""
AtK = dict[str, dict[str, Estimate]]
"""`pass@k` and `maj@k`, each an estimate by k written as text."""
Bounds = tuple[float, float]
"""The lowest and the highest score that a reward can give; infinite where they are not known."""
UNBOUNDED: Bounds = (-inf, inf)
Standing = Literal["equal", "better", "worse", "undecided"]
LARGEST_FLOAT = 1000
"""Samples up to which numbers of subsets fit a float64; beyond, exact fractions take its place and are slower."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The answers of one problem's samples, counted. Right answers are one answer, however they are written.

    Example: samples that answer 7, 7, 8, nothing, where 7 is right, are Tally(2, (1,), 1).
    """

    right: int
    others: tuple[int, ...] = ()
    """Samples of each wrong answer, the most frequent first."""
    silent: int = 0
    """Samples without an answer: they are wrong, and vote for nothing."""

    @property
    def samples(self) -> int:
        return self.right + sum(self.others) + self.silent

    @property
    def share(self) -> float:
        """Share of right samples."""
        return self.right / self.samples


def tally(answers: Iterable[tuple[bool, Hashable]]) -> Tally:
    """Count samples, each by its verdict and by what it votes for; None is no vote."""
    counted = Counter(("right" if right else "silent" if vote is None else "other", vote) for right, vote in answers)
    sums = {kind: sum(n for (of, _), n in counted.items() if of == kind) for kind in ("right", "silent")}
    others = sorted((n for (of, _), n in counted.items() if of == "other"), reverse=True)
    return Tally(sums["right"], tuple(others), sums["silent"])


def sizes(samples: int) -> list[int]:
    """Every k that is reported: 1, 2, 4, ... and the number of samples itself."""
    return sorted({samples, *(1 << i for i in range(samples.bit_length()))})


@lru_cache(maxsize=65536)
def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a right one: 1 - C(n - c, k) / C(n, k).

    That is the unbiased estimate of a right answer within k attempts (Chen et al. 2021, arXiv:2107.03374).
    """
    return (comb(samples, k) - comb(samples - right, k)) / comb(samples, k)


@lru_cache(maxsize=65536)
def majority_at_k(votes: Tally, k: int) -> float:
    """Chance that the most frequent answer of k of the samples, drawn without replacement, is right.

    The mean verdict over all C(n, k) subsets, by counting. Of answers that are equally frequent each is taken with the same
    chance. Samples without an answer do not vote; where no sample of a subset votes, its verdict is wrong.
    """
    exact = votes.samples > LARGEST_FLOAT
    kind: Any = object if exact else np.float64
    total: Any = Fraction(0) if exact else 0.0
    for taken in range(1, min(votes.right, k) + 1):
        rivals = [size for size in votes.others if size >= taken]
        free = votes.silent + sum(votes.others) - sum(rivals)
        ways = _rivals_at_most(taken, rivals, k - taken, kind)
        shared: Any = [Fraction(1, 1 + tied) if exact else 1 / (1 + tied) for tied in range(ways.shape[1])]
        rest = np.array([comb(free, k - taken - chosen) for chosen in range(len(ways))], dtype=kind)
        total += comb(votes.right, taken) * (rest @ ways @ np.array(shared, dtype=kind))
    return float(total / comb(votes.samples, k))


def _rivals_at_most(taken: int, rivals: list[int], most: int, kind: Any) -> NDArray[Any]:
    """[most + 1, ties + 1] ways to choose so many samples of wrong answers, none of which has more than `taken` and so many of
    which have exactly that.
    """
    ways = np.zeros((most + 1, min(len(rivals), most // taken) + 1), dtype=kind)
    ways[0, 0] = 1
    for size in rivals:
        before = ways.copy()
        for chosen in range(1, min(taken, most + 1)):
            ways[chosen:] += comb(size, chosen) * before[:-chosen]
        if taken <= most:
            ways[taken:, 1:] += comb(size, taken) * before[:-taken, :-1]
    return ways


def _measures(k: int) -> dict[str, Callable[[Tally], float]]:
    return {
        "pass@k": lambda votes: pass_at_k(votes.samples, votes.right, k),
        "maj@k": lambda votes: majority_at_k(votes, k),
    }


def at_k(tallies: Iterable[Tally]) -> AtK:
    """pass@k and maj@k with 95 % intervals over problems, for every k of `sizes` up to the fewest samples of a problem."""
    votes = [*tallies]
    found: AtK = {"pass@k": {}, "maj@k": {}}
    for k in sizes(min(one.samples for one in votes)):
        for name, measure in _measures(k).items():
            values = [measure(one) for one in votes]
            low, high = accuracy_interval(values)
            found[name][str(k)] = {"value": float(np.mean(values)), "low": low, "high": high}
    return found


@dataclass(frozen=True)
class Paired:
    """Two models on the same problems: the second minus the first."""

    accuracy: Estimate
    """Strict accuracy of both, a mean over problems of the share of right samples, with the difference."""
    n: int
    """Problems."""
    verdict: Standing
    """`equal`: every problem has the same share of right samples. `better` and `worse`: the interval does not hold 0."""
    won: dict[str, tuple[float, float]]
    """Problems of which the second has a larger share right, with both shares; the largest gains first."""
    lost: dict[str, tuple[float, float]]
    at_k: AtK
    """pass@k and maj@k of both with their differences, at k up to the fewest samples that a problem has in either."""
    rewards: dict[str, Estimate] = field(default_factory=dict)
    """Mean scores of both by reward, with their difference over the problems that have one in both."""

    def table(self) -> dict[str, Any]:
        """As JSON has it, with the numbers of the accuracy, `pass@k` and `maj@k` beside the others."""
        found = asdict(self)
        return {**found.pop("accuracy"), **found.pop("at_k"), **found}


def paired(first: Mapping[str, Tally], second: Mapping[str, Tally]) -> Paired:
    """Compare two models by problem; both have the same problems."""
    shares = {name: (votes.share, second[name].share) for name, votes in first.items()}
    accuracy = _difference(first, second, lambda votes: votes.share)
    moved = sorted((item for item in shares.items() if item[1][0] != item[1][1]), key=lambda item: _gain(item[1]))
    found: AtK = {"pass@k": {}, "maj@k": {}}
    for k in sizes(min(votes.samples for votes in (*first.values(), *second.values()))):
        for name, measure in _measures(k).items():
            found[name][str(k)] = _difference(first, second, measure)
    verdict: Standing = "better" if accuracy["low"] > 0 else "worse" if accuracy["high"] < 0 else "undecided"
    return Paired(
        accuracy=accuracy,
        n=len(first),
        verdict=verdict if moved else "equal",
        won={name: pair for name, pair in reversed(moved) if _gain(pair) > 0},
        lost={name: pair for name, pair in moved if _gain(pair) < 0},
        at_k=found,
    )


def mean_score(scores: Sequence[float], bounds: Bounds = UNBOUNDED) -> Estimate:
    """The mean of a reward's scores, one a problem, with its 95 % interval.

    The ends of what was seen stand for bounds that are not known: an interval may then be without a width.
    """
    low, high = bounded_interval(scores, *_ends(scores, bounds), added=ADDED_TO_MEAN)
    return {"value": float(np.mean(scores)), "low": low, "high": high}


def score_difference(
    before: Mapping[str, float], after: Mapping[str, float], bounds: Bounds = UNBOUNDED
) -> dict[str, float]:
    """The mean change of scores by problem, as `paired_difference` has it, over the problems that have one in both.

    Empty where there is no such problem.
    """
    shared = [problem for problem in before if problem in after]
    if not shared:
        return {}
    low, high = _ends([side[problem] for side in (before, after) for problem in shared], bounds)
    return paired_difference(
        *({problem: side[problem] for problem in shared} for side in (before, after)), reach=high - low
    )


def paired_scores(
    before: Mapping[str, float], after: Mapping[str, float], bounds: Bounds = UNBOUNDED
) -> Estimate | None:
    """A reward of two models by problem, as `Paired.rewards` has it; None where no problem has a score in both."""
    change = score_difference(before, after, bounds)
    if not change:
        return None
    shared = [problem for problem in before if problem in after]
    means = {
        key: float(np.mean([side[problem] for problem in shared]))
        for key, side in (("first", before), ("second", after))
    }
    return means | {"difference": change["change"], "low": change["low"], "high": change["high"]}


def both_bounds(first: Bounds, second: Bounds) -> Bounds:
    """Bounds that hold the known ones of both models."""
    lows, highs = ([end for end in ends if isfinite(end)] for ends in zip(first, second, strict=True))
    return min(lows, default=-inf), max(highs, default=inf)


def written_bounds(bounds: Mapping[str, Bounds]) -> dict[str, list[float | None]]:
    """Bounds by reward as JSON has them: null where one is not known."""
    return {name: [end if isfinite(end) else None for end in ends] for name, ends in bounds.items()}


def read_bounds(written: Mapping[str, Sequence[float | None]]) -> dict[str, Bounds]:
    """The bounds that `written_bounds` wrote. Raises ValueError, TypeError or AttributeError for anything else."""
    found: dict[str, Bounds] = {}
    for name, (low, high) in written.items():
        if any(isinstance(end, bool | str) for end in (low, high)):
            raise TypeError(f"bounds of {name} are no numbers")
        found[name] = (-inf if low is None else float(low), inf if high is None else float(high))
        if not found[name][0] <= found[name][1]:
            raise ValueError(f"bounds of {name} are not in order")
    return found


def _ends(scores: Sequence[float], bounds: Bounds) -> Bounds:
    """The bounds, or the scores at the ends where one is not known or does not hold for all of them."""
    low, high = bounds
    least, most = min(scores), max(scores)
    return min(low, least) if isfinite(low) else least, max(high, most) if isfinite(high) else most


def _gain(pair: tuple[float, float]) -> float:
    return pair[1] - pair[0]


def _difference(first: Mapping[str, Tally], second: Mapping[str, Tally], measure: Callable[[Tally], float]) -> Estimate:
    before, after = ({name: measure(votes) for name, votes in side.items()} for side in (first, second))
    change = paired_difference(before, after)
    means = (float(np.mean([*side.values()])) for side in (before, after))
    return dict(zip(("first", "second"), means, strict=True)) | {
        "difference": change["change"],
        "low": change["low"],
        "high": change["high"],
    }
