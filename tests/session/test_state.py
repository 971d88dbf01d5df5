"""The state of a run as a checkpoint holds it: the format of state.json, and its way back."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from slimrl.config.sections import ModelConfig, OptimizerConfig
from slimrl.errors import DataError, NonFiniteError
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.state import tensors_of
from slimrl.machine.tensors import TensorStream
from slimrl.model.loading import load_policy
from slimrl.model.policy import Policy
from slimrl.preflight.observed import NOTHING_OBSERVED
from slimrl.records import Answer, Completion, Group, Problem, Rollout
from slimrl.runs.checkpoints import checkpoints, write_checkpoint
from slimrl.runs.directory import RunDirectory
from slimrl.runs.durable import damage
from slimrl.session import state
from slimrl.session.state import (
    RunState,
    as_json,
    from_json,
    read_run_state,
    save_policy,
)
from tests.tiny import read_state

PROBLEM = Problem("p/1", "1+1?", "2", "2 it is", 1.0)


def rollout(token: int) -> Rollout:
    completion = Completion((5, 6), (token, 2), (-0.12345678901234568, -1.5), "stop")
    return Rollout(PROBLEM, completion, "#### 2", True, {"correct": 1.0}, 1.0)


STATE = RunState(
    step=3,
    tokens=64,
    seconds=1.25,
    carried=(Group((rollout(8), rollout(9)), 2),),
    seen=dataclasses.replace(NOTHING_OBSERVED, completions=4, alphas=frozenset({2.0, 1.0})),
    suspects=("p/2",),
    excluded=("p/3", "p/4"),
    unscorable={"timed out": 2},
)
STORED: dict[str, Any] = {
    "step": 3, "tokens": 64, "seconds": 1.25, "faults": 0, "suspects": ["p/2"], "rolled_back": False, "excluded": ["p/3", "p/4"],
    "unscorable": {"timed out": 2},
    "seen": {
        "completions": 4, "truncated": 0, "longest": 0, "shortest": 0, "groups": 0, "constant": 0, "carried": 0, "steps": 0,
        "skipped": 0, "clipped": 0, "corrected": 0, "bounded": 0, "alphas": [1.0, 2.0],
    },
    "carried": [
        {
            "step": 2,
            "problem": {"id": "p/1", "question": "1+1?", "answer": "2", "solution": "2 it is", "difficulty": 1.0},
            "rollouts": [
                {
                    "text": "#### 2", "correct": True, "scores": {"correct": 1.0}, "reward": 1.0, "unscorable": "",
                    "completion": {
                        "prompt_ids": [5, 6], "token_ids": [token, 2], "logprobs": [-0.12345678901234568, -1.5], "finish": "stop",
                    },
                }
                for token in (8, 9)
            ],
        }
    ],
}  # fmt: skip
"""STATE as checkpoints have held it since they were first written."""


def test_the_format_of_a_checkpoint_stays() -> None:
    assert as_json(STATE) == STORED
    assert from_json(json.loads(json.dumps(STORED))) == STATE
    assert from_json(json.loads(json.dumps(as_json(RunState())))) == RunState()


def test_failures_of_rewards_that_are_not_paid_are_stored() -> None:
    failed = dataclasses.replace(rollout(8), unmeasured="reward seen failed")
    state = dataclasses.replace(STATE, carried=(Group((failed,), 2),), unmeasured={"reward seen failed": 1})
    assert from_json(json.loads(json.dumps(as_json(state)))) == state


def test_episodes_come_back_with_their_turns() -> None:
    whole = STATE.carried[0].rollouts[0]
    completion = dataclasses.replace(whole.completion, given=(False, True))
    played = dataclasses.replace(whole, completion=completion, turns=(("assistant", "a"), ("tool", "5")))
    carried = dataclasses.replace(STATE, carried=(Group((played, whole), 2),))
    assert from_json(json.loads(json.dumps(as_json(carried)))) == carried


def test_turns_of_episodes_come_back() -> None:
    carried = STATE.carried[0].rollouts
    paid = dataclasses.replace(carried[0], turns=(("assistant", "a"),), turn_rewards=(0.5, None), returns=(1.0, 0.25))
    seen = dataclasses.replace(STATE.seen, turns=3, paid_by_turn=1)
    kept = dataclasses.replace(STATE, carried=(Group((paid, carried[1]), 2),), seen=seen)
    assert from_json(json.loads(json.dumps(as_json(kept)))) == kept


def test_data_columns_and_prompts_are_not_stored() -> None:
    """Columns may hold what JSON does not, and a group that was scored is not asked or graded again."""
    odd = dataclasses.replace(
        PROBLEM, columns={"image": object()}, turns=(("user", "0?"),), answer=Answer("2", ["two"])
    )
    group = Group(tuple(dataclasses.replace(r, problem=odd) for r in STATE.carried[0].rollouts), 2)
    assert as_json(dataclasses.replace(STATE, carried=(group,))) == STORED


@pytest.mark.parametrize("spoilt", [{}, {"run": {**STORED, "step": "many"}}, {"run": {**STORED, "carried": [3]}}])
def test_a_state_of_another_version_is_one_sentence(spoilt: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 3, {}, spoilt)
    with pytest.raises(DataError, match=r"state\.json was written by another version of SlimRL"):
        read_run_state(checkpoint, from_json)


@pytest.fixture
def trained(tiny_folder: Path) -> tuple[Policy, MasterAdamW]:
    """A narrow policy after an update, so that there are masters and moments."""
    policy = load_policy(ModelConfig(path=str(tiny_folder), dtype="bfloat16", device="cpu"))
    optimizer = MasterAdamW(policy.trainable, OptimizerConfig(learning_rate=1e-2))
    move(policy, optimizer)
    return policy, optimizer


def move(policy: Policy, optimizer: MasterAdamW) -> None:
    optimizer.backward(sum(p.float().square().sum() for p in policy.trainable.values()))
    optimizer.step(1e-2, optimizer.gradient_norm())


def state_of(policy: Policy, optimizer: MasterAdamW) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in (policy.tensors() | read_state(optimizer)).items()}


@pytest.mark.parametrize("room", [True, False])
def test_a_state_on_a_device_is_copied_to_the_host_or_written_at_once(
    room: bool, trained: tuple[Policy, MasterAdamW], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors that count as another device's: they may move after the checkpoint is begun, and it does not."""
    run = RunDirectory(tmp_path)
    monkeypatch.setattr(state, "is_hosts", lambda _tensor: False)
    monkeypatch.setattr(state, "free_memory", lambda _device: 2**40 if room else 0)
    before = state_of(*trained)
    finish = save_policy(
        run, trained[0], 1, {"optimizer": tensors_of(trained[1])}, {"run": {}, "scale": trained[1].scale}
    )
    assert bool(checkpoints(run.checkpoints)) is not room
    move(*trained)
    found = finish()
    stored = {**found.tensors("model"), **found.tensors("optimizer")}
    assert not damage(found.path)
    assert stored.keys() == before.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in before.items())
    assert not all(torch.equal(stored[name], tensor) for name, tensor in state_of(*trained).items())


def test_a_stream_is_written_at_once(trained: tuple[Policy, MasterAdamW], tmp_path: Path) -> None:
    """And is the same file as that of the tensors."""
    run, plain = RunDirectory(tmp_path), {"run": {}, "scale": trained[1].scale}
    tensors = read_state(trained[1])
    outline = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    spoiled = TensorStream(outline, iter(tensors.values()), finite=False)
    with pytest.raises(NonFiniteError):
        save_policy(run, trained[0], 1, {"optimizer": spoiled}, plain)
    assert not [*run.path.rglob("*.safetensors")]
    stream = TensorStream(outline, iter(tensors.values()), finite=True)
    save_policy(run, trained[0], 1, {"optimizer": stream}, plain)
    (streamed,) = checkpoints(run.checkpoints)
    save_policy(run, trained[0], 2, {"optimizer": tensors}, plain)()
    (whole, _) = checkpoints(run.checkpoints)
    first, second = ((kept.path / "optimizer.safetensors").read_bytes() for kept in (streamed, whole))
    assert first == second


def test_a_checkpoint_is_forced_onto_the_disk(
    trained: tuple[Policy, MasterAdamW], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its files, as they are in the end, and the folders that name them: a loss of power cannot leave half of it."""
    sizes: dict[int, int] = {}

    def force(descriptor: int) -> None:
        found = os.fstat(descriptor)
        sizes[found.st_ino] = found.st_size

    monkeypatch.setattr(os, "fsync", force)
    run = RunDirectory(tmp_path)
    save_policy(run, trained[0], 1, {"optimizer": read_state(trained[1])}, {"run": {}, "scale": trained[1].scale})()
    (whole,) = checkpoints(run.checkpoints)
    files = [path.stat() for path in whole.path.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert {file.st_ino: file.st_size for file in files}.items() <= sizes.items()
    assert {whole.path.stat().st_ino, run.checkpoints.stat().st_ino} <= sizes.keys()


def test_what_is_on_the_host_is_not_copied(trained: tuple[Policy, MasterAdamW]) -> None:
    """Memory for a copy is in no plan; weights wait for the checkpoint instead."""
    tensors = read_state(trained[1])
    held = state.on_host({"optimizer": tensors})
    assert held is not None
    assert all(held["optimizer"][name].data_ptr() == tensor.data_ptr() for name, tensor in tensors.items())
