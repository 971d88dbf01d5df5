"""Functions of TRL's shapes run here as there: facts of TRL 1.16 stand for the package where it is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimrl.config.rewards import CustomReward, RewardsConfig
from slimrl.records import Completion, Problem
from slimrl.rewards import load_rewards
from slimrl.rewards.builtin import Cosine, repeated, soft_overlong
from slimrl.rewards.scoring import Sampled, score
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from tests.rewards.trl_facts import FACTS, FUNCTIONS, IDS, SOLUTION, TEXTS, columns

VALUES = json.loads(FACTS.read_text())["values"]
PROBLEM = Problem("p", "q", "18", columns={"solution": SOLUTION})
TASK = Task("test", (PROBLEM,), (), (), STYLES["boxed"], Grader("numeric"), "", {})
SAMPLED = Sampled(
    PROBLEM, [Completion((1,), tuple(ids), (0.0,) * len(ids), "stop") for ids in IDS], TEXTS, 0, strict=True
)
SHAPES = """
import re


def _contents(completions):
    return [messages[0]["content"] for messages in completions]


def think_format_reward(completions: list[list[dict[str, str]]], **kwargs) -> list[float]:
    pattern = r"^<think>(?!.*<think>)(.*?)</think>.*$"
    return [1.0 if re.match(pattern, text, re.DOTALL | re.MULTILINE) else 0.0 for text in _contents(completions)]


def accuracy_reward(completions, solution, log_extra=None, log_metric=None, **kwargs) -> list[float | None]:
    found = [re.findall(r"boxed{([0-9.]+)}", text) for text in _contents(completions)]
    rewards = [
        float(bool(boxes) and float(boxes[-1]) == float(gold.strip("$"))) for boxes, gold in zip(found, solution)
    ]
    log_extra("boxes", [len(boxes) for boxes in found])
    log_metric("accuracy", sum(rewards) / len(rewards))
    return rewards


def get_soft_overlong_punishment(max_completion_len, soft_punish_cache):
    def soft_overlong_punishment_reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
        start = max_completion_len - soft_punish_cache
        return [max(-1.0, min(0.0, (start - len(ids)) / soft_punish_cache)) for ids in completion_ids]

    return soft_overlong_punishment_reward
"""
"""Functions of ours with TRL's signatures: messages, columns by name, what logs, token ids, and one that makes the reward."""


def test_the_facts_are_of_the_functions_and_inputs_that_are_named() -> None:
    assert {*VALUES} == {*FUNCTIONS}
    assert {len(values) for values in VALUES.values()} == {len(TEXTS)}


def test_the_facts_are_those_of_trl_where_it_is_installed() -> None:
    trl = pytest.importorskip("trl.rewards", reason="trl is not installed")
    for name, arguments in FUNCTIONS.items():
        function = getattr(trl, name) if arguments is None else getattr(trl, name)(**arguments)
        assert function(**columns()) == pytest.approx(VALUES[name]), name


@pytest.mark.parametrize("name", ["think_format_reward", "accuracy_reward", "get_soft_overlong_punishment"])
@pytest.mark.parametrize("workers", [0, 1])
def test_functions_of_their_shapes_give_their_values(name: str, workers: int, tmp_path: Path) -> None:
    from slimrl.rewards.workers import Scorer

    file = tmp_path / "shapes.py"
    file.write_text(SHAPES)
    custom = CustomReward(completions="messages", arguments=FUNCTIONS[name])
    config = RewardsConfig(correct=0.0, custom={f"{file}:{name}": custom}, workers=workers)
    rewards = load_rewards(config, TASK, max_new_tokens=8, elsewhere=workers > 0)
    with Scorer(TASK, rewards, config, max_new_tokens=8, workers=workers) as scorer:
        group = scorer.submit(SAMPLED).result()
    assert [rollout.scores[name] for rollout in group.rollouts] == pytest.approx(VALUES[name])
    if name == "accuracy_reward":
        assert group.metrics == {"accuracy": (0.6,)}
        assert [rollout.logged[name]["boxes"] for rollout in group.rollouts] == [1, 1, 1, 0, 1]


def test_built_in_rewards_agree_where_the_definitions_do() -> None:
    """TRL's overlong punishment, accuracy, repetition of token n-grams, and cosine with the ends of its defaults."""
    assert [soft_overlong(len(ids), 5, 3) for ids in IDS] == pytest.approx(VALUES["get_soft_overlong_punishment"])
    rollouts = score(SAMPLED, load_rewards(RewardsConfig(), TASK, max_new_tokens=8), TASK).rollouts
    assert [rollout.scores["correct"] for rollout in rollouts] == VALUES["accuracy_reward"]
    assert [-repeated(tokens, 2) for tokens in IDS] == pytest.approx(VALUES["get_repetition_penalty_reward"])
    cosine = Cosine(right_short=1.0, right_long=0.5, wrong_short=-1.0, wrong_long=-0.5, exceeded=0.0)
    ours = [
        cosine.of(len(tokens), 8, right=bool(right))
        for tokens, right in zip(IDS, VALUES["accuracy_reward"], strict=True)
    ]
    assert ours == pytest.approx(VALUES["get_cosine_scaled_reward"])
