"""Checkpoints beside the work of a run: whole, of their step, and before any weight moves."""

from __future__ import annotations

import errno
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import CheckpointConfig
from slimrl.display.run import Display
from slimrl.learner.learner import Learner
from slimrl.machine.signals import Stop, Stopped
from slimrl.runs import checkpoints as checkpoint_files
from slimrl.runs.checkpoints import Checkpoint, begin_checkpoint, checkpoints
from slimrl.runs.directory import RunDirectory
from slimrl.session import state
from slimrl.session.keeper import Keeper
from tests.test_train import SMALL, run

training = import_module("slimrl.train")  # slimrl.train is the function of the Python interface
SECONDS = 30.0


@pytest.mark.parametrize("copied", [False, True])
def test_a_checkpoint_is_written_beside_sampling_and_before_weights_move(
    copied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing waits here until the next step has sampled, and the update finds that it has ended; copied as from a GPU too."""
    monkeypatch.setattr(state, "is_hosts", lambda _tensor: not copied)
    sampled_again, written, updates = threading.Event(), [], []
    write, collect, update = checkpoint_files.write_tensors, training.collect, Learner.update

    def held(path: Path, tensors: Any) -> Any:
        assert sampled_again.wait(SECONDS)
        done = write(path, tensors)
        written.append(path.name)
        return done

    def sampled(setup: Any, before: Any) -> Any:
        found = collect(setup, before)
        if before.step:
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


def test_what_is_offered_is_there_when_it_is_settled(kept: RunDirectory) -> None:
    held, step = threading.Event(), 1
    keeper = Keeper(kept, CheckpointConfig(every=1, keep=2), lambda: begin(kept, step, held), lambda *_: None)
    keeper.offer(step)
    assert [c.step for c in checkpoints(kept.checkpoints)] == []
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

    keeper = Keeper(kept, CheckpointConfig(every=1), attempt, lambda text, _: said.append(text))
    keeper.offer(1)
    assert said == [], "not yet known"
    keeper.settle()
    assert said == ["no checkpoint after step 1 (No space left on device); the next step tries again"]
    fails += [False, True]
    keeper.offer(2, last=True)
    keeper.settle()
    assert said[1:] == ["no checkpoint after step 2 (No space left on device)"], "there is no next step"
    keeper.settings = CheckpointConfig(every=100)
    keeper.offer(2)
    keeper.settle()
    assert [c.step for c in checkpoints(kept.checkpoints)] == [2]


def broken() -> Any:
    """A checkpoint whose writing meets an error of the program's own."""
    return lambda: (_ for _ in ()).throw(RuntimeError("a defect"))


@pytest.mark.parametrize("reason", [None, ValueError("a bad reward"), Stopped("SIGTERM", 75)])
def test_what_fails_beside_never_hides_what_ended_the_run(kept: RunDirectory, reason: BaseException | None) -> None:
    said: list[str] = []
    keeper = Keeper(kept, CheckpointConfig(every=1), broken, lambda text, _: said.append(text))

    def work() -> None:
        with keeper.settled():
            keeper.offer(1)
            if reason is not None:
                raise reason

    with pytest.raises(
        RuntimeError if reason is None else type(reason), match="a defect" if reason is None else str(reason)
    ):
        work()
    assert said == ([] if reason is None else ["no checkpoint after step 1 (a defect)"])


def test_a_stop_still_leaves_a_checkpoint_where_the_one_before_fails(kept: RunDirectory) -> None:
    held, said, attempts = threading.Event(), [], [lambda: begin(kept, 2, held), broken]
    held.set()
    keeper = Keeper(kept, CheckpointConfig(every=1), lambda: attempts.pop()(), lambda text, _: said.append(text))
    keeper.offer(1)
    keeper.keep(2)
    assert said == ["no checkpoint after step 1 (a defect)"]
    assert [c.step for c in checkpoints(kept.checkpoints)] == [2]


@pytest.mark.parametrize("phase", ["sampling", "update"])
def test_a_stop_waits_for_the_checkpoint_of_its_step_and_writes_no_second(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint is written slowly, and the stop comes while it is, or right after."""
    asked, begun, stop = threading.Event(), [], Stop()
    write, save, collect, update = checkpoint_files.write_tensors, training.save, training.collect, Learner.update

    def slowly(path: Path, tensors: Any) -> Any:
        assert phase == "update" or asked.wait(SECONDS)
        return write(path, tensors)

    def counted(*given: Any) -> Any:
        begun.append(given[-1].step)
        return save(*given)

    def ask() -> None:
        stop.ask("SIGTERM", 75)
        asked.set()

    def sampled(setup: Any, before: Any) -> Any:
        if phase == "sampling" and before.step == 1:
            ask()
        return collect(setup, before)

    def updated(self: Learner, groups: Any, step: int) -> Any:
        if phase == "update" and step == 1:
            ask()
        return update(self, groups, step)

    monkeypatch.setattr(checkpoint_files, "write_tensors", slowly)
    monkeypatch.setattr(training, "save", counted)
    monkeypatch.setattr(training, "collect", sampled)
    monkeypatch.setattr(Learner, "update", updated)
    config = load_config(TrainConfig, [], [*SMALL, "steps=3", "checkpoint.every=1", f"output={tmp_path}", "name=a"])
    with pytest.raises(Stopped, match="after step 1; resume with"):
        training.train(config, Display(quiet=True), stop=stop)
    assert begun == [1]
    assert [c.step for c in checkpoints(tmp_path / "a" / "checkpoints")] == [1]
