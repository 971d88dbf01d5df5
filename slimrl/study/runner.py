"""Running a study: which runs are left, starting them in slots, and surviving whatever ends this process.

The run directories are the only state. A run whose run.json says finished or diverged is never repeated; any other goes on
from its last checkpoint, or begins again with the same draws, so an interrupted study ends as an undisturbed one does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from slimrl.config.files import build, dump_yaml, read_yaml, settings_of, with_chosen
from slimrl.config.schema import TrainConfig
from slimrl.errors import DataError, SettingsError
from slimrl.preflight.effects import rounding_only
from slimrl.runs.reader import DECLARED, read_chosen, read_declaration, read_json, run_folder
from slimrl.study.launcher import Job, Launcher, LocalLauncher, Running, Slots, divide, threads_asked_for
from slimrl.study.spec import Arm, Expanded

ATTEMPTS = 2
REFUSED = (SettingsError.exit_code, DataError.exit_code)
DONE = ("finished", "diverged")
POLL_SECONDS = 0.2
LOCK_SECONDS = 15.0
"""How long to wait for the runs of a driver that was killed to be gone."""


@dataclass(frozen=True)
class Planned:
    """One run of a study, whether it is there or not."""

    arm: Arm
    index: int
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def status(self) -> str:
        """As run.json says; empty where there is none."""
        try:
            state = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        return str(state.get("status", ""))

    def config(self, slots: Slots, date: str = "auto") -> TrainConfig:
        """The settings of this run; `date` is what its prompts take for today where the study's settings do not say."""
        task = self.arm.config.task
        update = {
            "task": task.model_copy(update={"date": date}) if task.date == "auto" else task,
            "seed": self.arm.seed(self.index),
            "name": self.name,
            "output": str(self.folder.parent),
            "memory_share": slots.memory_share,
        }
        return self.arm.config.model_copy(update=update)


@dataclass(frozen=True)
class Fleet:
    """What a person wants to know while a study runs."""

    done: int
    total: int
    running: Mapping[str, int]
    """Steps taken so far, by run."""
    seconds_left: float
    """NaN before the first run has ended."""


class Observer(Protocol):
    """Who tells a person how it goes."""

    def say(self, text: str) -> None:
        """Something happened."""

    def watch(self, fleet: Fleet) -> None:
        """Called several times a second."""

    def ended(self, run: Planned, seconds: float) -> None:
        """A run is a result, after this much wall time."""


def planned_runs(expanded: Expanded, folder: Path) -> list[Planned]:
    """Every run, seed by seed, so that comparisons within a seed are there early."""
    return [
        Planned(arm, index, run_folder(folder, arm.name, index))
        for index in range(expanded.study.seeds)
        for arm in expanded.arms
    ]


def run_study(expanded: Expanded, folder: Path, *, slots: int, display: Observer) -> list[Planned]:
    """Do what is left of a study, `slots` runs at once (0: as many as the machine serves well); returns those that failed.

    Raises SettingsError where the study is being run already, its folder holds runs with other settings, or its first runs
    all fail.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as lock:
        check_study(expanded, folder)
        declared = read_declaration(folder) or declaration(expanded)
        if "date" not in declared:
            declared["date"] = datetime.now().isoformat(timespec="seconds")
            write_json(folder / DECLARED, declared)
        runs = planned_runs(expanded, folder)
        chosen = choose_slots(folder, expanded, slots)
        todo = [run for run in runs if run.status not in DONE]
        display.say(
            f"{len(runs)} runs, {len(runs) - len(todo)} of them done; {chosen.count} at once with {chosen.threads} "
            f"CPU thread{'s' if chosen.threads > 1 else ''} each"
        )
        driver = _Driver(LocalLauncher(chosen, lock), chosen, folder, display, len(runs), declared["date"])
        try:
            return driver.work(todo)
        finally:
            driver.stop()


class _Driver:
    """Slots, and what is in them."""

    def __init__(
        self, launcher: Launcher, slots: Slots, folder: Path, display: Observer, total: int, date: str
    ) -> None:
        self._launcher, self._slots, self._folder, self._date = launcher, slots, folder, date
        self._display, self._total = display, total
        self._busy: dict[int, tuple[Planned, Running, float]] = {}
        self._seconds: list[float] = []

    def work(self, todo: list[Planned]) -> list[Planned]:
        """Until nothing is left; returns the runs that failed ATTEMPTS times."""
        waiting = list(todo)
        attempts: dict[str, int] = {}
        failed: list[Planned] = []
        results = self._total - len(todo)
        while waiting or self._busy:
            for slot in range(self._slots.count):
                if slot not in self._busy and waiting:
                    run = waiting.pop(0)
                    attempts[run.name] = attempts.get(run.name, 0) + 1
                    self._busy[slot] = (run, self._launcher.start(self._job(run), slot), time.monotonic())
            for slot, (run, process, started) in list(self._busy.items()):
                code = process.poll()
                if code is None:
                    continue
                del self._busy[slot]
                if run.status in DONE:
                    self._seconds.append(time.monotonic() - started)
                    results += 1
                    self._display.ended(run, self._seconds[-1])
                    continue
                reason = self._reason(run, code)
                if attempts[run.name] < ATTEMPTS:
                    if code in REFUSED:  # nothing to go on with there
                        _remove(run.folder)
                    self._display.say(f"{run.name} failed and is tried once more: {reason}")
                    waiting.insert(0, run)
                    continue
                failed.append(run)
                self._display.say(f"{run.name} failed {ATTEMPTS} times: {reason}")
                if not results:
                    raise DataError(f"{run.name}, the first run to end, failed {ATTEMPTS} times: {reason}")
            self._display.watch(self._fleet(results + len(failed)))
            time.sleep(POLL_SECONDS)
        return failed

    def stop(self) -> None:
        """End what is still running."""
        for _, process, _ in self._busy.values():
            process.stop()
        self._busy.clear()

    def _job(self, run: Planned) -> Job:
        settings = self._folder / "settings" / f"{run.name}.yaml"
        settings.parent.mkdir(exist_ok=True)
        settings.write_text(dump_yaml(run.config(self._slots, self._date)), encoding="utf-8")
        return Job(settings, self._log(run))

    def _log(self, run: Planned) -> Path:
        return self._folder / "logs" / f"{run.name}.txt"

    def _reason(self, run: Planned, code: int) -> str:
        """Why a process ended that left no result: its last words."""
        lines = self._log(run).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{lines[-1] if lines else 'it said nothing'} ({how}; {self._log(run)})"

    def _fleet(self, done: int) -> Fleet:
        left = self._total - done
        spent = sum(time.monotonic() - started for _, _, started in self._busy.values())
        each = sum(self._seconds) / len(self._seconds) if self._seconds else float("nan")
        return Fleet(
            done=done,
            total=self._total,
            running={run.name: _steps(run.folder) for run, _, _ in self._busy.values()},
            seconds_left=max(0.0, left * each - spent) / self._slots.count,
        )


def _steps(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a study's lock; its descriptor is handed to runs, so it is free only when they are gone too.

    Raises SettingsError where another driver holds it.
    """
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                file.seek(0)
                holder = file.read().strip()
                if _alive(holder) or time.monotonic() > deadline:
                    raise SettingsError(
                        f"{folder} is being run already (process {holder or 'unknown'}); wait for it, or end it first"
                    ) from None
                time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def _alive(process: str) -> bool:
    """Whether the driver that took the lock is there; its runs end soon after it."""
    if not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_study(expanded: Expanded, folder: Path) -> None:
    """Raises SettingsError where a study is not what it was when its first run began, or results have other settings.

    What a study declares beforehand stands in declared.json from its first run on; only seeds may be added.
    """
    now = declaration(expanded)
    began = read_declaration(folder)
    for key in began:
        if key in now and key != "seeds" and began[key] != now[key]:
            raise SettingsError(
                f"{folder} was begun with {key}={began[key]!r}, and the study now says {now[key]!r}; what is declared before "
                "the first run stays, so give the changed study another --name"
            )
    for run in planned_runs(expanded, folder):
        check_unchanged(run)


def declaration(expanded: Expanded) -> dict[str, Any]:
    """What a study says before its first run, as JSON."""
    study = expanded.study
    return {
        "primary": study.primary,
        "margin": study.margin,
        "design": study.design,
        "arms": {arm.name: list(arm.overrides) for arm in expanded.arms},
        "budget": study.budget.model_dump(),
        "seeds": study.seeds,
    }


def check_unchanged(run: Planned) -> None:
    """Raises SettingsError where a result was made with other settings than the study has now."""
    if run.status not in DONE:
        return
    recorded = build(TrainConfig, read_yaml(str(run.folder / "config.yaml")), str(run.folder))
    theirs = settings_of(recorded, absolute=True)
    ours = settings_of(with_chosen(run.arm.config, read_chosen(run.folder)), absolute=True)
    ours["seed"] = run.arm.seed(run.index)
    free = {"name", "output", *rounding_only(recorded), *(key for key in ours if key.startswith("log."))}
    if ours["task.date"] == "auto":
        free.add("task.date")
    changed = [key for key in ours if key not in free and ours[key] != theirs[key]]
    if changed:
        key = changed[0]
        raise SettingsError(
            f"{run.folder} was made with {key}={theirs[key]!r}, and the study now says {ours[key]!r}; give the study "
            "another --name, or remove that folder"
        )


def choose_slots(folder: Path, expanded: Expanded, wanted: int, *, keep: bool = True) -> Slots:
    """Threads and memory of a run are settled when a study begins (`keep`) and stay: sums in another order, or in other
    micro-batches, differ in their last bits.
    """
    path = folder / "slots.json"
    began = read_json(path)
    gpus, gpu_bytes = _gpus(expanded)
    threads = int(began.get("threads", 0)) or threads_asked_for()
    slots = divide(wanted, threads=threads, gpus=gpus, gpu_bytes=gpu_bytes)
    slots = replace(slots, memory_share=float(began.get("memory_share", slots.memory_share)))
    if keep and not began:
        write_json(path, {"threads": slots.threads, "memory_share": slots.memory_share})
    return slots


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _gpus(expanded: Expanded) -> tuple[int, int]:
    """How many GPUs the study's runs would use, and the memory of the smallest, in bytes."""
    if expanded.arm(expanded.reference).config.model.device == "cpu":
        return 0, 0
    import torch

    count = torch.cuda.device_count()
    return count, min((torch.cuda.get_device_properties(i).total_memory for i in range(count)), default=0)


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # what it leads to is none of the study's
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
