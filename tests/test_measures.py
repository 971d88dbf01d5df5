"""pass@k and maj@k against their definitions, and what a comparison finds."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from slimrl.measures import Tally, at_k, majority_at_k, paired, pass_at_k, sizes, tally
from slimrl.statistics import accuracy_interval, paired_difference

RIGHT = -1


def labels(votes: Tally) -> list[int | None]:
    """Every sample's answer: RIGHT, the number of a wrong one, or None."""
    wrong = [number for number, size in enumerate(votes.others) for _ in range(size)]
    return [RIGHT] * votes.right + wrong + [None] * votes.silent


def verdict(answers: tuple[int | None, ...]) -> Fraction:
    """Of the most frequent answer: the share of the right one among those that are equally frequent."""
    counts = {answer: answers.count(answer) for answer in answers if answer is not None}
    first = [answer for answer, count in counts.items() if count == max(counts.values())]
    return Fraction(RIGHT in first, max(len(first), 1))


def by_definition(votes: Tally, k: int) -> float:
    subsets = [*combinations(labels(votes), k)]
    return float(sum(map(verdict, subsets)) / len(subsets))


def random_tallies(count: int, samples: int, seed: int) -> list[Tally]:
    draws = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        answers = draws.integers(-1, draws.integers(1, 5), size=samples)
        silent = draws.uniform(size=samples) < draws.choice([0.0, 0.3])
        found.append(
            tally((a == RIGHT, None if s and a != RIGHT else int(a)) for a, s in zip(answers, silent, strict=True))
        )
    return found


def test_samples_are_counted_by_answer() -> None:
    answers = [(True, "7"), (True, "7.0"), (False, "8"), (False, None), (False, "9"), (False, "8"), (False, "")]
    assert tally(answers) == Tally(right=2, others=(2, 1, 1), silent=1)
    assert tally(answers).samples == 7
    assert tally(answers).share == 2 / 7


@pytest.mark.parametrize(("samples", "ks"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_every_k_that_is_reported(samples: int, ks: list[int]) -> None:
    assert sizes(samples) == ks


def test_pass_at_k_is_the_closed_form_and_the_mean_over_all_subsets() -> None:
    for samples in range(1, 9):
        for right in range(samples + 1):
            drawn = [i < right for i in range(samples)]
            for k in range(1, samples + 1):
                closed = 1 - math.comb(samples - right, k) / math.comb(samples, k)
                every = [any(subset) for subset in combinations(drawn, k)]
                assert pass_at_k(samples, right, k) == pytest.approx(closed, abs=1e-12)
                assert pass_at_k(samples, right, k) == pytest.approx(sum(every) / len(every), abs=1e-12)
    # where the closed form in floats has lost every digit
    assert pass_at_k(2000, 1, 1) == pytest.approx(1 / 2000, rel=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over binomial counts is 1 - (1 - p)^k, exactly; that of the naive 1 - (1 - c/n)^k is not."""
    samples, right = 32, np.arange(33)
    for p in (0.01, 0.3, 0.99):
        chances = stats.binom.pmf(right, samples, p)
        for k in (1, 2, 8, 32):
            values = np.array([pass_at_k(samples, c, k) for c in right])
            assert chances @ values == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    naive = 1 - (1 - right / samples) ** 8
    assert abs(stats.binom.pmf(right, samples, 0.3) @ naive - (1 - 0.7**8)) > 0.01


def test_the_majority_is_that_of_all_subsets() -> None:
    for votes in [
        *random_tallies(60, 7, seed=0),
        Tally(2, (2, 2, 2), 0),
        Tally(1, (1,) * 6),
        Tally(0, (3,), 4),
        Tally(7),
    ]:
        for k in range(1, 8):
            assert majority_at_k(votes, k) == pytest.approx(by_definition(votes, k), abs=1e-12), (votes, k)


def test_the_majority_of_many_samples_is_that_of_drawn_subsets() -> None:
    draws = np.random.default_rng(1)
    votes = Tally(9, (9, 6, 3, 1, 1), 3)
    answers = labels(votes)
    for k in (4, 16):
        drawn = [verdict(tuple(answers[i] for i in draws.permutation(32)[:k])) for _ in range(4000)]
        assert float(sum(drawn)) / 4000 == pytest.approx(majority_at_k(votes, k), abs=4 * 0.5 / math.sqrt(4000))


def test_numbers_of_subsets_beyond_a_float() -> None:
    """The same problem in floats and in fractions, and one whose subsets no float counts."""
    votes = Tally(30, (30, 20, 7), 13)
    in_floats = [majority_at_k(votes, k) for k in (1, 8, 64)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slimrl.measures.LARGEST_FLOAT", 0)
        majority_at_k.cache_clear()
        in_fractions = [majority_at_k(votes, k) for k in (1, 8, 64)]
    majority_at_k.cache_clear()
    assert in_floats == pytest.approx(in_fractions, abs=1e-12)
    assert majority_at_k(Tally(600, (3, 2), 595), 600) == pytest.approx(1.0)
    assert pass_at_k(1200, 3, 600) == pytest.approx(0.875, abs=0.001)


def test_who_does_not_answer_does_not_vote() -> None:
    assert majority_at_k(Tally(1, (), 7), 8) == 1.0
    assert majority_at_k(Tally(1, (), 7), 1) == 1 / 8
    assert majority_at_k(Tally(0, (), 8), 8) == 0.0
    assert majority_at_k(Tally(1, (1,), 6), 8) == 0.5, "a tie is broken by chance"


def test_at_one_both_are_the_accuracy_with_its_interval() -> None:
    votes = random_tallies(40, 8, seed=2)
    found = at_k(votes)
    shares = [one.share for one in votes]
    low, high = accuracy_interval(shares)
    for name in ("pass@k", "maj@k"):
        assert [*found[name]] == ["1", "2", "4", "8"]
        assert [found[name]["1"][key] for key in ("value", "low", "high")] == pytest.approx(
            [np.mean(shares), low, high]
        )
        assert all(one["low"] <= one["value"] <= one["high"] for one in found[name].values())
    assert [one["value"] for one in found["pass@k"].values()] == sorted(
        one["value"] for one in found["pass@k"].values()
    )


def test_the_fewest_samples_decide() -> None:
    assert [*at_k([Tally(2, (2,)), Tally(1, (1,), 1)])["pass@k"]] == ["1", "2", "3"]
    found = paired({"a": Tally(2, (2,)), "b": Tally(4)}, {"a": Tally(2), "b": Tally(1, (1,))})
    assert [*found.at_k["maj@k"]] == ["1", "2"]


def named(votes: list[Tally]) -> dict[str, Tally]:
    return {str(number): one for number, one in enumerate(votes)}


def test_a_model_equals_itself() -> None:
    votes = named(random_tallies(40, 4, seed=3))
    found = paired(votes, dict(reversed(votes.items())))
    assert (found.verdict, found.accuracy["difference"], found.n, found.won, found.lost) == ("equal", 0.0, 40, {}, {})
    assert found.accuracy["low"] < 0 < found.accuracy["high"], "no change is not certainty"


def test_what_was_won_and_lost() -> None:
    first = {"same": Tally(2, (2,)), "gone": Tally(4), "up": Tally(1, (3,)), "far up": Tally(0, (2, 2))}
    second = {"far up": Tally(4), "up": Tally(2, (2,)), "gone": Tally(3, (), 1), "same": Tally(2, (1, 1))}
    found = paired(first, second)
    assert [*found.won.items()] == [("far up", (0.0, 1.0)), ("up", (0.25, 0.5))]
    assert found.lost == {"gone": (1.0, 0.75)}
    change = paired_difference({n: t.share for n, t in first.items()}, {n: t.share for n, t in second.items()})
    assert [*found.accuracy.values()] == [0.4375, 0.6875, change["change"], change["low"], change["high"]]
    assert {"difference", "low", "high", "n", "verdict", "won", "lost", "pass@k", "maj@k"} <= found.table().keys()
    assert found.at_k["pass@k"]["4"]["difference"] == pytest.approx(0.25), "far up alone had no right answer"
    assert found.at_k["maj@k"]["4"]["difference"] == pytest.approx((1 + 0.5 + 0.5) / 4), "a tie counts half"


def planted(draws: np.random.Generator, samples: int, agree: float) -> tuple[dict[str, Tally], dict[str, Tally]]:
    """400 problems on which the second model is better by 5 points. With one sample the draws are shared, so that verdicts agree
    on a share of problems, as they do before and after a run; several samples are independent.
    """
    if samples == 1:
        kind = draws.choice(3, size=400, p=[agree, (1 - agree + 0.05) / 2, (1 - agree - 0.05) / 2])
        before = np.where(kind == 0, draws.uniform(size=400) < 0.5, kind == 2)
        after = np.where(kind == 0, before, kind == 1)
    else:
        rates = draws.beta(1.0, 1.0, size=400) * 0.9
        before, after = draws.binomial(samples, rates), draws.binomial(samples, rates + 0.05)
    return tuple(named([Tally(int(c), (samples - int(c),)) for c in counts]) for counts in (before, after))  # type: ignore[return-value]


@pytest.mark.parametrize(("samples", "agree"), [(1, 0.9), (4, 0.0), (8, 0.0)])
def test_five_points_on_400_problems_are_found(samples: int, agree: float) -> None:
    draws = np.random.default_rng(samples)
    found = [paired(*planted(draws, samples, agree)) for _ in range(200)]
    assert sum(one.verdict == "better" for one in found) >= 0.8 * 200
    assert not any(one.verdict == "worse" for one in found)
    assert sum(one.accuracy["low"] <= 0.05 <= one.accuracy["high"] for one in found) >= 0.92 * 200


def test_a_difference_of_nothing_is_found_in_few() -> None:
    draws = np.random.default_rng(9)
    rates = draws.beta(1.0, 1.0, size=400)
    drawn = [
        [named([Tally(int(c), (4 - int(c),)) for c in draws.binomial(4, rates)]) for _ in range(2)] for _ in range(200)
    ]
    assert sum(paired(*both).verdict != "undecided" for both in drawn) <= 0.08 * 200
