"""The numbers of tokens that a step keeps are those that its metrics are means of, and keeping them changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from slimrl.learner.trace import Trace
from slimrl.records import TRACED
from slimrl.runs.tokens import TokenRow, read_tokens
from tests.test_train import metrics, run, same

SMALL = (
    "steps=2",
    "rollout.problems=4",
    "rollout.group_size=4",
    "evaluation.problems=4",
    "evaluation.harder_problems=0",
)


def tokens(folder: str, step: int, name: str) -> np.ndarray:
    """A number of all tokens of a step."""
    return np.concatenate([row.numbers[name] for row in read_tokens(Path(folder), step).values()])


def rollouts(folder: str, step: int) -> list[dict[str, object]]:
    file = Path(folder) / "rollouts" / f"step-{step:08d}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_what_is_kept_of_tokens_changes_nothing(tmp_path: Path) -> None:
    every = run(tmp_path, "all", *SMALL, "log.tokens=all", "optimizer.epochs=2")
    some = run(tmp_path, "samples", *SMALL, "optimizer.epochs=2", "rollout.problems=5", "steps=1")
    none = run(tmp_path, "off", *SMALL, "log.tokens=off", "optimizer.epochs=2")
    assert same(every, none)
    assert every.optimizer == none.optimizer
    columns = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics(every)]
    assert columns == [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics(none)]
    assert not list((Path(none.run) / "rollouts").glob("*.npz"))
    assert len(read_tokens(Path(every.run), 1)) == 16
    assert len(read_tokens(Path(some.run), 1)) == 16, "the first four of five problems"
    unstored = run(tmp_path, "unstored", *SMALL, "log.rollouts=false", "optimizer.epochs=2")
    assert same(every, unstored)
    assert not (Path(unstored.run) / "rollouts").exists()


def test_metrics_are_means_of_what_is_kept(tmp_path: Path) -> None:
    """With a KL penalty every row is computed, so the means are over the same tokens."""
    trained = run(tmp_path, "a", *SMALL, "log.tokens=all", "algorithm.kl_coef=0.1", "algorithm.aggregation=token_mean")
    for step, row in enumerate(metrics(trained), start=1):
        for name, key, tolerance in (
            ("entropy", "entropy", 1e-3),
            ("kl", "kl", 1e-3),
            ("clipped", "clip_ratio/region_mean", 0),
        ):
            assert tokens(trained.run, step, name).mean() == pytest.approx(row[key], rel=tolerance, abs=1e-6), name
        gap = np.abs(tokens(trained.run, step, "gap"))
        assert gap.mean() == pytest.approx(row["sampling/sampling_logp_difference/mean"], rel=1e-2, abs=1e-7)
        assert gap.max() == pytest.approx(row["sampling/sampling_logp_difference/max"], rel=1e-2, abs=1e-7)
        assert (tokens(trained.run, step, "log_ratio") == 0).all(), "one update: the ratio is 1"
        assert (tokens(trained.run, step, "weight") == 1).all(), "token_mean: an equal share for every token"
        found = read_tokens(Path(trained.run), step)
        for line, stored in enumerate(rollouts(trained.run, step)):
            assert len(found[line].pieces) == stored["tokens"]
            assert "".join(found[line].pieces).startswith(str(stored["text"]))


def test_weights_of_completions_and_rows_that_no_update_computes(tmp_path: Path) -> None:
    """GRPO: a completion's tokens share its weight; a completion without an advantage is not computed, and keeps its zero."""
    trained = run(tmp_path, "a", *SMALL, "log.tokens=all", "algorithm.kl_coef=0", "algorithm.aggregation=sequence_mean")
    found = read_tokens(Path(trained.run), 1)
    total = sum(len(row.pieces) for row in found.values())
    still = [row for row in found.values() if (row.numbers["advantage"] == 0).all()]
    moving = [row for row in found.values() if (row.numbers["advantage"] != 0).all()]
    assert len(still) + len(moving) == len(found)
    assert moving
    for row in moving:
        assert row.numbers["weight"] == pytest.approx(total / len(found) / len(row.pieces), rel=1e-3)
        assert np.isfinite(row.numbers["gap"]).all()
        assert "kl" not in row.numbers
    for row in still:
        assert np.isnan(row.numbers["gap"]).all()


def test_of_several_updates_the_last_is_kept(tmp_path: Path) -> None:
    settings = (*SMALL, "log.tokens=all", "optimizer.epochs=2", "optimizer.learning_rate=1e-3")
    trained = run(tmp_path, "a", *settings)
    ratios: list[TokenRow] = [*read_tokens(Path(trained.run), 1).values()]
    moved = [row for row in ratios if np.nan_to_num(row.numbers["log_ratio"]).any()]
    assert moved, "the second epoch compares with the policy that sampled"
    assert {float(x) for row in moved for x in row.numbers["clipped"]} == {0.0, 1.0}


def test_nothing_is_computed_for_rows_that_nobody_looks_at() -> None:
    numbers = torch.full((len(TRACED), 2, 3), torch.nan, dtype=torch.float16)
    trace = Trace(numbers, torch.ones(2, 3, dtype=torch.bool), torch.arange(5), scale=1.0)

    def refuse() -> torch.Tensor:
        raise AssertionError("was asked")

    trace.part(torch.tensor([2, 4])).keep(refuse)
    trace.part(torch.tensor([4, 1])).keep(lambda: torch.ones(len(TRACED), 2, 2, dtype=torch.float16))
    assert torch.isnan(numbers[:, 0]).all()
    assert (numbers[:, 1, :2] == 1).all()
    assert torch.isnan(numbers[:, 1, 2]).all()
    assert Trace(numbers[:, :0], trace.completion_mask[:0], trace.rows, 1.0).traced() is None
