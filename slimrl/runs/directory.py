"""runs/NAME/: config.yaml, run.json, metrics.jsonl, events.jsonl, rollouts/, evals/, checkpoints/, curves.png, report.html,
final/; with an adapter adapter/, and rejected.jsonl where rows of the data were.

The directory is the only record of a run; anything else can be rebuilt from it. A run never overwrites another, and one process
at a time works on it. This module does not know how a run trains, nor who watches it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from torch import Tensor

from slimrl.algorithm.groups import Collected
from slimrl.algorithm.metrics import Metrics
from slimrl.config.files import dump_yaml
from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.errors import UNWRITABLE, DataError, DiskError, DivergedError, SettingsError
from slimrl.machine.signals import PREEMPTED, Stopped
from slimrl.model.policy import Policy
from slimrl.records import Rejected
from slimrl.results import Evaluation, SftSummary, TrainSummary
from slimrl.runs.checkpoints import checkpoints, remove
from slimrl.runs.curves import draw_curves
from slimrl.runs.durable import adopt, full_disk_as_oserror, sync, sync_folders, write_tensors
from slimrl.runs.files import (
    UNFINISHED,
    as_json,
    as_jsonl,
    as_line,
    files_within,
    replace_file,
    rollout_rows,
    write_jsonl,
    write_text,
)
from slimrl.runs.lock import Lock
from slimrl.runs.measured import Measured
from slimrl.runs.reader import ENDED, Status, read_metrics, read_state, read_status, way_to_resume
from slimrl.terms import ADAPTER, CHECKPOINTS, FINAL


class RunDirectory:
    """Writes one run; `history` keeps the metrics of every step, `measured` its evaluations."""

    def __init__(
        self, path: Path, lock: Lock | None = None, *, measured: Measured | None = None, rewards_since: int = 0
    ) -> None:
        self.path = path
        self.history: list[Metrics] = []
        self.measured = measured or Measured()
        self.rewards_since = rewards_since
        """Step after which the rewards of the user changed, where resuming with other ones was forced."""
        self._lock = lock or Lock(path)
        self._lines: list[str] = []
        """Rows of metrics.jsonl that are not written yet."""
        self._files: dict[Path, bytes] = {}
        """Whole files that are not written yet: there are some only while the disk is full."""

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @classmethod
    def create(cls, path: Path, config: RootConfig, record: Mapping[str, Any], rejected: Sequence[Rejected]) -> Self:
        """Make the directory with config.yaml, run.json and, where rows were rejected, rejected.jsonl.

        `record` goes into run.json as it is. A folder without run.json was given up before anything was in it, and is taken.
        Raises SettingsError where another process has begun the run meanwhile.
        """
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        if (path / "run.json").exists():  # looked at again, under the lock: loading took its time
            run._lock.release()
            raise SettingsError(f"{path} was begun by another process meanwhile; choose another name=...")
        write_text(path / "config.yaml", dump_yaml(config))
        if rejected:
            write_jsonl(path / "rejected.jsonl", [dataclasses.asdict(row) for row in rejected])
        run._change_state(**record, status="running", started=_now())
        return run

    @classmethod
    def reopen(
        cls,
        path: Path,
        config: RootConfig,
        lock: Lock | None,
        step: int,
        measured: Measured,
        made_from: Mapping[str, Any],
    ) -> Self:
        """Resume an interrupted run after `step` of its steps; records of later steps are removed.

        `measured` are its evaluations up to this step, and `made_from` the parts of run.json that say what decides the rest of
        it. Raises DataError where its records of those steps are missing.
        """
        changed = read_state(path).get("rewards") != made_from["rewards"]
        # a judge that could not be reached and now can be is as good as another
        changed = changed or (isinstance(config, TrainConfig) and bool(config.rewards.judges))
        run = cls(path, lock, measured=measured, rewards_since=step if changed else 0)
        for folder in (path, path / "evals", path / "rollouts"):
            for file in folder.glob(f"{UNFINISHED}*"):
                file.unlink()
        run.rewind(step)
        write_text(path / "config.yaml", dump_yaml(config))
        run._change_state(status="running", reason="", **made_from)
        run.note(step, "resumed")
        return run

    def rewind(self, step: int) -> None:
        """Remove all records beyond this step."""
        rows = [row for row in self.history or read_metrics(self.path) if row["step"] <= step]
        if [row["step"] for row in rows] != list(range(1, step + 1)):
            raise DataError(
                f"{self.path}/metrics.jsonl does not hold steps 1 to {step}, after which the run would continue; restore it, or "
                "start the run anew under another name"
            )
        for checkpoint in checkpoints(self.checkpoints):  # before the records that they need
            if checkpoint.step > step:
                remove(checkpoint)
        write_text(self.path / "metrics.jsonl", "".join(as_line(row) for row in rows))
        self._lines.clear()
        self.history = rows
        self.measured.rewind(step)
        self._files = {file: data for file, data in self._files.items() if _step_of(file) <= step}
        for folder in ("rollouts", "evals", "nonfinite"):
            for file in (self.path / folder).glob("step-*"):
                if _step_of(file) > step:
                    file.unlink()

    def sync(self) -> None:
        """Put on the disk what a checkpoint relies on; raises OSError where it cannot be written."""
        if (refused := self._flush()) is not None:
            raise refused
        for name in ("metrics.jsonl", "run.json", "config.yaml", "evals", "rollouts", "."):
            if (self.path / name).exists():
                sync(self.path / name)

    def note(self, step: int, event: str, **more: Any) -> None:
        """One line of events.jsonl: an event in the run other than a step."""
        row = {"at": _now(), "step": step, "event": event, **more}
        with contextlib.suppress(OSError), (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def log_step(
        self, step: int, metrics: Metrics, collected: Collected | None = None, tokens: bytes | None = None
    ) -> None:
        """One line of metrics.jsonl, and where they are given the rollouts of the step and the file of their tokens; all wait
        while the disk is full.
        """
        row = {"step": step + 1, **metrics}
        self.history.append(row)
        self._lines.append(as_line(row))
        if collected is not None:
            name = self.path / "rollouts" / f"step-{step + 1:08d}.jsonl"
            self._files[name] = as_jsonl(rollout_rows(collected)).encode()
            if tokens is not None:
                self._files[name.with_suffix(".npz")] = tokens
        self._flush()

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """Store every held-out completion with its verdicts, and the summary."""
        self.measured.add(evaluation)
        path = self.path / "evals" / f"step-{evaluation.step:08d}.jsonl"
        # the rows last: they say that there is an evaluation
        self._files[path.with_suffix(".json")] = as_json(self.measured.summaries[evaluation.step]).encode()
        self._files[path] = as_jsonl(evaluation.table()).encode()
        self._flush()

    def _flush(self) -> OSError | None:
        """Write what waits; returns the error where the disk did not take all of it, and the rest waits on."""
        metrics = self.path / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        try:
            if self._lines:
                with metrics.open("a", encoding="utf-8") as file:
                    file.write("".join(self._lines))
                self._lines.clear()
            for path, data in list(self._files.items()):
                replace_file(path, data)
                del self._files[path]
        except OSError as error:
            if self._lines and metrics.exists():
                os.truncate(metrics, size)  # no half line may stay
            return error
        return None

    def save_final(self, policy: Policy) -> None:
        """final/: loads with AutoModelForCausalLM.from_pretrained; and adapter/, for peft, where an adapter was trained. On the
        disk, whole, before the run counts as finished.
        """
        if policy.lora is not None:
            self._save_whole(ADAPTER, policy.save_adapter)
        self._save_whole(FINAL, policy.save)

    def _save_whole(self, name: str, save: Callable[[Path], None]) -> None:
        """A folder of what `save` writes into the folder that it is given, or nothing."""
        temporary, final = self.path / f".writing-{name}", self.path / name
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with full_disk_as_oserror(final):
                save(temporary)
            for file in files_within(temporary):
                adopt(file)
            sync_folders(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            sync(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # half a model helps nobody, and its room may
            raise

    def finish(self, summary: TrainSummary | SftSummary) -> None:
        """Close the run: write what still waits, the curves as a picture, and the summary into run.json.

        Raises OSError where one of them cannot be written.
        """
        self.sync()
        with full_disk_as_oserror(self.path / "curves.png"):
            draw_curves(self.path / "curves.png", self.history, self.measured.summaries)
        # last of all: a reader that finds a run finished finds all of it
        self._change_state(status="finished", ended=_now(), summary=dataclasses.asdict(summary))

    def keep_fault(self, step: int, tensors: Mapping[str, Tensor], what: str) -> None:
        """Store the batch of a dropped update in nonfinite/, for inspection."""
        with contextlib.suppress(OSError):  # a full disk ends no run
            (self.path / "nonfinite").mkdir(exist_ok=True)
            write_tensors(self.path / "nonfinite" / f"step-{step:08d}.safetensors", tensors)
        self.note(step, "fault", what=what)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record in run.json what ends the block early, and raise it again; a full disk as a DiskError that says what to do."""
        try:
            yield
        except BaseException as error:
            if read_status(self.path) == "finished":  # what fails after the end does not undo it
                raise
            ended: BaseException = error
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                ended = self.unwritable(error)
            status, reason = _ending(ended), str(ended) or type(ended).__name__
            self.note(int(self.history[-1]["step"]) if self.history else 0, status, why=reason)
            with contextlib.suppress(OSError):  # a full disk must not hide what happened
                self._change_state(status=status, reason=reason)
            if ended is error:
                raise
            raise ended from error
        finally:
            self._lock.release()

    def unwritable(self, error: OSError) -> DiskError:
        """The error that a user reads where the run cannot be written: the way to resume it once it can."""
        last = next((checkpoint.step for checkpoint in checkpoints(self.checkpoints)), 0)
        where = f"after step {last}" if last else "from its beginning, to the same end"
        return DiskError(
            f"{error.filename or self.path} cannot be written ({error.strerror or error}); free space or make it writable, then "
            f"{way_to_resume(self.path)} continues {where}"
        )

    def _change_state(self, **changes: Any) -> None:
        write_text(self.path / "run.json", as_json({**read_state(self.path), **changes}))


def _ending(error: BaseException) -> Status:
    """The status in run.json of an end that is not success."""
    if isinstance(error, Stopped):
        return "preempted" if error.exit_code == PREEMPTED else "interrupted"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "diverged" if isinstance(error, DivergedError) else "failed"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _step_of(file: Path) -> int:
    """Of step-00000012.jsonl; 0 where the name has none."""
    return int(number) if (number := file.name[5:13]).isdigit() else 0


def steps_taken(model: Path) -> int | None:
    """Steps after which a model was left: of a run, of its final/ or adapter/, or of a checkpoint; None for any other model."""
    if match := re.fullmatch(r"step-(\d{8,})", model.resolve().name):
        return int(match[1])
    run = model.resolve().parent if model.resolve().name in (FINAL, ADAPTER) else model
    steps = read_state(run).get("summary", {}).get("steps")
    return steps if isinstance(steps, int) else None


def run_path(config: RootConfig, verb: str) -> Path:
    """The folder of this run, which need not exist, and does not where it has no name of its own.

    Raises SettingsError for a name that no folder can have.
    """
    if "\0" in config.output:
        raise SettingsError(f"output={config.output!r}: no folder can be named so; remove the NUL character")
    name = config.name or f"{config.task.name}-{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
    path, number = Path(config.output) / name, 1
    while not config.name and path.exists():  # a program begins two short runs within a second
        number += 1
        path = path.with_name(f"{name}-{number}")
    return path


def new_run(config: RootConfig, verb: str) -> Path:
    """The folder of a run that is to begin, checked before any work is done.

    Raises SettingsError for a run that exists already, or an output folder that cannot be written.
    """
    path = run_path(config, verb)
    # a link is neither followed nor replaced, wherever it leads
    if path.exists() or path.is_symlink():
        status = read_status(path)
        if status in ENDED:
            copied = f"; if it is not at {config.upload} yet, {way_to_resume(path)} copies it" if config.upload else ""
            raise SettingsError(
                f"{path} is {status} already, and a run is never overwritten; choose another name=...{copied}"
            )
        if status:
            raise SettingsError(
                f"{path} is not finished, and a run is never overwritten; resume it with {way_to_resume(path)}, or "
                "choose another name=..."
            )
        raise SettingsError(f"{path} exists already and is never overwritten; choose another name=...")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with TemporaryDirectory(dir=parent, prefix=".slimrl-"):  # root may write anywhere, and still not into /proc
            pass
    except OSError:
        raise SettingsError(
            f"output={config.output}: {parent} is not a folder that can be written; choose another output"
        ) from None
    return path
