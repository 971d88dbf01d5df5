"""Summaries of evaluations: verdicts by problem, modes apart."""

from __future__ import annotations

import dataclasses
import re

import pytest

from slimrl.measures import Tally
from slimrl.results import GradedCompletion, SftSummary, SplitEvaluation, TrainSummary
from tests.conftest import ROOT


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


def test_measures_are_the_summary_and_what_samples_show() -> None:
    votes = {"a": (True, True, False), "b": (False, False, False)}
    rows = [
        dataclasses.replace(answered(name, strict, sample=i), vote=i)
        for name, verdicts in votes.items()
        for i, strict in enumerate(verdicts)
    ]
    split = SplitEvaluation((*rows, answered("a", True, "greedy"), answered("b", True, "greedy")))
    assert split.tallies() == {"a": Tally(2, (1,)), "b": Tally(0, (1, 1, 1))}
    assert split.tallies("greedy") == {"a": Tally(1), "b": Tally(1)}
    found = split.measures()
    assert {key: found[key] for key in split.summary()} == split.summary()
    assert {key: one["value"] for key, one in found["pass@k"].items()} == pytest.approx(
        {"1": 1 / 3, "2": 0.5, "3": 0.5}
    )
    assert {key: one["value"] for key, one in found["maj@k"].items()} == pytest.approx(
        {"1": 1 / 3, "2": 1 / 3, "3": 0.5}
    )


@pytest.mark.parametrize(("verb", "summary"), [("train", TrainSummary), ("sft", SftSummary)])
def test_every_entry_of_a_summary_is_in_the_docs(verb: str, summary: type) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (entry,) = re.findall(rf"^- `slimrl {verb} --json`:(.*?)(?=^- |^$)", text, re.MULTILINE | re.DOTALL)
    assert {field.name for field in dataclasses.fields(summary)} <= {*re.findall(r"`(\w+)`", entry)}
