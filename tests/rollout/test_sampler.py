"""The seam between training and sampling: nothing but the protocol is asked of a sampler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.model.policy import Policy
from slimrl.rollout import Sampler
from slimrl.train import TrainSummary, train
from tests.scripted import Scripted, Tape, recorder

SMALL = (
    "steps=2", "rollout.problems=2", "rollout.group_size=4", "rollout.max_new_tokens=40", "evaluation.problems=2",
    "evaluation.harder_problems=0", "evaluation.samples=1", "optimizer.minibatches=2",
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TrainSummary, list[dict[str, float]]]]:
    """`slimrl train` with another sampler: the summary, and the metrics of its steps."""

    def trained(name: str, make: Callable[..., Sampler], *settings: str) -> tuple[TrainSummary, list[dict[str, float]]]:
        monkeypatch.setattr("slimrl.preflight.setup.RolloutEngine", make)
        config = load_config(TrainConfig, [], [f"output={tmp_path}", f"name={name}", *SMALL, *settings])
        summary = train(config, Display(quiet=True))
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return summary, [json.loads(row) for row in rows]

    return trained


def scripted(tape: Tape, made: list[Scripted], **how: Any) -> Callable[..., Scripted]:
    def make(policy: Policy, **_: Any) -> Scripted:
        made.append(Scripted(policy, tape, **how))
        return made[-1]

    return make


def test_training_is_the_same_whoever_samples_the_same(run: Any) -> None:
    tape: Tape = {}
    made: list[Scripted] = []
    first, _ = run("engine", recorder(tape))
    second, _ = run("scripted", scripted(tape, made, exact=True))
    assert second.weights == first.weights
    assert second.optimizer == first.optimizer
    assert second.after == first.after
    (sampler,) = made
    assert len(sampler.seen) == 1 + 2, "once a step"
    assert len(set(sampler.seen)) == 1 + 2, "after the update, not before it"


@pytest.mark.parametrize("exact", [True, False])
def test_the_old_log_probabilities_are_computed_again_where_the_sampler_is_not_exact(exact: bool, run: Any) -> None:
    """The sampler's are 1 nat off: by them every ratio is far outside of its bounds from the first update on."""
    tape: Tape = {}
    still = ("optimizer.learning_rate=1e-30", "steps=1")
    run("engine", recorder(tape), *still)
    _, (step,) = run("scripted", scripted(tape, [], exact=exact, shift=-1.0), *still)
    assert step["sampling/sampling_logp_difference/mean"] == pytest.approx(1.0, abs=1e-3)
    assert (step["clip_ratio/region_mean"] > 0.2) == exact
    assert (step["clip_ratio/region_mean"] == 0.0) == (not exact)
