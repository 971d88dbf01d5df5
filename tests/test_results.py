"""Summaries of evaluations: verdicts by problem, modes apart."""

from __future__ import annotations

from slimrl.results import GradedCompletion, SplitEvaluation


def answered(problem: str, strict: bool, mode: str = "sampled", sample: int = 0) -> GradedCompletion:
    return GradedCompletion(problem, mode, sample, strict, strict, True, "stop", 5, "?", "1", "1", "1", "#### 1")  # type: ignore[arg-type]


def test_summary_keeps_modes_apart() -> None:
    rows = (answered("a", True), answered("a", False, sample=1), answered("b", True), answered("b", True, sample=1))
    greedy = (answered("a", False, "greedy"), answered("b", True, "greedy"))
    summary = SplitEvaluation(rows + greedy).summary()
    assert summary["accuracy"] == 0.75
    assert summary["n"] == 2
    assert summary["greedy"] == 0.5
    assert "greedy" not in SplitEvaluation(rows).summary()
