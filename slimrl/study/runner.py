"""Running a study: the runs that are left are started in slots, watched, and tried once more when they fail.

The run directories are the only state. A run that is finished or diverged is never repeated; any other is resumed from its last
checkpoint, or started again with the same random draws, so an interrupted study ends as an undisturbed one does.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Protocol

from slimrl.config.files import dump_yaml
from slimrl.config.schema import TrainConfig
from slimrl.errors import DataError, SettingsError
from slimrl.machine.signals import PREEMPTED
from slimrl.preflight.price import study_notes
from slimrl.runs.files import as_json, write_text
from slimrl.runs.lock import Lock
from slimrl.runs.reader import count_steps, read_json
from slimrl.study.declaration import check_study, declare
from slimrl.study.launcher import INTERRUPTIONS, Job, Launcher, Running, Slots, divide, threads_asked_for
from slimrl.study.place import HERE, Place
from slimrl.study.runs import Planned, planned_runs
from slimrl.study.spec import Expanded
from slimrl.study.upload import claim

ATTEMPTS = 2
REFUSED = (SettingsError.exit_code, DataError.exit_code)
POLL_SECONDS = 0.2
LOCK_SECONDS = 15.0
"""Time for the runs of a study that was killed to end."""


@dataclass(frozen=True)
class Progress:
    """The state of a study that is running."""

    done: int
    total: int
    running: Mapping[str, int]
    """Steps taken so far, by run."""
    seconds_left: float
    """NaN before a run has ended that began here."""
    waiting: Mapping[str, str] = field(default_factory=dict)
    """By run that has not begun, the reason that its place gives."""


class Observer(Protocol):
    """Tells a person how a study progresses."""

    def say(self, text: str) -> None:
        """Something happened."""

    def watch(self, progress: Progress) -> None:
        """Called several times a second."""

    def ended(self, run: Planned, seconds: float) -> None:
        """A run is a result, after this much wall time."""


def run_study(
    expanded: Expanded,
    folder: Path,
    *,
    slots: int,
    display: Observer,
    place: Place = HERE,
    launcher: Callable[[Slots, int], Launcher] | None = None,
) -> list[Planned]:
    """Do what is left of a study, `slots` runs at once (0: as many as the place serves well); returns the failed runs.

    `launcher` makes a launcher from the slots and the descriptor of the study's lock; by default the place does.

    Raises SettingsError if the study is being run already, its folder holds runs with other settings, or the place cannot be
    reached; DataError if the first run fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder, patience=LOCK_SECONDS) as lock:
        check_study(expanded, folder)
        date = declare(expanded, folder)
        claim(expanded, folder)
        runs = planned_runs(expanded, folder)
        todo = [run for run in runs if not run.ended]
        chosen = of_use(choose_slots(folder, expanded, slots, place), len(todo), place)
        display.say(
            f"{len(runs)} runs, {len(runs) - len(todo)} of them done; {chosen.count} at once {place} with "
            f"{place.portion(chosen.cpus)} each"
        )
        for note in study_notes([run.arm.config for run in todo]):
            display.say(note)
        runner = _Runner((launcher or place.launcher)(chosen, lock.descriptor), chosen, folder, date, display)
        try:
            return runner.work(todo, len(runs))
        finally:
            runner.stop()


@dataclass(frozen=True)
class _Busy:
    """A run in a slot."""

    run: Planned
    job: Job
    process: Running
    began: float
    whole: bool
    """False where the run goes on from a checkpoint, so that its time here is not that of a run."""


class _Runner:
    """Slots, and the runs in them."""

    def __init__(self, launcher: Launcher, slots: Slots, folder: Path, date: str, display: Observer) -> None:
        self._launcher, self._slots, self._folder, self._date, self._display = launcher, slots, folder, date, display
        self._busy: dict[int, _Busy] = {}
        """By slot."""
        self._failed: Counter[str] = Counter()
        self._interrupted: Counter[str] = Counter()
        """Times, by run."""
        self._ended = 0
        """Runs that became results here."""
        self._seconds: list[float] = []
        """Of those that began here."""

    def work(self, todo: list[Planned], total: int) -> list[Planned]:
        """Run everything in `todo`, which is what is left of `total` runs; returns those that failed ATTEMPTS times."""
        waiting = list(todo)
        failed: list[Planned] = []
        while waiting or self._busy:
            for slot in range(self._slots.count):
                if slot not in self._busy and waiting:
                    self._start(waiting.pop(0), slot)
            for slot, busy in list(self._busy.items()):
                code = busy.process.poll()
                if code is None:
                    continue
                del self._busy[slot]
                if busy.run.ended:
                    self._count(busy)
                elif self._may_be_repeated(busy, code, first=len(todo) == total and not self._ended):
                    waiting.insert(0, busy.run)
                else:
                    failed.append(busy.run)
            self._display.watch(self._progress(total - len(todo) + self._ended + len(failed), total))
            time.sleep(POLL_SECONDS)
        return failed

    def stop(self) -> None:
        """End the runs that are still there, all at the same time."""
        if self._busy:
            with ThreadPoolExecutor(len(self._busy)) as pool:
                list(pool.map(lambda busy: busy.process.stop(), self._busy.values()))
        self._busy.clear()

    def _start(self, run: Planned, slot: int) -> None:
        job = write_job(self._folder, run.name, run.config(self._slots.memory_share, self._date))
        whole = count_steps(run.folder) == 0
        self._busy[slot] = _Busy(run, job, self._launcher.start(job, slot), time.monotonic(), whole)

    def _count(self, busy: _Busy) -> None:
        seconds = time.monotonic() - busy.began
        self._ended += 1
        if busy.whole:
            self._seconds.append(seconds)
        self._display.ended(busy.run, seconds)

    def _may_be_repeated(self, busy: _Busy, code: int, *, first: bool) -> bool:
        """Report a process that left no result; raises DataError if it was the last attempt of the `first` run."""
        run, job = busy.run, busy.job
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = f"{job.last_words()} ({how}; {job.log})"
        if code == PREEMPTED and self._interrupted[run.name] < INTERRUPTIONS:
            self._interrupted[run.name] += 1
            self._display.say(f"{run.name} was interrupted and goes on: {reason}")
            return True
        self._failed[run.name] += 1
        if self._failed[run.name] < ATTEMPTS:
            has_checkpoint = any((run.folder / "checkpoints").glob("step-*"))
            if code in REFUSED and not has_checkpoint:  # nothing that could be resumed
                _remove(run.folder)
            self._display.say(f"{run.name} failed and is tried once more: {reason}")
            return True
        self._display.say(f"{run.name} failed {ATTEMPTS} times: {reason}")
        if first:
            raise DataError(f"{run.name}, the first run to end, failed {ATTEMPTS} times: {reason}")
        return False

    def _progress(self, done: int, total: int) -> Progress:
        reasons = {busy.run.name: busy.process.waits_for() for busy in self._busy.values()}
        waiting = {name: reason for name, reason in reasons.items() if reason}
        runs = [busy.run for busy in self._busy.values()]
        running = {run.name: count_steps(run.folder) for run in runs if run.name not in waiting}
        if not self._seconds:
            return Progress(done, total, running, math.nan, waiting)
        spent = sum(time.monotonic() - busy.began for busy in self._busy.values())
        left = (total - done) * fmean(self._seconds) - spent
        return Progress(done, total, running, max(0.0, left) / self._slots.count, waiting)


def write_job(folder: Path, name: str, config: TrainConfig) -> Job:
    """Write the settings of a run into settings/ of a folder; its log is to be in logs/."""
    settings = folder / "settings" / f"{name}.yaml"
    write_text(settings, dump_yaml(config))
    return Job(settings, folder / "logs" / f"{name}.txt")


def choose_slots(folder: Path, expanded: Expanded, wanted: int, place: Place = HERE, *, keep: bool = True) -> Slots:
    """The slots of a place, with the threads and memory of a run that the study began with.

    With `keep` these are recorded: sums in another order, or in other micro-batches, differ in their last bits.
    """
    path = folder / "slots.json"
    began = read_json(path)
    threads = int(began.get("threads", 0)) or (0 if place.cpus else threads_asked_for())
    devices = expanded.arm(expanded.reference).config.devices
    if place.kind == "local":
        gpus, gpu_bytes = _gpus(expanded)
        slots = divide(wanted, threads=threads, gpus=gpus, gpu_bytes=gpu_bytes, devices=devices)
    else:
        slots = place.slots(wanted, threads=threads, devices=devices)
    share = float(began.get("memory_share", slots.memory_share))
    if not wanted and share > slots.memory_share:  # more runs at once would plan for more memory than there is
        slots = replace(slots, count=max(1, int(slots.count * slots.memory_share / share + 1e-9)))
    slots = replace(slots, memory_share=share)
    if keep and not began:
        write_text(path, as_json({"threads": slots.threads, "memory_share": slots.memory_share}))
    return slots


def of_use(slots: Slots, runs: int, place: Place) -> Slots:
    """The slots of a cluster, but no more than there are runs."""
    return slots if place.kind == "local" else replace(slots, count=max(1, min(slots.count, runs)))


def _gpus(expanded: Expanded) -> tuple[int, int]:
    """The number of GPUs for the study's runs, and the memory of the smallest in bytes."""
    if expanded.arm(expanded.reference).config.model.device == "cpu":
        return 0, 0
    import torch

    count = torch.cuda.device_count()
    return count, min((torch.cuda.get_device_properties(i).total_memory for i in range(count)), default=0)


def _remove(folder: Path) -> None:
    """Remove a run's folder, unless another process works on it."""
    if folder.is_symlink():  # the folder that it leads to is not the study's
        folder.unlink()
    elif folder.exists():
        with contextlib.suppress(SettingsError), Lock(folder):
            shutil.rmtree(folder)
