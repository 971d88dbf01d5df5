"""Intervals, tests and power: plain functions of numbers, most of them one number per training seed.

Arms of a study share problems, random draws and held-out items within a seed, so a comparison is a one-sample problem:
Student's t over the differences within a seed. Holm's method (Scandinavian Journal of Statistics 6, 1979) covers several
comparisons. Values are shares between 0 and 1; a point is 0.01.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtr, stdtr, stdtrit

from slimrl.text import counted, points, signed_points

CONFIDENCE = 0.95
POWER = 0.8
FEWEST_SEEDS = 5
"""With fewer a study is exploratory."""
MOST_SEEDS = 10_000
NO_SPREAD = 1e-9
"""Standard deviations below this are rounding: accuracies are counts of problems, so real ones are far above."""
ADDED_TO_MEAN = 1.5
ADDED_TO_CHANGE = 1.25
"""Problems put to those seen at either end of the scale (right and wrong, gained and lost): the fewest with which 95 % intervals
cover at least 93.5 % from 30 problems and one sample each on (benchmarks/coverage.py)."""
Array = NDArray[np.float64]
Verdict = Literal["better", "worse", "no difference", "undecided", "identical"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and Student's interval around it; `sd` is the spread of single values."""

    n: int
    mean: float
    sd: float
    """NaN for a single value."""
    low: float
    high: float
    p: float
    """Two-sided, of a true mean of 0."""


@dataclass(frozen=True)
class Judgement:
    """A verdict, and the same in words."""

    verdict: Verdict
    words: str
    bound: float
    """The end of the interval that is farther from 0: the difference is no larger than this."""
    more_seeds: int
    """About how many more would decide if mean and spread stayed the same; 0 if decided, or if nothing is known."""


def student_t(freedom: int) -> float:
    """Half the width of Student's interval in standard errors, for these degrees of freedom."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of `values`, one per seed.

    It is infinite, and p is 1, for fewer than two values, and for values that are all equal (but for rounding): accuracies are
    counts, which a few seeds may share by chance, so equal values do not show that there is no spread.
    """
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    sd = float(np.std(np.asarray(values, dtype=np.float64), ddof=1)) if n > 1 else math.nan
    if n < 2 or sd < NO_SPREAD:
        return Interval(n, mean, 0.0 if n > 1 else math.nan, -math.inf, math.inf, 1.0)
    error = sd / math.sqrt(n)
    half = student_t(n - 1) * error
    p = 2.0 * float(stdtr(n - 1, -abs(mean) / error))
    return Interval(n, mean, sd, mean - half, mean + half, p)


def welch(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The mean of `after` less that of `before`, two independent samples of two or more values, with Welch's 95 % interval.

    `sd` is the standard error of the difference. Where neither has a spread, the interval is infinite, as that of `interval`.
    """
    errors = [float(np.var(np.asarray(values), ddof=1)) / len(values) for values in (before, after)]
    mean, error = math.fsum(after) / len(after) - math.fsum(before) / len(before), math.sqrt(sum(errors))
    n = len(before) + len(after)
    if error < NO_SPREAD:
        return Interval(n, mean, 0.0, -math.inf, math.inf, 1.0)
    freedom = error**4 / sum(e * e / (len(values) - 1) for e, values in zip(errors, (before, after), strict=True))
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Interval(n, mean, error, mean - half, mean + half, 2.0 * float(stdtr(freedom, -abs(mean) / error)))


def attainable(weights: Mapping[str, float]) -> float:
    """The largest possible weighted sum of shares: 1 for a difference, 2 for an interaction of two switches."""
    return math.fsum(weight for weight in weights.values() if weight > 0)


def within(found: Interval, low: float, high: float) -> Interval:
    """The interval clipped to the possible values of its mean; an infinite one stays as it is."""
    if not math.isfinite(found.low):
        return found
    return replace(found, low=max(found.low, low), high=min(found.high, high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those below alpha bounds the family-wise error by alpha under any dependence."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Chance that one of our runs beats one of theirs, ties counted half (Agarwal et al. 2021, arXiv:2108.13264)."""
    if not ours or not theirs:
        return math.nan
    gaps = np.subtract.outer(np.asarray(ours), np.asarray(theirs))
    return float(np.mean((gaps > 0) + 0.5 * (gaps == 0)))


def judge(
    difference: Interval,
    adjusted_p: float,
    margin: float,
    comparisons: int,
    *,
    identical: bool = False,
    diverged: int = 0,
) -> Judgement:
    """The verdict on a difference: Holm's p can show that there is one, the interval that there is none that matters.

    `margin` is the smallest difference that matters to the reader, declared before the study. An interval within it gives "no
    difference larger than", which is the two one-sided tests procedure at half the usual error (Schuirmann 1987).
    `identical` means that all pairs of runs are equal to the last bit; `diverged` is the number of runs that did.
    """
    low, high, mean = difference.low, difference.high, difference.mean
    bound = max(abs(low), abs(high))
    if identical:
        return Judgement("identical", "identical: the runs are equal to the last bit", 0.0, 0)
    if difference.n < 2:
        return Judgement("undecided", "undecided: fewer than two seeds say nothing of spread", math.inf, 0)
    if difference.sd == 0.0:
        words = f"undecided: every seed differs by {signed_points(mean)}, so there is no spread to judge by"
        return Judgement("undecided", words, bound, 0)
    if adjusted_p < 1 - CONFIDENCE:
        verdict: Verdict = "better" if mean > 0 else "worse"
        return Judgement(verdict, f"{verdict} by {points(abs(mean))}", bound, 0)
    if bound <= margin:
        return Judgement("no difference", f"no difference larger than {points(bound)}", bound, 0)
    undecided = f"undecided, from {signed_points(low)} to {signed_points(high)}"
    if diverged:  # such a run is far from the others, so the spread says nothing of further seeds
        words = f"{counted(diverged, 'run')} diverged, far from the others"
        return Judgement("undecided", f"{undecided}: {words}", bound, 0)
    more = seeds_to_decide(difference, margin, comparisons) - difference.n
    return Judgement("undecided", f"{undecided}: needs about {counted(more, 'more seed')}", bound, more)


def seeds_to_decide(difference: Interval, margin: float, comparisons: int) -> int:
    """Seeds with which p would be below the Bonferroni level, or the interval within the margin, if mean and spread stayed.

    Never fewer than there are, as long as Holm's method has not decided.
    """
    effect = abs(difference.mean)

    def decided(n: int) -> bool:
        error = difference.sd / math.sqrt(n)
        return _critical_t(n, comparisons) * error < effect or effect + student_t(n - 1) * error <= margin

    return _smallest(decided)


def detectable_effect(n: int, sd: float, comparisons: int) -> float:
    """Smallest true difference that n seeds find with a chance of POWER in the first step of Holm's method.

    `sd` is the standard deviation of the difference over seeds. The power is that of the two-sided t test (noncentral t).
    """
    if n < 2:
        return math.inf
    low, high = 0.0, 1.0
    while _power(high, n, comparisons) < POWER:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, n, comparisons) < POWER else (low, middle)
    return high * sd


def seeds_needed(effect: float, sd: float, comparisons: int) -> int:
    """Seeds that find a true difference of `effect` with a chance of POWER, at most MOST_SEEDS."""
    if effect <= 0 or sd < 0:
        return MOST_SEEDS
    if sd == 0:
        return 2
    return _smallest(lambda n: _power(effect / sd, n, comparisons) >= POWER)


def _power(effect: float, n: int, comparisons: int) -> float:
    """Power of the two-sided one-sample t test at the Bonferroni level; `effect` in standard deviations."""
    critical = _critical_t(n, comparisons)
    shift = effect * math.sqrt(n)
    # far out the noncentral t is not a number, and the power there is 1
    below, beyond = nctdtr(n - 1, shift, critical), nctdtr(n - 1, shift, -critical)
    return float(1 - np.nan_to_num(below, nan=0.0) + np.nan_to_num(beyond, nan=0.0))


def _critical_t(n: int, comparisons: int) -> float:
    """The t of n seeds above which a difference is significant at the Bonferroni level."""
    return -float(stdtrit(n - 1, (1 - CONFIDENCE) / 2 / comparisons))


def _smallest(holds: Callable[[int], bool]) -> int:
    """The smallest n, from 2 to MOST_SEEDS, that meets a condition which stays true once it is."""
    return 2 + bisect_left(range(2, MOST_SEEDS), True, key=holds)


def accuracy_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of shares of right answers, one a problem: see `bounded_interval`."""
    return bounded_interval(values, 0.0, 1.0, added=ADDED_TO_MEAN)


def paired_difference(
    before: Mapping[str, float], after: Mapping[str, float], *, reach: float = 1.0
) -> dict[str, float]:
    """Mean change over the same problems with its 95 % interval: `change`, `low`, `high`, `n`.

    `reach` is the largest change that a problem can show, either way. The interval is that of `bounded_interval`, for
    right-or-wrong answers close to Bonett and Price's (Journal of Educational and Behavioral Statistics 37, 2012).
    """
    changes = [after[problem] - before[problem] for problem in before]
    low, high = bounded_interval(changes, -reach, reach, added=ADDED_TO_CHANGE)
    return {"change": float(np.mean(changes)), "low": low, "high": high, "n": len(changes)}


def bounded_interval(values: Sequence[float], lowest: float, highest: float, *, added: float) -> tuple[float, float]:
    """95 % interval of the mean of a population of problems, of which `values`, between `lowest` and `highest`, are a sample.

    A single problem gives the whole range.
    """
    if len(values) < 2:
        return lowest, highest
    mean, variance = np.array([np.mean(values)]), np.array([np.var(values)])
    low, high = interval_of_moments(len(values), mean, variance, lowest, highest, added=added)
    return float(low[0]), float(high[0])


def interval_of_moments(
    n: int, mean: Array, variance: Array, lowest: float, highest: float, *, added: float
) -> tuple[Array, Array]:
    """[m] means and variances (divisor n) of m samples of n > 1 problems each -> [m] lower and upper ends.

    Student's t with n - 1 degrees of freedom, after `added` problems at either end were put to those that were seen, as
    Agresti and Coull (The American Statistician 52, 1998) do for right or wrong. What was not seen has a place so: the interval
    is never without a width, also where no answer changed, nor too short where a few problems decide the mean.
    """
    total = n + 2 * added
    centre = (n * mean + added * (lowest + highest)) / total
    squares = n * (variance + (mean - centre) ** 2) + added * ((lowest - centre) ** 2 + (highest - centre) ** 2)
    half = student_t(n - 1) * np.sqrt(squares) / total
    return np.maximum(lowest, centre - half), np.minimum(highest, centre + half)
