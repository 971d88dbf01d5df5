"""The seam between training and sampling: nothing but the protocol is asked of a sampler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.machine.signals import Stopped
from slimrl.model.policy import Policy
from slimrl.results import TrainSummary
from slimrl.rollout import Sampler
from slimrl.rollout.engine import RolloutEngine
from slimrl.sft import sft
from slimrl.train import train
from tests.scripted import Scripted, Tape, recorder, total
from tests.session.test_resume import StopAt

SMALL = (
    "steps=2", "rollout.problems=2", "rollout.group_size=4", "rollout.max_new_tokens=40", "evaluation.problems=2",
    "evaluation.harder_problems=0", "evaluation.samples=1", "optimizer.minibatches=2",
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TrainSummary, list[dict[str, float]]]]:
    """`slimrl train` with another sampler: the summary, and the metrics of its steps."""

    def trained(name: str, make: Callable[..., Sampler], *settings: str) -> tuple[TrainSummary, list[dict[str, float]]]:
        monkeypatch.setattr("slimrl.preflight.sampler.RolloutEngine", make)
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


class OwnWeights(RolloutEngine):
    """Stands for a sampler with weights of its own: they are those of the last time that it was told, and must never be old."""

    def __init__(self, policy: Policy, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self.copied = total(policy)

    def generate(self, *args: Any, **settings: Any) -> Any:
        assert self.copied == total(self.policy)
        return super().generate(*args, **settings)

    def weights_changed(self) -> None:
        self.copied = total(self.policy)


def test_a_sampler_with_weights_of_its_own_is_told_of_every_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimrl.preflight.sampler.RolloutEngine", OwnWeights)
    places = (f"output={tmp_path}", "evaluation.every=1", "checkpoint.every=1", *SMALL)
    config = load_config(TrainConfig, [], ["name=a", *places])
    moments = StopAt(-1)
    train(config.model_copy(update={"name": "whole"}), Display(quiet=True), stop=moments)
    with pytest.raises(Stopped):
        train(config, Display(quiet=True), stop=StopAt((-1 - moments.left) * 3 // 4))
    train(config, Display(quiet=True), resume=True)
    short = ("steps=2", "sft.batch_size=4", "evaluation.problems=2", "evaluation.harder_problems=0")
    sft(load_config(SftRunConfig, [], [f"output={tmp_path}", "name=s", *short]), Display(quiet=True))
