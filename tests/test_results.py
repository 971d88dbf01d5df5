"""Summaries of evaluations: verdicts by problem, modes apart."""

from __future__ import annotations

import dataclasses
import re
from math import inf

import numpy as np
import pytest

from slimrl.measures import Tally, both_bounds, mean_score, paired_scores, score_difference
from slimrl.results import Evaluation, GradedCompletion, SftSummary, SplitEvaluation, TrainSummary, compare
from slimrl.statistics import ADDED_TO_MEAN, bounded_interval, paired_difference
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


def scored(problem: str, score: float | None, mode: str = "sampled", sample: int = 0) -> GradedCompletion:
    row = answered(problem, True, mode, sample)
    return dataclasses.replace(
        row, scores={"tone": score}, unscorable="" if score is not None else "reward tone failed"
    )


BOUNDS = {"tone": (-1.0, 3.0)}


def test_scores_are_means_over_problems_and_what_failed_is_counted_and_not_zero() -> None:
    rows = (
        scored("a", 3.0),
        scored("a", 1.0, sample=1),
        scored("b", None),
        scored("b", 1.0, sample=1),
        scored("c", None),
    )
    summary = SplitEvaluation((*rows, scored("a", -1.0, "greedy")), BOUNDS).summary()
    assert summary["rewards/tone"] == 1.5
    assert (summary["rewards/tone/low"], summary["rewards/tone/high"]) == bounded_interval(
        [2.0, 1.0], -1.0, 3.0, added=ADDED_TO_MEAN
    )
    assert summary["rewards/tone/least"] == -1.0
    assert summary["unscorable"] == 2 / 5
    assert summary["greedy_rewards/tone"] == -1.0
    unknown = SplitEvaluation(rows).summary()
    assert unknown["rewards/tone/least"] == 1.0, "the lowest that was seen stands for a bound that is not known"
    assert 1.0 <= unknown["rewards/tone/low"] < 1.5 < unknown["rewards/tone/high"] <= 2.0
    assert not any("rewards" in key or key == "unscorable" for key in SplitEvaluation((answered("a", True),)).summary())


def test_changes_of_scores_are_paired_over_the_problems_that_have_one_in_both() -> None:
    before = SplitEvaluation((scored("a", 0.0), scored("b", 1.0), scored("c", None)), BOUNDS)
    after = SplitEvaluation((scored("a", 2.0), scored("b", 1.0), scored("c", 3.0)), BOUNDS)
    none = SplitEvaluation(())
    found = compare(Evaluation(0, before, none), Evaluation(9, after, none))["test"]
    assert found["rewards/tone"] == paired_difference({"a": 0.0, "b": 1.0}, {"a": 2.0, "b": 1.0}, reach=4.0)
    assert found["rewards/tone"]["n"] == 2
    assert "greedy_rewards/tone" not in found
    assert score_difference({"a": 1.0}, {"b": 1.0}) == {}
    assert paired_scores({"a": 1.0}, {"b": 1.0}) is None
    both = paired_scores({"a": 0.0, "b": 1.0, "c": 9.0}, {"a": 2.0, "b": 1.0})
    assert both is not None
    assert (both["first"], both["second"], both["difference"]) == (0.5, 1.5, 1.0)


def test_bounds_that_do_not_hold_for_all_scores_bound_no_interval() -> None:
    """As where they are known of one of two models."""
    before = {f"p{i}": -float(i) for i in range(10)}
    change = score_difference(before, dict.fromkeys(before, 1.0), both_bounds((-inf, inf), (0.0, 1.0)))
    assert change["low"] < change["change"] < change["high"]


def test_mean_scores_cover_the_truth_without_known_bounds() -> None:
    draws = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        low, high = (mean_score([*draws.exponential(1.0, 60)])[end] for end in ("low", "high"))
        hits += low <= 1.0 <= high
    assert hits / 400 > 0.91


def test_disputed_is_right_strictly_and_wrong_independently() -> None:
    def row(problem: str, strict: bool, independent: bool | None) -> GradedCompletion:
        return dataclasses.replace(answered(problem, strict), independent=independent)

    verdicts = ((True, True), (True, False), (True, None), (False, False), (False, True))
    split = SplitEvaluation(tuple(row(str(i), *pair) for i, pair in enumerate(verdicts)))
    assert split.summary()["disputed"] == 0.2
    after = SplitEvaluation(tuple(row(str(i), True, True) for i in range(5)))
    none = SplitEvaluation(())
    assert compare(Evaluation(0, split, none), Evaluation(9, after, none))["test"]["disputed"]["change"] == -0.2
    assert "disputed" not in SplitEvaluation((answered("a", True),)).summary(), (
        "without a second verdict nothing is said"
    )


def test_pass_at_n_is_told_for_both_verdicts_where_there_are_samples() -> None:
    rows = [
        dataclasses.replace(answered(name, strict, sample=i), lenient=lenient)
        for name, verdicts in {"a": ((False, True), (True, True)), "b": ((False, False), (False, True))}.items()
        for i, (strict, lenient) in enumerate(verdicts)
    ]
    summary = SplitEvaluation(tuple(rows)).summary()
    assert (summary["samples"], summary["pass@n"], summary["lenient_pass@n"]) == (2, 0.5, 1.0)
    assert "pass@n" not in SplitEvaluation((answered("a", True),)).summary()


def test_twins_are_paired_with_their_originals() -> None:
    def evaluation(twins: dict[str, bool]) -> Evaluation:
        test = SplitEvaluation(tuple(answered(name, True) for name in "abcd"))
        return Evaluation(
            0, test, SplitEvaluation(()), SplitEvaluation(tuple(answered(f"{k}/twin", v) for k, v in twins.items()))
        )

    before, after = evaluation({"a": True, "b": True, "c": False}), evaluation({"a": True, "b": False, "c": False})
    assert before.drops() == {"a": 0.0, "b": 0.0, "c": 1.0}
    summary = before.summaries()["twins"]
    assert summary["originals"] == 1.0
    assert summary["drop"] == pytest.approx(1 / 3)
    assert summary["drop_low"] < 1 / 3 < summary["drop_high"]
    found = compare(before, after)["twins"]
    assert found["sampled"]["change"] == pytest.approx(-1 / 3)
    assert found["drop"]["change"] == pytest.approx(1 / 3)
    assert [*before.splits] == ["test", "twins"]
    assert {row["split"] for row in before.table()} == {"test", "twins"}


@pytest.mark.parametrize(("verb", "summary"), [("train", TrainSummary), ("sft", SftSummary)])
def test_every_entry_of_a_summary_is_in_the_docs(verb: str, summary: type) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (entry,) = re.findall(rf"^- `slimrl {verb} --json`:(.*?)(?=^- |^$)", text, re.MULTILINE | re.DOTALL)
    assert {field.name for field in dataclasses.fields(summary)} <= {*re.findall(r"`(\w+)`", entry)}
