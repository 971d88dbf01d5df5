"""The numbers behind a verdict: by hand, against scipy, against an independent computation, and by simulation."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import (
    CHANGES,
    DIFFERENCES,
    MEANS,
    OURS,
    accuracies,
    changes,
    covered,
    exact_worst,
    right_answers,
)
from slimrl.statistics import (
    CONFIDENCE,
    MOST_SEEDS,
    Interval,
    accuracy_interval,
    detectable_effect,
    holm,
    interval,
    judge,
    paired_difference,
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


# --- intervals over held-out problems ---------------------------------------------------------------------------------


def test_an_interval_of_right_or_wrong_by_hand() -> None:
    """3 of 10 right, with 1.5 right and 1.5 wrong ones added: 4.5 of 13; Student's t with 9 degrees of freedom."""
    squares = 4.5 * (1 - 4.5 / 13) ** 2 + 8.5 * (4.5 / 13) ** 2
    half = 2.2621571627982 * math.sqrt(squares) / 13
    assert accuracy_interval([1.0] * 3 + [0.0] * 7) == pytest.approx((4.5 / 13 - half, 4.5 / 13 + half))


def test_an_interval_of_several_samples_by_hand() -> None:
    values = [0.25, 0.5, 1.0, 0.75, 0.0]
    with_added = [*values, *[0.0, 1.0] * 2]  # four whole ones weigh three quarters each
    weights = np.array([1.0] * 5 + [0.75] * 4)
    centre = np.average(with_added, weights=weights)
    half = stats.t.ppf(0.975, 4) * math.sqrt(weights @ (np.array(with_added) - centre) ** 2) / 8
    assert accuracy_interval(values) == pytest.approx((max(0.0, centre - half), min(1.0, centre + half)))


def test_a_paired_difference_by_hand() -> None:
    """8 problems gained, 2 lost, 10 unchanged, and 1.25 more gained and lost: 9.25 and 3.25 of 22.5."""
    before = {str(i): float(i in (0, 1) or i >= 15) for i in range(20)}
    after = {str(i): float(2 <= i < 10 or i >= 15) for i in range(20)}
    got = paired_difference(before, after)
    centre = 6 / 22.5
    half = 2.0930240544083 * math.sqrt(9.25 * (1 - centre) ** 2 + 3.25 * (1 + centre) ** 2 + 10 * centre**2) / 22.5
    assert got["change"] == pytest.approx(0.3)
    assert (got["low"], got["high"]) == pytest.approx((centre - half, centre + half))


@pytest.mark.parametrize("samples", [1, 4, 32])
@pytest.mark.parametrize("problems", [30, 400, 1319])
def test_no_change_is_not_certainty(samples: int, problems: int) -> None:
    """Of a true gain of 3 in n problems none is seen in one of 20 evaluations."""
    before = {str(i): (i % (samples + 1)) / samples for i in range(problems)}
    got = paired_difference(before, before)
    assert got["change"] == 0
    assert got["high"] == -got["low"]
    assert 2.7 / problems < got["high"] < 3.3 / problems
    low, high = accuracy_interval([0.5] * problems)
    assert low < 0.5 < high
    assert accuracy_interval([1.0] * problems)[0] < 1 - 2.7 / problems


def test_a_difference_of_differences_reaches_twice_as_far() -> None:
    zero = {str(i): 0.0 for i in range(30)}
    got = paired_difference(zero, {str(i): 1.9 for i in range(30)}, reach=2.0)
    assert 1.4 < got["low"] < 1.9 < got["high"] == 2.0


@pytest.mark.parametrize("problems", [30, 36, 49, 100, 1319])
def test_coverage_of_a_single_sample_is_at_least_935_of_1000_at_every_rate(problems: int) -> None:
    """Exact; Wilson's interval, Student's and Agresti and Min's are among those that fall below."""
    assert exact_worst(MEANS[OURS], problems)[0] >= 0.935
    assert exact_worst(DIFFERENCES[OURS], problems, least=0.0)[0] >= 0.935, "problems gained, none lost"
    if problems == 30:
        assert exact_worst(MEANS["Wilson, effective size"], problems)[0] < 0.9
        assert exact_worst(DIFFERENCES["Agresti and Min"], problems, least=0.0)[0] < 0.9


@pytest.mark.parametrize("concentration", [0.0, 0.5, 2.0, math.inf])
@pytest.mark.parametrize("samples", [4, 32])
def test_coverage_of_several_samples(samples: int, concentration: float) -> None:
    """From 30 problems on, where problems are all or nothing and where they are alike, at rates near 0, 1 and between."""
    draws = np.random.default_rng(samples)
    for problems in (30, 1319):
        for p in (0.01, 0.03, 0.3, 0.97, 0.99):
            chances = right_answers(samples, p, concentration)
            found = covered(
                draws, 2000, problems, samples, np.arange(samples + 1) / samples, chances, {OURS: MEANS[OURS]}
            )
            assert found[OURS][0] > 0.935 - 0.011, (problems, p)  # two standard errors


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize(("samples", "concentration"), [(1, 0.0), (4, 2.0), (32, 0.5), (32, math.inf)])
def test_coverage_of_a_change(samples: int, concentration: float, kind: str) -> None:
    """Where nothing changed, few problems did, or all; where problems are only gained, and where both ways."""
    draws = np.random.default_rng(samples)
    for problems in (30, 1319):
        for before, after in ((0.5, 0.5), (0.01, 0.1), (0.3, 0.35), (0.99, 0.9), (0.5, 0.9)):
            chances = changes(samples, before, after, concentration, kind)
            values = np.arange(-samples, samples + 1) / samples
            found = covered(draws, 2000, problems, samples, values, chances, {OURS: DIFFERENCES[OURS]})
            assert found[OURS][0] > 0.935 - 0.011, (problems, before, after)


def test_what_is_simulated_is_what_is_printed() -> None:
    """Counts and moments against the functions on lists, and chances of changes against drawn problems."""
    draws = np.random.default_rng(0)
    rates = accuracies(0.2, 2.0)
    before, after = (draws.binomial(4, draws.permutation(rates)) / 4 for _ in range(2))
    low, high = MEANS[OURS](400, 4, np.array([before.mean()]), np.array([before.var()]))
    assert (low[0], high[0]) == pytest.approx(accuracy_interval(list(before)))
    change = after - before
    low, high = DIFFERENCES[OURS](400, 4, np.array([change.mean()]), np.array([change.var()]))
    got = paired_difference(dict(enumerate(before)), dict(enumerate(after)))  # type: ignore[arg-type]
    assert (low[0], high[0]) == pytest.approx((got["low"], got["high"]))
    drawn = draws.binomial(4, np.tile(accuracies(0.6, 2.0), 500)) - draws.binomial(4, np.tile(rates, 500))
    shares = np.array([(drawn == value).mean() for value in range(-4, 5)])
    assert np.abs(shares - changes(4, 0.2, 0.6, 2.0, "alike")).max() < 0.005


def test_pairing_is_by_problem_not_by_position() -> None:
    got = paired_difference({"a": 0.0, "b": 1.0}, {"b": 1.0, "a": 1.0})
    assert got["change"] == 0.5


def test_one_problem_says_nothing() -> None:
    assert accuracy_interval([0.5]) == (0.0, 1.0)
    got = paired_difference({"a": 0.25}, {"a": 0.75})
    assert (got["change"], got["low"], got["high"]) == (0.5, -1.0, 1.0)
