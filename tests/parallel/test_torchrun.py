"""A run under torchrun that restarts its processes."""

import os
import signal
import time
from pathlib import Path

import torch.distributed.run

from slimrl.runs.reader import read_metrics, read_status
from tests.forks import Fork

SMALL = (
    "name=a", "steps=8", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=16", "evaluation.problems=1",
    "evaluation.samples=1", "evaluation.greedy=false", "evaluation.harder_problems=0",
)  # fmt: skip
RANK = """
import os
from pathlib import Path

from slimrl.cli import main
from slimrl.machine import interpreter

interpreter.PARENT = os.getppid()  # it was noted when the modules were imported
Path(f"rank-{os.environ['RANK']}").write_text(f"{os.getpid()}")
try:
    main()
except SystemExit as end:  # for torchrun a fork that has succeeded is one that returns
    if end.code:
        raise
"""
"""The command `slimrl` in a process that torchrun forks."""


def torchrun(*arguments: str) -> None:
    torch.distributed.run.main([*arguments])


def test_torchrun_restarts_the_ranks_of_a_run_that_goes_on(tmp_path: Path) -> None:
    """torchrun forks its ranks from a process that has imported what they need."""
    (tmp_path / "rank.py").write_text(RANK)
    arguments = ["--nproc-per-node=2", "--max-restarts=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    arguments += ["--start-method=fork", "--run-path", "rank.py", "train", "--resume", *SMALL]
    job = Fork(torchrun, *arguments, variables={}, folder=tmp_path)
    run, end = tmp_path / "runs" / "a", time.monotonic() + 120
    while len(read_metrics(run)) < 2 and time.monotonic() < end and job.running:
        time.sleep(0.02)
    rank = int((tmp_path / "rank-1").read_text())
    os.kill(rank, signal.SIGKILL)
    code, _, said = job.ended()
    assert code == 0, said[-2000:]
    assert int((tmp_path / "rank-1").read_text()) != rank, "another process has taken its place"
    assert "resuming after step" in said
    assert read_status(run) == "finished"
    assert [line["step"] for line in read_metrics(run)] == [*range(1, 9)]
