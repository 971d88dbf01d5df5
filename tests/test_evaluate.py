"""Intervals and paired differences by hand, and how often they hold the truth."""

from __future__ import annotations

import math

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
from slimrl.evaluate import Answered, SplitEvaluation, interval, paired_difference


def answered(problem: str, strict: bool, mode: str = "sampled", sample: int = 0) -> Answered:
    return Answered(problem, mode, sample, strict, strict, True, "stop", 5, "?", "1", "1", "1", "#### 1")  # type: ignore[arg-type]


def test_an_interval_of_right_or_wrong_by_hand() -> None:
    """3 of 10 right, with 1.5 right and 1.5 wrong ones added: 4.5 of 13; Student's t with 9 degrees of freedom."""
    squares = 4.5 * (1 - 4.5 / 13) ** 2 + 8.5 * (4.5 / 13) ** 2
    half = 2.2621571627982 * math.sqrt(squares) / 13
    assert interval([1.0] * 3 + [0.0] * 7) == pytest.approx((4.5 / 13 - half, 4.5 / 13 + half))


def test_an_interval_of_several_samples_by_hand() -> None:
    values = [0.25, 0.5, 1.0, 0.75, 0.0]
    with_added = [*values, *[0.0, 1.0] * 2]  # four whole ones weigh three quarters each
    weights = np.array([1.0] * 5 + [0.75] * 4)
    centre = np.average(with_added, weights=weights)
    half = stats.t.ppf(0.975, 4) * math.sqrt(weights @ (np.array(with_added) - centre) ** 2) / 8
    assert interval(values) == pytest.approx((max(0.0, centre - half), min(1.0, centre + half)))


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
    low, high = interval([0.5] * problems)
    assert low < 0.5 < high
    assert interval([1.0] * problems)[0] < 1 - 2.7 / problems


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
    assert (low[0], high[0]) == pytest.approx(interval(list(before)))
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


def test_summary_keeps_modes_apart() -> None:
    rows = (answered("a", True), answered("a", False, sample=1), answered("b", True), answered("b", True, sample=1))
    greedy = (answered("a", False, "greedy"), answered("b", True, "greedy"))
    summary = SplitEvaluation(rows + greedy).summary()
    assert summary["accuracy"] == 0.75
    assert summary["n"] == 2
    assert summary["greedy"] == 0.5
    assert "greedy" not in SplitEvaluation(rows).summary()


def test_one_problem_says_nothing() -> None:
    assert interval([0.5]) == (0.0, 1.0)
    got = paired_difference({"a": 0.25}, {"a": 0.75})
    assert (got["change"], got["low"], got["high"]) == (0.5, -1.0, 1.0)
