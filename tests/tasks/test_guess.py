"""The task of `guess`: problems that are functions of their index, and ranges that belong to one split."""

from __future__ import annotations

import pytest

from slimrl.config.files import build
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.tasks.guess import is_held_out, load


def test_a_number_lies_in_its_range_and_a_range_in_one_split() -> None:
    splits = load(seed=3)
    for problems, held_out in ((splits.train, False), (splits.test, True)):
        seen = problems[:400]
        assert len({problem.id for problem in seen}) == 400
        for problem in seen:
            low, high = problem.columns["low"], problem.columns["high"]
            assert isinstance(low, int)
            assert isinstance(high, int)
            assert 1 <= low <= int(problem.answer) <= high < 100
            assert problem.question == f"Guess my number. It is from {low} to {high}."
            assert is_held_out(problem.question) == held_out


def test_the_seed_decides_the_training_problems_alone() -> None:
    first, same, other = load(seed=0), load(seed=0), load(seed=1)
    assert [*first.train[:20]] == [*same.train[:20]] != [*other.train[:20]]
    assert [*first.test[:20]] == [*other.test[:20]]


def test_a_game_needs_somebody_who_answers() -> None:
    with pytest.raises(SettingsError, match=r"set environment\.name=guess"):
        build(TrainConfig, {"task": {"name": "guess"}}, "x.yaml")
