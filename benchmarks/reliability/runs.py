"""A small run for the reliability batteries: 24 steps with all that can be lost, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STEPS = 24
EVERYTHING = (
    f"steps={STEPS}", "rollout.problems=4", "rollout.group_size=4", "rollout.max_new_tokens=40", "evaluation.problems=8",
    "evaluation.harder_problems=0", "evaluation.greedy=false", "evaluation.every=6", "optimizer.minibatches=2",
    "optimizer.epochs=2", "optimizer.schedule=linear", "algorithm.dynamic_sampling=refill", "algorithm.refill_budget=2",
    "algorithm.kl_coef=0.04", "curriculum.order=learnability", "checkpoint.every=4",
)  # fmt: skip
"""Dynamic sampling with surplus groups, a curriculum that learns, four updates per rollout batch, a reference, a schedule."""


def command(output: Path, name: str, *more: str) -> list[str]:
    """`slimrl train --resume`, which begins a run, goes on with it, or says that it is finished."""
    settings = (*EVERYTHING, *more, f"output={output}", f"name={name}")
    return [sys.executable, "-m", "slimrl", "train", "--resume", "--quiet", *settings]


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """One thread, so that several processes do not fight over cores; what it says goes to a file."""
    with log.open("ab") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(arguments, stdout=file, stderr=file, env=environment)


def wait_for_steps(folder: Path, process: subprocess.Popen[bytes], steps: int) -> None:
    """Until the process has taken so many steps more than were there, or has ended."""
    metrics = folder / "metrics.jsonl"

    def taken() -> int:
        return len(metrics.read_text().splitlines()) if metrics.is_file() else 0

    before = taken()
    while process.poll() is None and (taken() < before + steps or not (folder / "run.json").is_file()):
        time.sleep(0.005)


def content(folder: Path) -> object:
    """Everything that a run found, without times and memory: weights, optimizer, metrics, rollouts, held-out completions."""
    summary = json.loads((folder / "run.json").read_text())["summary"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
    files = [*sorted((folder / "evals").iterdir()), *sorted((folder / "rollouts").iterdir())]
    return summary["weights"], summary["optimizer"], metrics, [(file.name, file.read_bytes()) for file in files]


def status(folder: Path) -> str:
    """As run.json says; empty where there is none."""
    try:
        return str(json.loads((folder / "run.json").read_text())["status"])
    except (OSError, ValueError):
        return ""


def descendants(pid: int) -> set[int]:
    """Processes that this one started, and those that they started, as far as they are still its own."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = {int(child) for child in children.read_text().split()}
        except OSError:
            continue
        found |= own
        for child in own:
            found |= descendants(child)
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and not only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def report(found: dict[str, object], out: Path | None) -> None:
    """The table, and the same as JSON."""
    print("| what | figure |\n|---|---|")
    for what, figure in found.items():
        print(f"| {what} | {figure} |")
    if out:
        out.write_text(json.dumps(found, indent=2) + "\n")
