"""A run under torchrun that restarts its processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimrl.runs.reader import read_metrics, read_status
from tests.conftest import ROOT

SMALL = (
    "name=a", "steps=8", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=16", "evaluation.problems=1",
    "evaluation.samples=1", "evaluation.greedy=false", "evaluation.harder_problems=0",
)  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes of the run in /proc")
def test_torchrun_restarts_the_ranks_of_a_run_that_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command += [
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        "-m",
        "slimrl",
        "train",
        "--resume",
        "--json",
        *SMALL,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        run, end = tmp_path / "runs" / "a", time.monotonic() + 120
        while len(read_metrics(run)) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        (rank,) = [pid for pid in descendants(job.pid) if b"RANK=1" in variables(pid)]
        os.kill(rank, signal.SIGKILL)
        printed, said = job.communicate()
    assert job.returncode == 0, said[-2000:]
    assert "resuming after step" in said
    assert json.loads(printed)["steps"] == 8, "one object, of the rank that leads"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]
    assert read_status(run) == "finished"
    assert [line["step"] for line in read_metrics(run)] == [*range(1, 9)]


def variables(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def descendants(pid: int) -> list[int]:
    children = [int(n) for path in Path(f"/proc/{pid}/task").glob("*/children") for n in path.read_text().split()]
    return [*children, *(found for child in children for found in descendants(child))]
