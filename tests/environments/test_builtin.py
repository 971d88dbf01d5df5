"""The built-in environments, and the built-in model that plays them."""

from __future__ import annotations

from math import log

import pytest

from slimrl.config.environment import EnvironmentConfig
from slimrl.config.files import load_config
from slimrl.config.schema import EvalConfig, TrainConfig
from slimrl.environments import maker
from slimrl.environments.guess import Guess
from slimrl.evaluate import evaluate
from slimrl.preflight.setup import prepare_measuring
from slimrl.records import Problem
from slimrl.rewards.custom import load_function
from tests.conftest import ROOT


def game(**arguments: object) -> Guess:
    made = maker(EnvironmentConfig(name="guess", arguments=arguments), lambda name, _: load_function(name))()
    assert isinstance(made, Guess)
    made.reset(Problem("p", "Guess.", "37", columns={"low": 1, "high": 64}))
    return made


def test_guesses_are_answered() -> None:
    own = game()
    assert own.step("#### 40") == ([{"role": "user", "content": "lower"}], False)
    assert own.step("Not 40, so 5") == ([{"role": "user", "content": "higher"}], False)
    assert own.step("hm") == ([{"role": "user", "content": "no number"}], False)
    assert own.score() == 0.0
    assert own.step("#### 37") == ([], True)
    assert own.score() == pytest.approx(0.7)


def test_guesses_are_paid_turn_by_turn() -> None:
    own = game(per_turn=True, cost=0.2)
    paid = [own.step(text)[2] for text in ("33", "x", "12", "37")]  # 31 numbers are left of 64, then 1
    assert paid == pytest.approx([log(65 / 32, 65) - 0.2, -0.2, -0.2, log(32, 65) - 0.2])
    assert sum(paid) == pytest.approx(1 - 4 * 0.2)
    assert own.score() == 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [("36.5", "higher"), ("20-36", "higher"), ("-40", "higher"), ("37.5", "lower"), ("٤٠", "no number")],
)
def test_numbers_of_a_guess(text: str, said: str) -> None:
    assert game().step(text) == ([{"role": "user", "content": said}], False)


def test_a_game_has_a_range() -> None:
    with pytest.raises(ValueError, match=r"set task\.name=guess"):
        Guess().reset(Problem("p", "2+3?", "5"))


@pytest.mark.parametrize("recipe", ["calculator", "guess"])
def test_the_model_plays(recipe: str) -> None:
    """It plays several turns with right and wrong ends, so there is something to learn."""
    file = str(ROOT / "recipes" / f"{recipe}.yaml")
    train = load_config(TrainConfig, [file], [])
    settings = {"model": train.model, "task": train.task, "environment": train.environment, "rollout": train.rollout}
    config = EvalConfig.model_validate(
        {**settings, "evaluation": {"problems": 24, "samples": 2, "harder_problems": 0, "greedy": False}}
    )
    setup = prepare_measuring(config)
    summary = evaluate(setup, step=0).test.summary()
    assert 0.05 < summary["accuracy"] < 0.95
    assert summary["turns"] > 1.3
    assert summary["format"] > 0.4
