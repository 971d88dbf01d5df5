"""Tools that fail, and calls that cannot be carried out, are named before the first step and counted in each."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimrl.algorithm.groups import Collected
from slimrl.algorithm.metrics import describe
from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.preflight.calls import call_warnings
from slimrl.preflight.doctor import examine
from slimrl.preflight.setup import prepare_training
from slimrl.records import Completion, Group, Problem, Rollout, ToolCall
from slimrl.runs.reader import read_metrics
from tests.session.test_resume import run

BROKEN = '''
def calculate(expression: str) -> str:
    """Compute an expression.

    Args:
        expression: of whole numbers
    """
    return {}[expression[:0]]


class Broken:
    tools = [calculate]
'''
FAILED, MALFORMED = (
    ToolCall("price", "raised KeyError: 'plum' (shop.py:3 in price)"),
    ToolCall("", "the call is no JSON"),
)


def group(*episodes: tuple[ToolCall, ...] | None) -> Group:
    completion = Completion((1,), (2,), (0.0,), "stop")
    problem = Problem("p", "q", "1")
    return Group(tuple(Rollout(problem, completion, "1", True, {}, 1.0, calls=calls) for calls in episodes), 0)


@pytest.mark.parametrize(
    ("episodes", "words"),
    [
        ([None, None], []),
        ([(), ()], ["none of 2 episodes calls a tool; say in task.instruction when"]),
        ([(ToolCall("price"),), (FAILED, MALFORMED)], []),
        (
            [(FAILED, FAILED), (ToolCall("look"),)],
            ["the tool price failed in each of 2 calls: it raised KeyError: 'plum' (shop.py:3 in price); correct it"],
        ),
        ([(FAILED,), ()], ["the tool price failed in its only call: it raised KeyError"]),
        (
            [(MALFORMED,) * 9, (ToolCall("price"),)],
            ["9 of 10 calls of tools could not be carried out (most often: the call is"],
        ),
    ],
)
def test_calls_that_fail_are_told(episodes: list[tuple[ToolCall, ...] | None], words: list[str]) -> None:
    found = call_warnings([group(*episodes)])
    assert len(found) == len(words)
    assert all(sentence.startswith(part) for sentence, part in zip(found, words, strict=True))


def test_a_step_counts_its_calls() -> None:
    groups = (group((FAILED, ToolCall("price"), MALFORMED), (ToolCall("look"),)), group((), None))
    metrics = describe(Collected(groups, (), groups, wanted=2), "reward")
    assert {key: value for key, value in metrics.items() if key.startswith("tools/")} == {
        "tools/calls": 4 / 3,
        "tools/failed": 0.5,
        "tools/malformed": 0.25,
        "tools/look/failed": 0.0,
        "tools/price/failed": 0.5,
    }
    assert not [key for key in describe(Collected((), (), (group(None),), wanted=1), "reward") if "tools" in key]


def test_a_tool_that_always_raises_is_named_before_the_run_and_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    settings = ["model.path=builtin-tools", f"environment.name={file}:Broken", "rollout.max_new_tokens=64"]
    training = prepare_training(load_config(TrainConfig, [], settings))
    warnings = [warning for warning in examine(training).warnings if "the tool calculate failed" in warning]
    training.close()
    assert len(warnings) == 1
    assert "calls: it raised KeyError: '' (broken.py:8 in calculate); correct it" in warnings[0]
    monkeypatch.setattr("slimrl.preflight.doctor.PROBE_PROBLEMS", 2)  # of the run, which would sample the same again
    run(tmp_path, "a", *settings, "steps=2")
    assert len(read_metrics(tmp_path / "a")) == 2
    for row in read_metrics(tmp_path / "a"):
        assert row["tools/calls"] > 0
        assert row["tools/failed"] == row["tools/calculate/failed"] == 1.0
