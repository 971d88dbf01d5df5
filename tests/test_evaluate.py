"""Intervals and paired differences against scipy's and hand-made numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from slimrl.evaluate import Answered, SplitEvaluation, interval, paired_difference


def answered(problem: str, strict: bool, mode: str = "sampled", sample: int = 0) -> Answered:
    return Answered(problem, mode, sample, strict, strict, True, "stop", 5, "?", "1", "1", "1", "#### 1")  # type: ignore[arg-type]


def test_wilson_by_hand() -> None:
    z, n, p = 1.959963984540054, 10, 0.3
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert interval([1.0] * 3 + [0.0] * 7) == pytest.approx((centre - half, centre + half))


def test_several_samples_give_a_t_interval_over_problems() -> None:
    values = [0.25, 0.5, 1.0, 0.75, 0.0]
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    low, high = interval(values)
    assert low == pytest.approx(max(0.0, expected[0]))
    assert high == pytest.approx(min(1.0, expected[1]))


def test_paired_difference_of_averages_is_a_paired_t_interval() -> None:
    rng = np.random.default_rng(0)
    before = {str(i): float(rng.integers(5)) / 4 for i in range(50)}
    after = {str(i): float(rng.integers(5)) / 4 for i in range(50)}
    got = paired_difference(before, after)
    expected = stats.ttest_rel(list(after.values()), list(before.values())).confidence_interval(0.95)
    assert (got["low"], got["high"]) == pytest.approx((expected.low, expected.high))
    assert got["change"] == pytest.approx(sum(after.values()) / 50 - sum(before.values()) / 50)


def test_paired_difference_of_right_or_wrong_by_hand() -> None:
    """8 problems gained, 2 lost, 10 unchanged: cells 8.5 and 2.5 of 22."""
    before = {str(i): float(i in (0, 1) or i >= 15) for i in range(20)}
    after = {str(i): float(2 <= i < 10 or i >= 15) for i in range(20)}
    got = paired_difference(before, after)
    half = 1.959963984540054 * math.sqrt(11 - 6**2 / 22) / 22
    assert got["change"] == pytest.approx(0.3)
    assert (got["low"], got["high"]) == pytest.approx((6 / 22 - half, 6 / 22 + half))
    same = paired_difference(before, before)
    assert same["change"] == 0
    assert same["low"] < 0 < same["high"], "no change seen on 20 problems is not certainty"


def test_coverage_of_the_paired_interval() -> None:
    """2,000 simulated evaluations of 100 problems: the true change lies inside in 95 % (three standard errors: 1.5)."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        outcome = rng.choice(4, size=100, p=[0.5, 0.2, 0.05, 0.25])  # right-right, gained, lost, wrong-wrong
        before = {str(i): float(o in (0, 2)) for i, o in enumerate(outcome)}
        after = {str(i): float(o in (0, 1)) for i, o in enumerate(outcome)}
        got = paired_difference(before, after)
        inside += got["low"] <= 0.15 <= got["high"]
    assert 0.935 < inside / 2000 < 0.975


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
