"""A run keeps the completions of its first and its last evaluation, and no others."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from slimrl.results import Evaluation, SplitEvaluation, compare
from slimrl.runs.files import as_jsonl
from slimrl.runs.measured import Measured, read_evaluations
from tests.test_results import answered


def evaluation(step: int, right: int) -> Evaluation:
    return Evaluation(step, SplitEvaluation(tuple(answered(str(i), i < right) for i in range(8))), SplitEvaluation(()))


def test_completions_between_the_first_and_the_last_are_let_go() -> None:
    measured, alive = Measured(), []
    for step in range(5):
        found = evaluation(10 * step, right=step)
        alive.append(weakref.ref(found))
        measured.add(found)
        del found
    gc.collect()
    assert [ref() is not None for ref in alive] == [True, False, False, False, True]
    assert [found["test"]["accuracy"] for found in measured.summaries.values()] == [0.0, 0.125, 0.25, 0.375, 0.5]
    assert compare(measured.first, measured.last)["test"]["sampled"]["change"] == 0.5
    measured.rewind(20)
    assert [*measured.summaries] == [0, 10, 20]
    assert measured.first.step == 0
    measured.add(evaluation(40, right=8))
    assert (measured.first.step, measured.last.step) == (0, 40)


def test_one_evaluation_is_both_ends() -> None:
    measured = Measured()
    measured.add(evaluation(0, right=1))
    assert measured.first is measured.last


@pytest.mark.parametrize("spoilt", ["", "{", '{"split": "test"}\n'])
def test_what_cannot_be_read_is_left_out(spoilt: str, tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    for step in (0, 10, 20):
        (tmp_path / "evals" / f"step-{step:08d}.jsonl").write_text(as_jsonl(evaluation(step, right=step // 10).table()))
    (tmp_path / "evals" / "step-00000005.jsonl").write_text(spoilt)
    found = [*read_evaluations(tmp_path, up_to=10)]
    assert found == [evaluation(0, right=0), evaluation(10, right=1)]
