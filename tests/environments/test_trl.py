"""Classes of TRL's environment_factory run unchanged: rows, tools, rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimrl.config.environment import EnvironmentConfig
from slimrl.environments import maker, opening
from slimrl.environments.waiting import opened
from slimrl.errors import SettingsError
from slimrl.records import Problem
from slimrl.rewards.custom import load_function
from tests.session.test_resume import run

COUNTER = '''
class Counter:
    """As in TRL's documentation: tools change the state, and rewards read it."""

    def __init__(self):
        self.count = 0

    def reset(self, question, **kwargs) -> str | None:
        self.count, self.asked = 0, question
        return f" Count {len(kwargs['prompt'])} up."

    def increment(self, step: int) -> int:
        """
        Adds to the counter.

        Args:
            step: The number to add.

        Returns:
            The counter.
        """
        self.count += step
        return self.count

    def _hidden(self):
        raise AssertionError


class Stepping(Counter):
    @property
    def state(self):
        raise AssertionError

    @staticmethod
    def helper():
        raise AssertionError

    @classmethod
    def unit(cls) -> str:
        """
        Names the unit.
        """
        return cls.__name__

    def step(self, action: str) -> str:
        """
        Takes an action.

        Args:
            action: The action.
        """
        return f"{action}!"


class Silent(Counter):
    def reset(self):
        return None


class Paid(Counter):
    async def get_reward(self):
        return float(self.count + 1)


class Pictures(Counter):
    def reset(self, **kwargs):
        return [{"type": "image"}]


def counted(environments, **kwargs):
    return [float(environment.count) for environment in environments]


def asked(completions, environments, question, **kwargs):
    return [float(environment.asked == one) for environment, one in zip(environments, question, strict=True)]
'''
PROBLEM = Problem("p", "How many?", "1", columns={"level": 3})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "counter.py"
    path.write_text(COUNTER)
    return path


def test_a_class_in_trls_form(file: Path) -> None:
    make = maker(EnvironmentConfig(name=f"{file}:Counter"), load_function)
    assert opening(make, PROBLEM, 20.0) == [{"role": "user", "content": "How many? Count 1 up."}]
    played = make()
    played.reset(PROBLEM)  # type: ignore[attr-defined]
    called = '<tool_call>{"name": "increment", "arguments": {"step": 2}}</tool_call>'
    assert [played.step(called) for _ in range(2)] == [([{"role": "tool", "content": n}], False) for n in ("2", "4")]
    assert played.step("Done.") == ([], True)
    assert [tool.__name__ for tool in played.tools] == ["increment"]  # type: ignore[attr-defined]
    assert not hasattr(played, "score")


@pytest.mark.parametrize("parameters", ["self", "self, problem", "self, problem, seed=None", "self, *anything"])
def test_a_class_with_a_step_and_a_reset_of_its_own_is_none(parameters: str, tmp_path: Path) -> None:
    """As in the habit of gym: what `step` is given is the policy's turn, and no tool."""
    file = tmp_path / "gym.py"
    file.write_text(
        f"class Gym:\n    def reset({parameters}):\n        self.left = 1\n"
        "    def step(self, text):\n        self.left -= 1\n"
        "        return [{'role': 'user', 'content': text}], self.left < 0\n"
    )
    make = maker(EnvironmentConfig(name=f"{file}:Gym"), load_function)
    assert opening(make, PROBLEM, 20.0) is None
    played = make()
    opened(played.reset, PROBLEM)  # type: ignore[attr-defined]
    assert played.step("a") == ([{"role": "user", "content": "a"}], False)


def test_tools_are_the_methods_of_the_object(file: Path) -> None:
    """One of them may be called step: `reset` takes the fields of a row by name, as no other form does."""
    played = maker(EnvironmentConfig(name=f"{file}:Stepping"), load_function)()
    assert [tool.__name__ for tool in played.tools] == ["increment", "step", "unit"]  # type: ignore[attr-defined]
    assert played.step("<step>north</step> <unit></unit>") == (
        [{"role": "tool", "content": "north!"}, {"role": "tool", "content": "Stepping"}],
        False,
    )


def test_prompts_of_the_data_are_kept(file: Path) -> None:
    turns = (("system", "Count."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"))
    problem = Problem("p", "Two?", "2", turns=turns)
    found = opening(maker(EnvironmentConfig(name=f"{file}:Counter"), load_function), problem, 20.0)
    assert found is not None
    assert [message["content"] for message in found] == ["Count.", "One?", "1", "Two? Count 4 up."]
    assert opening(maker(EnvironmentConfig(name=f"{file}:Silent"), load_function), problem, 20.0) is None


def test_the_reward_of_the_environment(file: Path) -> None:
    played = maker(EnvironmentConfig(name=f"{file}:Paid"), load_function)()
    played.reset(PROBLEM)  # type: ignore[attr-defined]
    played.step("<increment>3</increment>")
    assert played.score() == 4.0  # type: ignore[attr-defined]


def test_pictures_are_refused(file: Path) -> None:
    make = maker(EnvironmentConfig(name=f"{file}:Pictures"), load_function)
    with pytest.raises(SettingsError, match="list from reset, and a policy reads text"):
        opening(make, PROBLEM, 20.0)


def test_a_run_with_rewards_that_read_environments(file: Path, tmp_path: Path) -> None:
    settings = (
        f"environment.name={file}:Paid",
        "environment.tool_prompt=none",
        f"rewards.custom={{{file}:counted: 0.5, {file}:asked: {{weight: 1, high: 1}}}}",
        "rewards.environment=1",
        "rollout.max_new_tokens=32",
        "task.arithmetic.max_steps=1",
    )
    run(tmp_path, "a", *settings, "steps=1")
    lines = (tmp_path / "a" / "rollouts" / "step-00000001.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        scores = row["scores"]
        assert scores["environment"] == scores["counted"] + 1
        assert scores["asked"] == 1
    with pytest.raises(SettingsError, match=r"rewards.workers=1: reward functions read the environments"):
        run(tmp_path, "b", *settings, "steps=1", "rewards.workers=1")
