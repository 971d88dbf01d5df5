"""Start a run of trl_run.py, end it, and say what became of it and whether two runs are equal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TIMES = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
JOB: dict[str, Any] = {
    "output": "out",  # relative to the run's own folder, as users write it
    "model": str(ROOT / "slimrl" / "builtin"),
    "steps": 24,
    "save_steps": 4,
    "updates": 1,
    "rows": 128,  # of the data: 32 steps an epoch
    "hostile": "",
    "address_space": 0,
    "settings": {},
    "problems": 4,
    "completions": 4,
    "tokens": 32,
}


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """None: it hung, and was killed."""
    seconds: float
    steps: int
    """That it logged."""
    error: str
    """Type and message of the exception; empty without a traceback."""
    stderr: str
    left_over: int = 0
    """Processes of its session that outlived it."""


class Run:
    """One run in a folder of its own, in as many processes as it takes."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.job = JOB | changes
        self.output = folder / "out"
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        for name in ("began", "ended"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "job.json").write_text(json.dumps(self.job))
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "trl_run.py"), "job.json"],
                cwd=self.folder, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip
        self.started = time.monotonic()

    def wait_for_training(self) -> bool:
        """False where the process ends before."""
        while self.process.poll() is None:
            if (self.folder / "began").exists():
                return True
            time.sleep(0.002)
        return False

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """False where it has ended already."""
        if self.process.poll() is not None:
            return False
        os.kill(self.process.pid, number)
        return True

    def wait(self, patience: float = 300) -> Ended:
        code: int | None
        try:
            code = self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            code = None
            self.process.kill()
            self.process.wait()
        others = [pid for pid in session(self.process.pid) if pid != self.process.pid]
        for pid in others:
            os.kill(pid, signal.SIGKILL)
        errors = (self.folder / "stderr").read_text(errors="replace")
        out = self.folder / "stdout"
        steps = out.read_text(errors="replace").count("{'loss'") if out.stat().st_size < 2**26 else 0
        return Ended(code, time.monotonic() - self.started, steps, last_error(errors), errors, len(others))

    def result(self) -> dict[str, Any]:
        """What trl_run.py wrote at its end; empty where it did not get there."""
        file = self.folder / "ended"
        return json.loads(file.read_text()) if file.exists() else {}

    def checkpoints(self) -> list[int]:
        return sorted(int(p.name.partition("-")[2]) for p in self.output.glob("checkpoint-*"))


def environment() -> dict[str, str]:
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **settings, "TOKENIZERS_PARALLELISM": "false"}


def session(leader: int) -> list[int]:
    """Living processes of the session that `leader` began."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = stat.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(number) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def last_error(text: str) -> str:
    """The message under the last traceback, without this machine's folders."""
    _, found, after = text.rpartition("Traceback (most recent call last):")
    if not found:
        return ""
    lines = [line for line in after.splitlines()[1:] if line and not line.startswith((" ", "\t"))]
    return (lines[0] if lines else "")[:300].replace(str(ROOT), "REPOSITORY").replace(sys.prefix, "ENVIRONMENT")


def equal(first: Run, second: Run, step: int) -> dict[str, bool]:
    """Weights, optimizer and logged metrics of the two checkpoints of a step."""
    one, two = (run.output / f"checkpoint-{step}" for run in (first, second))
    same = {"weights": False, "optimizer": False, "metrics": False}
    try:
        same["weights"] = same_values(load_file(one / "model.safetensors"), load_file(two / "model.safetensors"))
        states = [torch.load(path / "optimizer.pt", weights_only=True) for path in (one, two)]
        same["optimizer"] = same_values(*states)
        same["metrics"] = same_values(metrics(one), metrics(two))
    except Exception as error:  # a checkpoint that cannot be read is not equal
        print(f"{two.parent.parent.name}: {type(error).__name__}", file=sys.stderr)
    return same


def metrics(checkpoint: Path) -> Any:
    """Every logged number of every step but times."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [{key: value for key, value in entry.items() if key not in TIMES} for entry in history]


def same_values(one: Any, two: Any) -> bool:
    """Bit for bit, nested; NaN equals NaN."""
    if isinstance(one, torch.Tensor):
        return one.shape == two.shape and one.dtype == two.dtype and one.numpy().tobytes() == two.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_values(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same_values(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two or (one != one and two != two))
