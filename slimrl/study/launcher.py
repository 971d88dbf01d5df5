"""Starting the runs of a study: `Launcher` is the seam for other machines, `LocalLauncher` starts processes on this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from slimrl.machine.threads import cores

GRACE_SECONDS = 10.0
"""A run that is told to stop is killed after this time."""
INTERRUPTIONS = 20
"""A run that is told to stop from outside, or is lost with its machine, has not failed, unless it happens more often."""
GPU_BYTES_PER_RUN = 20 * 2**30
MOST_RUNS_PER_GPU = 4


@dataclass(frozen=True)
class Job:
    """One run of `slimrl train`."""

    settings: Path
    log: Path

    def last_words(self) -> str:
        """The last line of the log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"


class Running(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the job runs. 75 for a run that was told to stop, or lost with its
        machine: it goes on, and has not failed.
        """

    def waits_for(self) -> str:
        """The reason for which the job has not begun, in the words of the place; empty once it has."""

    def stop(self) -> None:
        """End the job and everything that it started, and wait for the end."""


class Launcher(Protocol):
    """Starts jobs in slots."""

    def start(self, job: Job, slot: int) -> Running:
        """Start a job in a slot that is free."""


class Room(NamedTuple):
    """The machines of a cluster, taken together."""

    cpus: int
    gpus: float
    cpus_of_a_node: int
    """Of the largest."""


@dataclass(frozen=True)
class Slots:
    """The number of runs at once, and what each may take."""

    count: int
    threads: int
    """Of each process of a run."""
    memory_share: float
    """Share of its device's memory that a run may take."""
    gpus: int = 0
    devices: int = 1
    """Of a run."""

    @property
    def cpus(self) -> int:
        """The threads of a run."""
        return self.threads * self.devices


def divide(count: int, *, threads: int, gpus: int, gpu_bytes: int, devices: int = 1) -> Slots:
    """`count` slots; for 0 as many as this machine serves well: one per core, or up to four per GPU, and for runs that use
    several `devices` as many as have these for themselves.

    `threads` is the number for each process of a run, which a study keeps because sums in another order differ in their last
    bits; 0 divides the cores. `gpu_bytes` is the memory of a GPU.
    """
    available = cores()
    if not count and gpus and devices > 1:
        count = max(1, gpus // devices)
    elif not count and gpus:
        count = gpus * max(1, min(MOST_RUNS_PER_GPU, gpu_bytes // GPU_BYTES_PER_RUN))
    elif not count:
        count = max(1, available // (devices * max(1, threads)))
    on_a_device = -(-count * devices // gpus) if gpus else count
    return Slots(count, threads or max(1, available // (count * devices)), 1 / on_a_device, gpus, devices)


def threads_asked_for() -> int:
    """The threads of OMP_NUM_THREADS; 0 if it is not set to a number."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is one number a level of nesting
    return int(text) if text.isdecimal() else 0


class LocalLauncher:
    """Child processes, which end when this process ends, in whatever way.

    Args:
        slots: threads and devices of a run, and the number of GPUs, which runs get in turn.
        lock: descriptor of the study's lock, which children inherit: the study stays locked while one of them is alive.
    """

    def __init__(self, slots: Slots, lock: int) -> None:
        self.slots, self._lock = slots, lock

    def start(self, job: Job, slot: int) -> Running:
        threads = str(self.slots.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.slots.gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            gpus = visible.split(",") if visible else [str(i) for i in range(self.slots.gpus)]
            own = range(slot * self.slots.devices, (slot + 1) * self.slots.devices)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(gpus[i % len(gpus)] for i in own))
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "slimrl.cli.child", str(job.settings)],
                stdin=subprocess.PIPE,  # its end tells the child that this process is gone
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[self._lock],
                process_group=0,  # Ctrl-C is for this process only
            )
        return _Process(process)


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def waits_for(self) -> str:
        return ""

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
