"""Findings on a run: a reward that rises alone, groups without a signal, and how often chance alone is taken for the former."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from slimrl.runs.findings import FEWEST_PROBLEMS, FEWEST_STEPS, HEADS, failing_calls, findings, reward_rise
from slimrl.statistics import welch

UP = {"test": {"sampled": {"change": 0.1, "low": 0.05, "high": 0.15, "n": 400}}}
FLAT = {"test": {"sampled": {"change": 0.01, "low": -0.02, "high": 0.04, "n": 400}}}
DOWN = {"test": {"sampled": {"change": -0.1, "low": -0.15, "high": -0.05, "n": 400}}}


def run(rewards: Any, **more: Any) -> list[dict[str, float]]:
    return [{"reward": float(reward), "frac_reward_zero_std": 0.5, "sampling/groups": 8, **more} for reward in rewards]


def found(
    history: Any, difference: Any, *, shuffled: bool = True, grouped: bool = True, taught: bool = False
) -> list[str]:
    return findings(history, difference, shuffled=shuffled, grouped=grouped, taught=taught)


NOISE = np.random.default_rng(5).normal(0, 0.02, 30)
RISING = run(np.linspace(0.2, 0.8, 30) + NOISE)
STEADY = run(0.5 + NOISE)


def test_a_reward_that_rises_alone_is_told_with_its_test() -> None:
    (sentence,) = found(RISING, FLAT)
    rise = reward_rise(RISING)
    assert rise is not None
    assert sentence.startswith(f"{HEADS['reward']}: ")
    assert f"rose by {rise.mean:.3g} [{rise.low:.3g}, {rise.high:.3g}]" in sentence
    assert "is not shown to have risen (+1.0 points [-2.0, +4.0] on 400 problems)" in sentence
    (sentence,) = found(RISING, DOWN)
    assert "held-out accuracy fell (-10.0 points" in sentence


@pytest.mark.parametrize(
    ("history", "difference", "shuffled"),
    [
        (RISING, UP, True),
        (STEADY, FLAT, True),
        (RISING[::-1], DOWN, True),
        (RISING, FLAT, False),
        (RISING[: 3 * FEWEST_STEPS - 1], FLAT, True),
        (RISING, {}, True),
        (RISING, {"test": {"sampled": FLAT["test"]["sampled"] | {"n": FEWEST_PROBLEMS - 1}}}, True),
        ([], FLAT, True),
    ],
)
def test_nothing_is_told_where_nothing_is_shown(history: Any, difference: Any, shuffled: bool) -> None:
    assert found(history, difference, shuffled=shuffled) == []


def test_a_rise_without_a_spread_is_told_with_the_p_of_a_permutation_test() -> None:
    (sentence,) = found(run([0.0] * 4 + [0.5] * 4 + [1.0] * 4), FLAT)
    assert "the reward rose by 1 (p = 0.029), and held-out" in sentence
    exact = stats.permutation_test(
        ([1.0] * 4, [0.0] * 4), lambda a, b: np.mean(a) - np.mean(b), permutation_type="independent"
    )
    rise = reward_rise(run([0.0] * 4 + [1.0] * 4 + [1.0] * 4))
    assert rise is not None
    assert rise.p == pytest.approx(exact.pvalue)
    for flat in ([1.0] * 12, [1.0] * 4 + [0.0] * 8, [0.3] * 6 + [0.1 + 0.2] * 6):
        assert found(run(flat), FLAT) == []


def test_steps_without_a_reward_are_passed_over() -> None:
    holes = [{"sampling/groups": 0.0}, {"reward": math.nan}]
    assert reward_rise([*RISING[:10], *holes, *RISING[10:]]) == reward_rise(RISING)


def test_a_steady_reward_is_rarely_taken_for_a_rising_one() -> None:
    """Of 2,000 runs of 30 steps whose reward does not move, about one in forty: the upper tail of a 95 % interval."""
    draws = np.random.default_rng(0).binomial(256, 0.4, size=(2000, 30)) / 256
    told = np.mean([bool(found(run(rewards), FLAT)) for rewards in draws])
    assert 0.01 < told < 0.04


def test_a_rise_of_six_points_over_a_run_is_mostly_seen() -> None:
    draws = np.random.default_rng(1).binomial(256, np.linspace(0.4, 0.46, 30), size=(500, 30)) / 256
    assert np.mean([bool(found(run(rewards), FLAT)) for rewards in draws]) > 0.75


def test_welch_is_scipys() -> None:
    draws = np.random.default_rng(2)
    for n, m in ((2, 3), (5, 5), (4, 30)):
        before, after = draws.normal(0, 1, n), draws.normal(0.5, 4, m)
        expected = stats.ttest_ind(after, before, equal_var=False)
        ours = welch(before, after)
        assert ours.mean == pytest.approx(after.mean() - before.mean())
        assert ours.p == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval(0.95)
        assert (ours.low, ours.high) == (pytest.approx(low), pytest.approx(high))
    assert welch([1.0, 1.0], [2.0, 2.0]).low == -math.inf


def test_a_run_without_any_signal_is_told_so() -> None:
    silent = run([0.0] * 20, frac_reward_zero_std=1.0)
    (sentence,) = found(silent, FLAT)
    assert sentence.startswith("no signal: in none of 160 groups did two rewards differ, so nothing was learnt; ")
    assert "only the KL penalty moved weights" in found(silent, FLAT, taught=True)[0]
    assert found([*silent, *run([0.1])], FLAT) == []
    lost = run([0.0] * 20, frac_reward_zero_std=1.0, unscorable=0.75)
    assert found(lost, FLAT)[0].endswith(
        "; 75% of the completions were unscorable, so see first why their rewards failed"
    )
    assert found(silent, FLAT, grouped=False) == [], "a critic's advantages need no other completion of the group"


def test_a_tool_that_fails_in_nearly_every_call_is_told() -> None:
    rows = run(
        [0.5] * 4, **{"tools/calls": 2.0, "tools/failed": 0.95, "tools/malformed": 0.0, "tools/price/failed": 0.95}
    )
    (sentence,) = found(rows, FLAT)
    assert sentence.startswith("failing calls: the tool price failed in at least 90% of its calls in the last 3 steps")
    assert failing_calls(rows[:2]) == [], "too few steps"
    assert failing_calls([*rows, {**rows[0], "tools/price/failed": 0.5}]) == []
    assert failing_calls([*rows, *run([0.5] * 9)]) != [], "steps without a call tell nothing"
    (sentence,) = failing_calls(run([0.5] * 3, **{"tools/failed": 1.0, "tools/malformed": 1.0}))
    assert "calls in the last 3 steps that had some were malformed (tools/malformed)" in sentence
