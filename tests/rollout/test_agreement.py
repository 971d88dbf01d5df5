"""Greedy answers of two samplers: what counts as rounding, and what as another model."""

from __future__ import annotations

import math

import pytest

from slimrl.records import Completion
from slimrl.rollout.agreement import difference


def greedy(ids: str, *nats: float) -> Completion:
    return Completion((1,), tuple(map(ord, ids)), nats, "stop")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (greedy("ab", -0.1, -0.2), greedy("ab", -0.1, -0.25), (0.05, 1)),
        # a tie that rounding decides: what comes behind it answers another text
        (greedy("abc", -0.1, -0.70, -0.1), greedy("axy", -0.1, -0.69, -3.0), (0.01, 1)),
        # a token that the first would not take
        (greedy("ab", -0.1, -0.2), greedy("ax", -0.1, -2.2), (2.0, 1)),
        (greedy("a", -0.1), greedy("a", -0.1), (0.0, 0)),
        (greedy("ab", -0.1, -0.2), greedy("a", -0.1), (math.inf, 1)),
        (greedy("a", -0.1), greedy("a", math.nan), (math.inf, 0)),
    ],
)
def test_two_completions_differ_up_to_the_first_other_token(
    ours: Completion, theirs: Completion, expected: tuple[float, int]
) -> None:
    for pair in ((ours, theirs), (theirs, ours)):
        nats, token = difference(*pair)
        assert (nats, token) == (pytest.approx(expected[0]), expected[1])
