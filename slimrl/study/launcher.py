"""Runs as processes of this machine, in slots; the seam at which a cluster's launcher would take its place."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slimrl.machine.threads import cores

GRACE_SECONDS = 10.0
"""How long a run that is told to stop may take."""
GPU_BYTES_PER_RUN = 20 * 2**30
MOST_RUNS_PER_GPU = 4


@dataclass(frozen=True)
class Job:
    """One run: what `slimrl train` is called with, and where what it prints goes."""

    settings: Path
    log: Path


class Running(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs; negative: the signal that ended it."""

    def stop(self) -> None:
        """End it and everything it started, and wait until that is done."""


class Launcher(Protocol):
    """Where runs happen."""

    def start(self, job: Job, slot: int) -> Running:
        """Begin a job in a slot, which is free."""


@dataclass(frozen=True)
class Slots:
    """How many runs go on at once, and what each may take."""

    count: int
    threads: int
    """CPU threads of a run."""
    memory_share: float
    """Of the device that a run is on."""
    gpus: int = 0


def divide(count: int, *, threads: int, gpus: int, gpu_bytes: int) -> Slots:
    """`count` slots, or, for 0, as many as this machine serves well: one per core, or up to four per GPU.

    `threads` keeps a study that was begun at what it had, since sums in another order differ in their last bits, or is what
    the user asks for; 0 divides the cores.
    """
    available = cores()
    if not count and gpus:
        count = gpus * max(1, min(MOST_RUNS_PER_GPU, gpu_bytes // GPU_BYTES_PER_RUN))
    elif not count:
        count = max(1, available // threads) if threads else available
    on_a_device = -(-count // gpus) if gpus else count
    return Slots(count, threads or max(1, available // count), 1 / on_a_device, gpus)


def threads_asked_for() -> int:
    """What OMP_NUM_THREADS says; 0 where it says nothing that is a number of threads."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is one number a level of nesting
    return int(text) if text.isdecimal() else 0


class LocalLauncher:
    """Child processes of this one. They share its lock, and none outlives it, however it ends.

    Args:
        slots: threads of a run, and GPUs to share out in turn.
        lock: descriptor that children keep open, so that a study stays locked while one of them is alive.
    """

    def __init__(self, slots: Slots, lock: int) -> None:
        self.slots, self._lock = slots, lock

    def start(self, job: Job, slot: int) -> Running:
        threads = str(self.slots.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.slots.gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(i) for i in range(self.slots.gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            return _Process(
                subprocess.Popen(
                    [sys.executable, "-m", "slimrl.cli.child", str(job.settings)],
                    stdin=subprocess.PIPE,  # its end tells the child that this process is gone
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[self._lock],
                    process_group=0,  # Ctrl-C is for the driver, which decides
                )
            )


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self.poll()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
