"""Runs of a study as jobs of SLURM, through its commands sbatch, squeue, scontrol and scancel.

The queue holds all that a launcher has to know: a job's name says which run it is, so a study that is started again finds the
jobs of its last process. Accounting is not needed: a cluster may have none, and submitit (1.5.4) asks sacct for the state of a
job. The nodes have the study's folder and this Python at the same paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slimrl.errors import SettingsError
from slimrl.machine.signals import PREEMPTED
from slimrl.study.launcher import INTERRUPTIONS, Job, Room, Running, Slots

POLL_SECONDS = 5.0
"""Between two questions to the queue, which all users share."""
PATIENCE_SECONDS = 3600.0
"""SLURM may fail to answer for this time."""
NOTICE_SECONDS = 120
"""A run is told to stop this long before its time is over."""
GRACE_SECONDS = 30.0
"""A run that is told to stop is cancelled after this time."""
LOOK_SECONDS = 2.0
"""Between two questions about a job that is being stopped."""
ALIVE = ("COMPLETING", "CONFIGURING", "PENDING", "RUNNING", "STOPPED", "SUSPENDED")
"""States of a job that has not ended."""
LOST = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REQUEUED", "REVOKED", "TIMEOUT")
"""States of a job that ended for no fault of its run."""
UNPASSING = (
    "AccountNotAllowed", "BadConstraints", "DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS", "JobHeldAdmin",
    "JobHeldUser", "PartitionDown", "PartitionInactive", "PartitionNodeLimit", "PartitionTimeLimit", "QOSNotAllowed",
)  # fmt: skip
"""Reasons to wait that no time removes; so are limits on each job, which end with `PerJobLimit` or `PerJob`."""
RESERVED = (
    "array", "chdir", "clusters", "cpus-per-task", "job-name", "no-requeue", "nodes", "ntasks", "open-mode", "output", "parsable",
    "partition", "requeue", "signal", "test-only", "wait", "wrap",
)  # fmt: skip
"""Options of sbatch that the launcher sets itself, or that would make something else of a run's job."""
NOT_OURS = ("SQUEUE_", "SINFO_", "SCANCEL_", "SBATCH_ARRAY", "SBATCH_WAIT")
"""Beginnings of variables with which users change the output of SLURM's commands."""
SCRIPT = """#!/bin/bash
export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads}
rm -f {code}
run=
trap '[ -z "$run" ] || kill -TERM "$run"' TERM INT # bash alone is told that the time is over
{command} &
run=$!
wait "$run"
while kill -0 "$run" 2>/dev/null; do wait "$run"; done # a signal ends a wait, but not the run
wait "$run" # bash keeps the exit code of a process that has ended
code=$?
if [ "$code" -eq {preempted} ]; then
  if [ -e {stop} ] || scontrol show job "$SLURM_JOB_ID" | grep -q JobState=CANCELLED; then
    code=143
  elif [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ] && scontrol requeue "$SLURM_JOB_ID"; then
    sleep 60 # until SLURM ends this job, which waits in the queue again
    exit {preempted}
  fi
fi
echo "$code" > {code}.new && mv {code}.new {code}
exit "$code"
"""


def room(partition: str) -> Room:
    """The machines of a partition, or of the default one. Raises SettingsError where SLURM does not answer."""
    nodes = [
        line.split("|")
        for line in _ask("sinfo", "--noheader", "--Node", "--responding", "--format=%N|%P|%c|%G", *_of(partition))
    ]
    nodes = [node for node in nodes if partition or node[1].endswith("*")] or nodes
    if not nodes:
        raise SettingsError(f"SLURM has no partition {partition!r}; sinfo lists them")
    cpus = [int(count) for *_, count, _ in nodes]
    return Room(sum(cpus), sum(_gpus(resources) for *_, resources in nodes), max(cpus))


def _gpus(resources: str) -> int:
    """GPUs of a node, from what sinfo says of it: `gpu:a100:4(S:0-1),shard:8`."""
    counts = [entry.partition("(")[0].split(":") for entry in resources.split(",")]
    return sum(int(count[-1]) if count[-1].isdecimal() else 1 for count in counts if count[0] == "gpu")


def _of(partition: str) -> list[str]:
    return [f"--partition={partition}"] if partition else []


class SlurmLauncher:
    """Submits each run as a job, or finds the job that is in the queue for it already.

    Args:
        partition: empty for the default one.
        slots: the threads of a run, each of which has a CPU.
        gpus: of a run.
        options: further ones of sbatch, without dashes.
    """

    def __init__(self, partition: str, slots: Slots, *, gpus: int = 0, options: Mapping[str, str]) -> None:
        self._options = [f"--cpus-per-task={slots.cpus}", *_of(partition), *([f"--gpus={gpus}"] if gpus else [])]
        self._options += [f"--{name}={value}" if value else f"--{name}" for name, value in options.items()]
        self._threads, self._queue, self._accepted = slots.threads, _Queue(), False

    def start(self, job: Job, slot: int) -> Running:
        del slot  # SLURM chooses the machine
        files = _Files.of(job)
        files.stop.unlink(missing_ok=True)
        number = self._queue.number(files.name) or self._submit(job, files)
        return _Submitted(number, files, self._queue)

    def _submit(self, job: Job, files: _Files) -> str:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        files.code.unlink(missing_ok=True)
        command = [sys.executable, "-m", "slimrl", "train", "--resume", "--quiet", str(job.settings.resolve())]
        script = SCRIPT.format(
            threads=self._threads,
            command=shlex.join(command),
            code=shlex.quote(str(files.code)),
            stop=shlex.quote(str(files.stop)),
            preempted=PREEMPTED,
            most=INTERRUPTIONS,
        )
        log = str(job.log.resolve()).replace("%", "%%")  # SLURM puts numbers in the place of %j and the like
        always = [
            "--parsable",
            "--requeue",
            "--open-mode=append",
            f"--signal=B:TERM@{NOTICE_SECONDS}",
            "--nodes=1",
            "--ntasks=1",
        ]
        always += [f"--chdir={os.getcwd()}", f"--job-name={files.name}", f"--output={log}"]
        job.log.touch()
        try:
            number = self._number([*always, *self._options], script, files.name)
        except BaseException:  # it may have been accepted all the same
            _ask("scancel", f"--user={os.getuid()}", f"--name={files.name}", allowed=True)
            raise
        self._accepted = True
        self._queue.forget()
        return number

    def _number(self, options: Sequence[str], script: str, name: str) -> str:
        """The number of the job that sbatch makes of a script. Once a job was accepted, a refusal is taken for a passing one,
        such as a limit on the jobs of a user.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                told = _ask("sbatch", *options, text=script)
                break
            except SettingsError:
                if not self._accepted or time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_SECONDS)
                self._queue.forget()
                if number := self._queue.number(name):  # the answer was lost, and not the job
                    return number
        number = told[-1].partition(";")[0] if told else ""
        if not number.isdecimal():
            raise SettingsError(f"sbatch took no job: it said {' '.join(told)!r}; correct --on")
        return number


@dataclass(frozen=True)
class _Files:
    """The name of a run's job, and the files by which its script and this process tell each other something."""

    name: str
    code: Path
    """Written last: the exit code."""
    stop: Path
    """There where a run that stops must not be requeued."""

    @classmethod
    def of(cls, job: Job) -> _Files:
        settings, log = job.settings.resolve(), job.log.resolve()
        mark = hashlib.sha256(str(settings).encode()).hexdigest()[:12]
        return cls(f"slimrl-{settings.stem}-{mark}", log.with_suffix(".code"), log.with_suffix(".stop"))


class _Queue:
    """This user's jobs in the queue: state, reason to wait, and name by number; asked again after POLL_SECONDS."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[str, str, str]] = {}
        self._asked = -math.inf

    def forget(self) -> None:
        """Ask again next time."""
        self._asked = -math.inf

    def number(self, name: str) -> str:
        """The number of the job with this name that waits or runs; empty without one."""
        self._look()
        return next((n for n, (state, _, job) in self._jobs.items() if job == name and state != "COMPLETING"), "")

    def has(self, number: str) -> bool:
        """True while the job waits, runs or ends."""
        self._look()
        return number in self._jobs

    def reason(self, number: str) -> str:
        """The reason for which the job waits; empty for one that does not."""
        self._look()
        state, reason, _ = self._jobs.get(number, ("", "", ""))
        return reason if state == "PENDING" else ""

    def _look(self) -> None:
        if time.monotonic() - self._asked < POLL_SECONDS:
            return
        lines = _ask("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%T|%r|%j", patience=PATIENCE_SECONDS)
        jobs = (line.split("|", 3) for line in lines)
        self._jobs = {number: (state, reason, name) for number, state, reason, name in jobs}
        self._asked = time.monotonic()


class _Submitted:
    def __init__(self, number: str, files: _Files, queue: _Queue) -> None:
        self._number, self._files, self._queue = number, files, queue

    def poll(self) -> int | None:
        if self._queue.has(self._number):
            return None
        with contextlib.suppress(OSError, ValueError):
            os.listdir(self._files.code.parent)  # a network file system then looks for new files
            return int(self._files.code.read_text(encoding="utf-8"))
        return self._without_a_code()

    def _without_a_code(self) -> int | None:
        """The exit code of a job whose script did not come to its end, or whose file is not to be seen yet."""
        try:
            (line,) = _ask("scontrol", "--oneliner", "show", "job", self._number)
        except (SettingsError, ValueError):  # SLURM forgets a job after some minutes
            return PREEMPTED
        told = dict(word.partition("=")[::2] for word in line.split())
        state, code = told.get("JobState", ""), told.get("ExitCode", "1:0").partition(":")[0]
        if state in ALIVE:
            return None
        if state in ("COMPLETED", "FAILED") and code.isdecimal():
            return int(code) or (0 if state == "COMPLETED" else 1)
        return PREEMPTED if state in ("", *LOST) else 1

    def waits_for(self) -> str:
        reason = self._queue.reason(self._number)
        if reason in UNPASSING or reason.endswith(("PerJob", "PerJobLimit")):
            return f"{reason}, which does not pass by itself; correct --on, or ask the administrators of the cluster"
        return reason

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # a full disk
            self._files.stop.touch()
        _ask("scancel", "--batch", "--signal=TERM", self._number, allowed=True)  # to the script, which tells the run
        self._wait("RUNNING", lambda: self._files.code.exists())
        _ask("scancel", self._number, allowed=True)
        self._wait("PENDING,RUNNING,COMPLETING", lambda: False)
        self._queue.forget()

    def _wait(self, states: str, is_over: Callable[[], bool]) -> None:
        """Wait until the job is in none of these states, or something is over, for GRACE_SECONDS at most."""
        deadline = time.monotonic() + GRACE_SECONDS
        asked = ("--noheader", f"--jobs={self._number}", f"--states={states}", "--format=%i")
        while time.monotonic() < deadline and not is_over() and _ask("squeue", *asked, allowed=True):
            time.sleep(LOOK_SECONDS)


def _ask(command: str, *arguments: str, text: str = "", patience: float = 0.0, allowed: bool = False) -> list[str]:
    """The lines that a command of SLURM prints. A controller that does not answer is asked again for `patience` seconds.

    Raises SettingsError where it fails, unless failing is `allowed`.
    """
    deadline = time.monotonic() + patience
    environment = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    while True:
        try:
            done = subprocess.run(
                [command, *arguments],
                input=text,
                capture_output=True,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process
            )
        except FileNotFoundError:
            raise SettingsError(
                f"--on=slurm needs {command}, which is not on this machine; run the study on one of the cluster"
            ) from None
        if done.returncode == 0 or allowed:
            return done.stdout.splitlines() if done.returncode == 0 else []
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        if time.monotonic() >= deadline:
            raise SettingsError(f"{command} failed: {said}; correct --on, or ask the administrators of the cluster")
        time.sleep(POLL_SECONDS)
