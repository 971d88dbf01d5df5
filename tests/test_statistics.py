"""The numbers behind a verdict: by hand, against scipy, against an independent computation, and by simulation."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from slimrl.statistics import (
    CONFIDENCE,
    MOST_SEEDS,
    Interval,
    detectable_effect,
    holm,
    interval,
    judge,
    probability_of_improvement,
    seeds_needed,
    seeds_to_decide,
)


def test_an_interval_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    # Student's t with two degrees of freedom has a quantile in closed form
    half = (2 * 0.975 - 1) / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    assert found.low == pytest.approx(2 - half, abs=1e-12)
    assert found.high == pytest.approx(2 + half, abs=1e-12)


def test_one_value_or_none_says_nothing_of_spread() -> None:
    one = interval([0.5])
    assert (one.low, one.high, one.p) == (-math.inf, math.inf, 1.0)
    assert math.isnan(one.sd)
    assert math.isnan(interval([]).mean)


def test_500_random_data_sets_agree_with_scipy_and_with_an_independent_computation() -> None:
    draws = np.random.default_rng(0)
    with mpmath.workdps(40):
        for _ in range(500):
            n = int(draws.integers(2, 15))
            ours, theirs = draws.normal(draws.normal(), draws.uniform(0.01, 2), size=(2, n))
            found = interval(list(ours - theirs))
            peer = stats.ttest_rel(ours, theirs)
            bounds = peer.confidence_interval(CONFIDENCE)
            assert found.p == pytest.approx(peer.pvalue, abs=1e-12)
            assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), abs=1e-12)
            p, half = independent(list(ours - theirs), found.high - found.mean)
            assert found.p == pytest.approx(p, abs=1e-12)
            assert half == pytest.approx(CONFIDENCE, abs=1e-12)


def independent(values: list[float], half: float) -> tuple[float, float]:
    """By the incomplete beta function in 40 digits: the two-sided p, and the confidence that a half width has."""
    exact = [mpmath.mpf(v) for v in values]
    n, mean = len(exact), mpmath.fsum(exact) / len(exact)
    error = mpmath.sqrt(mpmath.fsum((v - mean) ** 2 for v in exact) / (n - 1) / n)

    def outside(t: mpmath.mpf) -> mpmath.mpf:
        return mpmath.betainc(mpmath.mpf(n - 1) / 2, mpmath.mpf(1) / 2, 0, (n - 1) / (n - 1 + t**2), regularized=True)

    return float(outside(mean / error)), float(1 - outside(mpmath.mpf(half) / error))


def test_holm_by_hand_and_by_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    draws = np.random.default_rng(1)
    for _ in range(200):
        p = list(draws.uniform(size=int(draws.integers(1, 10))) ** 3)
        adjusted = holm(p)
        for alpha in (0.01, 0.05, 0.2):
            assert {i for i, a in enumerate(adjusted) if a < alpha} == stepped_down(p, alpha)


def stepped_down(p: list[float], alpha: float) -> set[int]:
    """Holm's sequentially rejective test, as defined: the smallest first, until one is not rejected."""
    left, rejected = set(range(len(p))), set()
    while left and p[smallest := min(left, key=lambda i: p[i])] < alpha / len(left):
        rejected.add(smallest)
        left.remove(smallest)
    return rejected


def test_probability_of_improvement_is_mann_whitneys_statistic() -> None:
    assert probability_of_improvement([3, 2], [1, 2]) == (1 + 1 + 1 + 0.5) / 4
    assert math.isnan(probability_of_improvement([], [1.0]))
    draws = np.random.default_rng(2)
    for _ in range(50):
        ours, theirs = draws.integers(0, 5, size=(2, 6)).astype(float)
        expected = stats.mannwhitneyu(ours, theirs).statistic / 36
        assert probability_of_improvement(list(ours), list(theirs)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_cover_the_truth_95_times_in_100(seeds: int) -> None:
    draws = np.random.default_rng(seeds)
    differences = draws.normal(0.01, 0.02, size=(8000, seeds))
    covered = sum((found := interval(list(row))).low <= 0.01 <= found.high for row in differences)
    assert covered / 8000 == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_skewed_runs_are_covered_as_well(seeds: int) -> None:
    """Gamma-shaped accuracies of both arms with a shared part: the difference within a seed is symmetric again."""
    draws = np.random.default_rng(100 + seeds)
    shared = draws.gamma(2.0, 0.01, size=(8000, seeds))
    ours, theirs = (shared + draws.gamma(2.0, 0.01, size=(8000, seeds)) for _ in range(2))
    covered = sum((found := interval(list(row))).low <= 0.0 <= found.high for row in ours - theirs)
    assert covered / 8000 > 0.94


def test_2000_null_studies_of_8_arms_err_as_a_family_in_at_most_5_of_100() -> None:
    draws = np.random.default_rng(3)
    wrong = 0
    for _ in range(2000):
        seed = draws.normal(0.0, 0.02, size=5)  # what all arms share within a seed
        base = 0.8 + seed + draws.normal(0.0, 0.01, size=5)
        differences = [interval(list(0.8 + seed + draws.normal(0.0, 0.01, size=5) - base)) for _ in range(8)]
        adjusted = holm([d.p for d in differences])
        verdicts = [judge(d, p, 0.001, 8).verdict for d, p in zip(differences, adjusted, strict=True)]
        wrong += any(verdict in ("better", "worse") for verdict in verdicts)
    assert wrong / 2000 <= 0.06
    assert wrong > 0, "a test that never errs has no power either"


@pytest.mark.parametrize(("seeds", "spread"), [(2, 2), (3, 1), (5, 1), (5, 3)])
def test_null_studies_on_the_grid_of_400_problems_err_no_more(seeds: int, spread: int) -> None:
    """Accuracies are counts: differences are few whole steps, and are often equal within a study."""
    draws = np.random.default_rng(10 * seeds + spread)
    wrong = 0
    for _ in range(1000):
        counts = 320 + draws.integers(-spread, spread + 1, size=(4, seeds))
        differences = [interval(list((arm / 400 - counts[0] / 400).tolist())) for arm in counts[1:]]
        adjusted = holm([d.p for d in differences])
        wrong += any(
            judge(d, p, 1e-4, 3).verdict in ("better", "worse") for d, p in zip(differences, adjusted, strict=True)
        )
    assert wrong / 1000 <= 0.06


def test_equivalence_is_claimed_wrongly_in_at_most_5_of_100() -> None:
    """The true difference lies just outside of the margin."""
    draws = np.random.default_rng(4)
    claimed = 0
    for row in draws.normal(0.0201, 0.012, size=(2000, 8)):
        difference = interval(list(row))
        claimed += judge(difference, 1.0, 0.02, 1).verdict == "no difference"
    assert 0 < claimed / 2000 <= 0.05


@pytest.mark.parametrize(("seeds", "comparisons"), [(3, 1), (5, 1), (5, 8), (10, 8)])
def test_the_detectable_effect_is_found_80_times_in_100(seeds: int, comparisons: int) -> None:
    effect = detectable_effect(seeds, 0.02, comparisons)
    draws = np.random.default_rng(5)
    level = 0.05 / comparisons
    p = stats.ttest_1samp(draws.normal(effect, 0.02, size=(20_000, seeds)), 0.0, axis=1).pvalue
    assert np.mean(p < level) == pytest.approx(0.8, abs=0.012)


def test_seeds_needed_and_detectable_effect_are_two_sides_of_one() -> None:
    for comparisons in (1, 8):
        for effect in (0.005, 0.02, 0.1):
            n = seeds_needed(effect, 0.02, comparisons)
            assert detectable_effect(n, 0.02, comparisons) <= effect
            assert n == 2 or detectable_effect(n - 1, 0.02, comparisons) > effect
    assert seeds_needed(0.0, 0.02, 8) == MOST_SEEDS
    assert seeds_needed(0.01, 0.0, 8) == 2
    assert detectable_effect(1, 0.02, 1) == math.inf
    # by the usual table: an effect of one standard deviation takes 10 pairs
    assert seeds_needed(1.0, 1.0, 1) == 10


@pytest.mark.parametrize(
    ("values", "p", "verdict", "words"),
    [
        ([0.05, 0.06, 0.055, 0.052], 0.001, "better", "better by 5.4 points"),
        ([-0.05, -0.06, -0.055, -0.052], 0.001, "worse", "worse by 5.4 points"),
        ([0.001, -0.001, 0.002, 0.0], 0.8, "no difference", "no difference larger than 0.3 points"),
        ([0.03, -0.02, 0.04, 0.0], 0.4, "undecided", "undecided, from -3.1 points to +5.6 points: needs about"),
        ([0.02], 1.0, "undecided", "undecided: fewer than two seeds"),
        ([0.02, 0.02], 0.0, "undecided", "undecided: every seed differs by +2.0 points"),
        ([0.8025 - 0.8, 0.9025 - 0.9, 0.7025 - 0.7], 0.0, "undecided", "undecided: every seed differs by +0.2 points"),
    ],
)
def test_verdicts_and_their_words(values: list[float], p: float, verdict: str, words: str) -> None:
    found = judge(interval(values), p, 0.02, 4)
    assert found.verdict == verdict
    assert found.words.startswith(words)
    assert (found.more_seeds > 0) == words.startswith("undecided, from")


def test_identical_runs_are_called_so_whatever_the_numbers_say() -> None:
    assert judge(interval([0.0, 0.0]), 1.0, 0.02, 1, identical=True).verdict == "identical"


def test_the_seeds_that_would_decide_do_and_one_fewer_would_not() -> None:
    draws = np.random.default_rng(6)
    for _ in range(200):
        difference = interval(list(draws.normal(draws.normal(0, 0.02), 0.02, size=5)))
        n = seeds_to_decide(difference, 0.02, 8)
        assert decided(difference, n)
        assert n == 2 or not decided(difference, n - 1)
        if judge(difference, min(1.0, 8 * difference.p), 0.02, 8).verdict == "undecided":
            assert n > difference.n


def decided(difference: Interval, n: int) -> bool:
    """The same mean and spread from n seeds: a Bonferroni p below 5 %, or an interval within two points."""
    error = difference.sd / math.sqrt(n)
    p = 2 * stats.t.sf(abs(difference.mean) / error, n - 1)
    half = stats.t.ppf(0.975, n - 1) * error
    return bool(8 * p < 0.05 or abs(difference.mean) + half <= 0.02)
