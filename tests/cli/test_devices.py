"""Runs on two devices, as processes: a rank that is killed costs no more than the step that it was in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.conftest import ROOT
from tests.forks import Fork, command

SMALL = [
    "steps=4", "rollout.problems=4", "rollout.group_size=2", "evaluation.problems=2", "evaluation.every=0",
    "evaluation.harder_problems=0", "evaluation.greedy=false", "devices=2",
]  # fmt: skip


def start(*arguments: str) -> Fork:
    return command("train", *arguments, "--quiet", "--json", quick=True)


def summary(process: Fork) -> dict[str, Any]:
    code, out, err = process.ended()
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def follower_of(leader: int) -> int:
    """The process that the leader has started as its second rank."""
    children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
    (found,) = (
        int(child) for child in children if b"slimrl.cli.follower" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of a run that was left alone."""
    return summary(start(*SMALL, f"output={tmp_path_factory.mktemp('runs')}", "name=whole"))


def begun(run: Path, *more: str) -> Fork:
    """A run that has taken a step."""
    process = start(*SMALL, f"output={run.parent}", f"name={run.name}", *more)
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.running, process.ended()
        time.sleep(0.05)
    return process


def check_resumed(run: Path, whole: dict[str, Any]) -> None:
    resumed = summary(start("--resume", str(run)))
    for key in ("weights", "optimizer", "after"):
        assert resumed[key] == whole[key]
    assert json.loads((run / "run.json").read_text())["ranks"] == 2


def test_a_run_whose_second_rank_is_killed_ends_as_one_that_was_left_alone(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    process = begun(tmp_path / "cut")
    follower = follower_of(process.pid)
    os.kill(follower, signal.SIGKILL)
    code, _, err = process.ended(120)
    assert code == 75
    assert "stopped by the loss of another process (rank 1 of the run was ended by signal 9) after step" in err
    assert not Path(f"/proc/{follower}").exists()
    check_resumed(tmp_path / "cut", whole)


def test_a_first_rank_that_hangs_is_ended_by_the_other(tmp_path: Path, whole: dict[str, Any]) -> None:
    """It serves the store that signs of life are put into, so the other one waits for an answer."""
    process = begun(tmp_path / "cut", "device_deadline=10", "checkpoint.every=1")
    follower = follower_of(process.pid)
    process.send(signal.SIGSTOP)
    until = time.monotonic() + 60
    while Path(f"/proc/{follower}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{follower}").exists()
    assert not process.running
    assert process.ended()[0] == -signal.SIGKILL
    check_resumed(tmp_path / "cut", whole)


STUCK = """
import os, sys
if os.environ.get("RANK") == "1":
    class Finder:
        def find_spec(self, name, path, target=None):
            if name == "slimrl.parallel.follow":
                sys.meta_path.remove(self)
                import time
                from slimrl.learner.optimizer import MasterAdamW
                taken, step = [], MasterAdamW.step
                def stuck(self, *arguments):
                    taken.append(1)
                    time.sleep(1000 * (len(taken) == 2))
                    return step(self, *arguments)
                MasterAdamW.step = stuck
    sys.meta_path.insert(0, Finder())
"""


def test_a_rank_that_gets_stuck_in_an_update_ends_and_the_run_goes_on(tmp_path: Path, whole: dict[str, Any]) -> None:
    """Its signs of life, which come from another thread, go on. The other rank waits for it in a call."""
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    ended = subprocess.run(
        [sys.executable, "-m", "slimrl", "train", *SMALL, f"output={tmp_path}", "name=cut", "device_deadline=10", "checkpoint.every=1"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 75
    assert "rank 1 made no progress for 10 s at" in ended.stderr
    assert "(rank 1 of the run ended with exit code 75) after step 1" in " ".join(ended.stderr.split())
    check_resumed(tmp_path / "cut", whole)


def test_a_stopped_run_whose_ranks_divide_its_state_leaves_all_of_it(tmp_path: Path, whole: dict[str, Any]) -> None:
    process = begun(tmp_path / "cut", "optimizer.sharded=true")
    follower = follower_of(process.pid)
    process.send(signal.SIGTERM)
    code, _, err = process.ended(120)
    assert code == 75
    assert "stopped by SIGTERM after step" in err
    assert "no checkpoint" not in err
    assert not Path(f"/proc/{follower}").exists()
    (checkpoint,) = (tmp_path / "cut" / "checkpoints").iterdir()
    with safe_open(checkpoint / "optimizer.safetensors", "pt") as file:
        assert any(key.endswith(":exp_avg") for key in file.keys())  # noqa: SIM118
    check_resumed(tmp_path / "cut", whole)


def test_a_stopped_run_with_divided_layers_is_resumed_to_the_bit(tmp_path: Path) -> None:
    divided = ("parallel=fsdp", "checkpoint.every=1")  # what writes a checkpoint borrows the memory of weights
    whole = summary(start(*SMALL, *divided, f"output={tmp_path}", "name=whole"))
    process = begun(tmp_path / "cut", *divided)
    os.kill(follower_of(process.pid), signal.SIGTERM)
    code, _, err = process.ended(120)
    assert code == 75
    assert "stopped by SIGTERM after step" in err
    assert "no checkpoint" not in err
    check_resumed(tmp_path / "cut", whole)
