"""Runs of a study as tasks of Ray: each task starts the run as a process on its node, and waits for it.

The nodes have the study's folder, and a Python with slimrl, at the paths of this machine. A run ends with its task, and a
task with the process that runs the study; runs continue from their checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimrl.errors import DataError, SettingsError
from slimrl.machine.signals import PREEMPTED
from slimrl.study.launcher import GRACE_SECONDS, Job, Room, Running, Slots

POLL_SECONDS = 0.2
CONNECT_SECONDS = 20.0


def room(address: str) -> Room:
    """The machines of a cluster. Raises SettingsError where it cannot be reached."""
    nodes = [node["Resources"] for node in _connected(address).nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    return Room(sum(cpus), sum(node.get("GPU", 0) for node in nodes), max(cpus, default=0))


class RayLauncher:
    """Starts each run as a task that waits until a node has its CPUs and GPUs free.

    Args:
        address: `HOST:PORT`, or `ray://HOST:PORT` of the cluster's server for clients; empty for the cluster of this machine.
        slots: the threads of a run, each of which has a CPU.
        gpus: of a run, or a fraction of one.
    """

    def __init__(self, address: str, slots: Slots, *, gpus: float = 0.0) -> None:
        self._ray = _connected(address)
        # A task that is lost with its node is started again by the study, which counts it.
        self._task = self._ray.remote(num_cpus=slots.cpus, num_gpus=gpus, max_retries=0)(run_here)
        self._threads = slots.threads

    def start(self, job: Job, slot: int) -> Running:
        del slot  # Ray chooses the machine
        job.log.parent.mkdir(parents=True, exist_ok=True)
        return _Task(
            self._ray,
            self._task.remote(str(job.settings.resolve()), str(job.log.resolve()), os.getcwd(), self._threads),
            job,
        )


def run_here(settings: str, log: str, folder: str, threads: int) -> int:
    """The exit code of a run that is a process on this machine, in this working folder; told to stop, it is told in turn."""
    if not Path(settings).is_file():
        raise DataError(
            f"{settings} is not there on {os.uname().nodename}; give --output a folder that every node of the cluster has"
        )
    environment = {**os.environ, "OMP_NUM_THREADS": f"{threads}", "MKL_NUM_THREADS": f"{threads}"}
    with (
        open(log, "ab") as lines,
        subprocess.Popen(
            [sys.executable, "-m", "slimrl.cli.child", settings],
            stdin=subprocess.PIPE,  # its end tells the child that this process is gone
            stdout=lines,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            process_group=0,
        ) as process,
    ):
        try:
            while (code := process.poll()) is None:  # Ray interrupts Python, and no system call in which it waits
                time.sleep(POLL_SECONDS)
            return code
        except KeyboardInterrupt:  # the task is cancelled
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(GRACE_SECONDS)
            return PREEMPTED
        finally:
            process.kill()


class _Task:
    def __init__(self, ray: Any, reference: Any, job: Job) -> None:
        self._ray, self._reference, self._job = ray, reference, job

    def waits_for(self) -> str:
        return ""  # Ray tells no reason

    def poll(self) -> int | None:
        errors = self._ray.exceptions
        try:
            if not self._ray.wait([self._reference], timeout=0)[0]:
                return None
            return int(self._ray.get(self._reference))
        except errors.OutOfMemoryError as error:  # Ray killed the run so that its node has memory left
            return self._failed(error)
        except errors.RayTaskError as error:  # the run could not be started
            return self._failed(error.cause)
        except errors.RayError as error:  # the node, or the process that waited there, is gone
            self._failed(error)
            return PREEMPTED
        except ConnectionError as error:  # of a client
            raise SettingsError(f"the Ray cluster no longer answers ({error}); the same command continues") from None

    def _failed(self, error: BaseException) -> int:
        """Write the reason below what the run said."""
        with self._job.log.open("a", encoding="utf-8") as log:
            log.write(f"\n{' '.join(str(error).split())[:500]}\n")
        return 1

    def stop(self) -> None:
        with contextlib.suppress(ConnectionError):  # a cluster that is gone has ended the run
            self._ray.cancel(self._reference)
            done, _ = self._ray.wait([self._reference], timeout=2 * GRACE_SECONDS)
            if not done:
                self._ray.cancel(self._reference, force=True)


def _connected(address: str) -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise SettingsError("--on=ray needs the package ray; pip install 'slimrl[ray]'") from None
    if not ray.is_initialized():
        try:
            if address:  # an address at which nobody listens keeps Ray for many minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
            with _own_sigterm():
                ray.init(address=address or "auto", log_to_driver=False, logging_level="warning")
        except Exception as error:  # it raises many kinds
            raise SettingsError(
                f"no Ray cluster answers at {address or 'this machine'} ({' '.join(str(error).split())[:200]}); start one "
                "(ray start --head), or correct --on"
            ) from error
    return ray


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which Ray replaces by its own."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
