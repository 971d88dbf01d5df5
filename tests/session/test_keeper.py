"""Checkpoints beside the work of a run: whole, of their step, and before any weight moves."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from slimrl import train as training
from slimrl.config.sections import CheckpointConfig
from slimrl.learner.learner import Learner
from slimrl.runs import checkpoints as checkpoint_files
from slimrl.runs.checkpoints import Checkpoint, begin_checkpoint, checkpoints
from slimrl.runs.directory import RunDirectory
from slimrl.session.keeper import Keeper
from tests.test_train import SMALL, run

SECONDS = 30.0


def test_a_checkpoint_is_written_beside_sampling_and_before_weights_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing waits here until the next step has sampled, and the update finds that it has ended."""
    sampled_again, written, updates = threading.Event(), [], []
    write, collect, update = checkpoint_files.write_tensors, training.collect, Learner.update

    def held(path: Path, tensors: Any) -> Any:
        assert sampled_again.wait(SECONDS)
        done = write(path, tensors)
        written.append(path.name)
        return done

    def sampled(setup: Any, state: Any) -> Any:
        found = collect(setup, state)
        if state.step:
            sampled_again.set()
        return found

    def updated(self: Learner, groups: Any, step: int) -> Any:
        updates.append((step, len(written)))
        return update(self, groups, step)

    monkeypatch.setattr(checkpoint_files, "write_tensors", held)
    monkeypatch.setattr(training, "collect", sampled)
    monkeypatch.setattr(Learner, "update", updated)
    run(tmp_path, "a", *SMALL, "steps=2", "checkpoint.every=1")
    assert updates == [(0, 0), (1, 2)], "model and optimizer"


@pytest.fixture
def kept(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def begin(kept: RunDirectory, step: int, held: threading.Event) -> Any:
    tensors = {"model": {"x": torch.full((2,), float(step))}}
    finish = begin_checkpoint(kept.checkpoints, step, tensors, {"step": step}, lambda _: None)

    def wait_and_finish() -> Checkpoint:
        assert held.wait(SECONDS)
        return finish()

    return wait_and_finish


@pytest.mark.parametrize("beside", [True, False])
def test_what_is_offered_is_there_when_it_is_settled(kept: RunDirectory, beside: bool) -> None:
    held, step = threading.Event(), 1
    keeper = Keeper(
        kept, CheckpointConfig(every=1, keep=2), lambda: begin(kept, step, held), lambda *_: None, beside=beside
    )
    if not beside:
        held.set()
    keeper.offer(step)
    assert [c.step for c in checkpoints(kept.checkpoints)] == ([] if beside else [1])
    held.set()
    for step in (2, 3):
        keeper.offer(step)  # which waits for the one before
    keeper.settle()
    assert [c.step for c in checkpoints(kept.checkpoints)] == [3, 2], "older ones are removed"
    for found in checkpoints(kept.checkpoints):
        assert not checkpoint_files.damage(found.path)
        assert found.tensors("model")["x"].tolist() == [found.step] * 2


def test_what_fails_beside_is_said_and_tried_again(kept: RunDirectory) -> None:
    held, said, fails = threading.Event(), [], [True]
    held.set()

    def attempt() -> Any:
        if fails.pop():
            return lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        return begin(kept, 2, held)

    keeper = Keeper(kept, CheckpointConfig(every=1), attempt, lambda text, _: said.append(text), beside=True)
    keeper.offer(1)
    assert said == [], "not yet known"
    keeper.settle()
    assert said == ["no checkpoint after step 1 (No space left on device); the next step tries again"]
    fails.append(False)
    keeper.settings = CheckpointConfig(every=100)
    keeper.offer(2)
    keeper.settle()
    assert [c.step for c in checkpoints(kept.checkpoints)] == [2]
