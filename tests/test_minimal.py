"""recipes/minimal.py, the algorithm on one page, is the algorithm of `slimrl train`."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
from safetensors.torch import load_file

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.runs.durable import digest
from slimrl.train import train
from tests.conftest import ROOT

PAGE = ROOT / "recipes" / "minimal.py"
PLANNED = ("optimizer.microbatch_tokens=16384", "optimizer.activation_checkpointing=off", "rollout.slots=256")


def test_minimal_has_the_weights_of_a_run_to_the_bit(tmp_path: Path) -> None:
    policy = runpy.run_path(str(PAGE))["train"](2)
    small = ("evaluation.problems=1", "evaluation.harder_problems=0", "evaluation.greedy=false")
    config = load_config(TrainConfig, [], [f"output={tmp_path}", "name=a", "steps=2", *PLANNED, *small])
    summary = train(config, Display(quiet=True))
    assert summary.weights == digest(policy.trainable.items()), "what the page prints"
    trained = load_file(tmp_path / "a" / "final" / "model.safetensors")
    ours = policy.model.state_dict()
    assert trained.keys() <= ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in trained.items())
    started = load_file(ROOT / "slimrl" / "builtin" / "model.safetensors")
    assert any(not torch.equal(started[name], tensor) for name, tensor in trained.items())


def test_minimal_is_one_page() -> None:
    text = PAGE.read_text()
    assert text.count("\n") <= 120
    assert "load_config" not in text
