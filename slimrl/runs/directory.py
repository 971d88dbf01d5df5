"""runs/NAME/: config.yaml, run.json, metrics.jsonl, events.jsonl, rollouts/, evals/, checkpoints/, curves.png, final/; and
rejected.jsonl where rows of the data were.

No database is the truth; anything else can be rebuilt from here. A run never overwrites another, and one process at a time
works on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import transformers
from torch import Tensor

from slimrl import __version__
from slimrl.algorithm.groups import Collected
from slimrl.algorithm.metrics import Metrics
from slimrl.config.files import dump_yaml
from slimrl.config.schema import RootConfig
from slimrl.errors import UNWRITABLE, DataError, DiskError, DivergedError, SettingsError
from slimrl.machine.signals import PREEMPTED, Stopped
from slimrl.model.policy import Policy
from slimrl.records import Rejected
from slimrl.runs.checkpoints import checkpoints, remove
from slimrl.runs.curves import draw_curves
from slimrl.runs.durable import (
    files_within,
    full_disk_as_oserror,
    sync_folder,
    sync_folders,
    write_tensors,
    written_by_others,
)
from slimrl.runs.files import (
    as_json,
    as_jsonl,
    as_line,
    read_metrics,
    read_state,
    remove_unfinished_files,
    rollout_rows,
    write_jsonl,
    write_text,
)
from slimrl.runs.lock import Lock
from slimrl.runs.measured import Measured

if TYPE_CHECKING:
    from slimrl.evaluate import Evaluation

ENDED = ("finished", "diverged")
"""Statuses of a run that is over; any other is one that can go on."""


class RunDirectory:
    """Writes one run; `history` keeps the metrics of every step for the picture at the end."""

    def __init__(self, path: Path, lock: Lock | None = None) -> None:
        self.path = path
        self.history: list[Metrics] = []
        self.measured = Measured()
        self.mended = 0
        """Step from which on its rewards were others, where that was forced."""
        self._lock = lock or Lock(path)
        self._lines: list[str] = []
        """Of metrics.jsonl, not written yet."""
        self._files: dict[Path, str] = {}
        """Whole files, not written yet: there are some only while the disk is full."""

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @classmethod
    def create(
        cls,
        path: Path,
        config: RootConfig,
        policy: Policy,
        *,
        verb: str,
        memory: Mapping[str, Any],
        rejected: Sequence[Rejected],
        **known: Any,
    ) -> Self:
        """Make the directory with config.yaml, run.json and, where rows were rejected, rejected.jsonl.

        `memory` is the plan, `known` goes into run.json as it is. A folder without run.json was given up before anything was
        in it, and is taken.
        """
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        if (path / "run.json").exists():  # looked at again, under the lock: loading took its time
            run._lock.release()
            raise SettingsError(f"{path} was begun by another process meanwhile; choose another name=...")
        write_text(path / "config.yaml", dump_yaml(config))
        if rejected:
            write_jsonl(path / "rejected.jsonl", [dataclasses.asdict(row) for row in rejected])
        run._write_state(
            {
                "verb": verb,
                "memory": memory,
                "status": "running",
                "started": _now(),
                **versions(policy),
                "parameters": sum(p.numel() for p in policy.model.parameters()),
                **known,
            }
        )
        return run

    @classmethod
    def reopen(cls, path: Path, config: RootConfig, lock: Lock, *, step: int, **known: Any) -> Self:
        """Go on with a run that was interrupted, after `step` of its steps; what lies beyond is forgotten.

        `known` is what made the result from here on, which is not what it was where that was forced.

        Raises DataError where its records of those steps are not there.
        """
        run = cls(path, lock)
        for folder in (path, path / "evals", path / "rollouts"):
            remove_unfinished_files(folder)
        run.rewind(step)
        write_text(path / "config.yaml", dump_yaml(config))
        run._change_state(status="running", reason="", **known)
        run.note(step, "resumed")
        return run

    def rewind(self, step: int) -> None:
        """Forget all records beyond this step."""
        known = self.history or read_metrics(self.path / "metrics.jsonl")
        rows = [row for row in known if row["step"] <= step]
        if [row["step"] for row in rows] != list(range(1, step + 1)):
            raise DataError(
                f"{self.path}/metrics.jsonl does not hold steps 1 to {step}, after which the run would go on; restore it, or "
                "start the run anew under another name"
            )
        for checkpoint in checkpoints(self.checkpoints):  # before the records that they need
            if checkpoint.step > step:
                remove(checkpoint)
        write_text(self.path / "metrics.jsonl", "".join(as_line(row) for row in rows))
        self._lines.clear()
        self.history = rows
        self.measured.rewind(step)
        self._files = {file: text for file, text in self._files.items() if _step_of(file) <= step}
        for folder in ("rollouts", "evals", "nonfinite"):
            for file in (self.path / folder).glob("step-*"):
                if _step_of(file) > step:
                    file.unlink()

    def sync(self) -> None:
        """What a checkpoint relies on is on the disk when this returns; raises OSError where it could not be written."""
        if (refused := self._flush()) is not None:
            raise refused
        for path in (self.path / "metrics.jsonl", self.path / "run.json", self.path / "config.yaml"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        for folder in (self.path / "evals", self.path / "rollouts", self.path):
            if folder.is_dir():
                sync_folder(folder)

    def note(self, step: int, event: str, **more: Any) -> None:
        """One line of events.jsonl: what happened to the run beside its steps."""
        row = {"at": _now(), "step": step, "event": event, **more}
        with contextlib.suppress(OSError), (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def log_step(self, step: int, metrics: Metrics, collected: Collected | None = None) -> None:
        """One line of metrics.jsonl, and the rollouts of the step where they are wanted; kept back while the disk is full."""
        row = {"step": step + 1, **metrics}
        self.history.append(row)
        self._lines.append(as_line(row))
        if collected is not None:
            self._files[self.path / "rollouts" / f"step-{step + 1:08d}.jsonl"] = as_jsonl(rollout_rows(collected))
        self._flush()

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """Every held-out completion with its verdicts, and the summary."""
        self.measured.add(evaluation)
        path = self.path / "evals" / f"step-{evaluation.step:08d}.jsonl"
        # the rows last: they say that there is an evaluation
        self._files[path.with_suffix(".json")] = as_json(self.measured.summaries[evaluation.step])
        self._files[path] = as_jsonl(evaluation.table())
        self._flush()

    def _flush(self) -> OSError | None:
        """Write what waits; the error where the disk took not all of it, which then goes on waiting."""
        metrics = self.path / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        try:
            if self._lines:
                with metrics.open("a", encoding="utf-8") as file:
                    file.write("".join(self._lines))
                self._lines.clear()
            for path, text in list(self._files.items()):
                write_text(path, text)
                del self._files[path]
        except OSError as error:
            if self._lines and metrics.exists():
                os.truncate(metrics, size)  # no half line may stay
            return error
        return None

    def save_final(self, policy: Policy) -> None:
        """final/: loads with AutoModelForCausalLM.from_pretrained. On the disk, whole, before the run counts as finished."""
        temporary, final = self.path / ".writing-final", self.path / "final"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with full_disk_as_oserror(final):
                policy.merged().save_pretrained(temporary)
                policy.tokenizer.save_pretrained(temporary)
            for file in files_within(temporary):
                written_by_others(file)
            sync_folders(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            sync_folder(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # half a model helps nobody, and its room may
            raise

    def finish(self, summary: Any) -> None:
        """Close the run: what still waits, curves as a picture, summary into run.json.

        Raises OSError where one of them cannot be written.
        """
        self.sync()
        with full_disk_as_oserror(self.path / "curves.png"):
            draw_curves(self.path / "curves.png", self.history, self.measured.summaries)
        # last of all: who finds a run finished finds all of it
        self._change_state(status="finished", ended=_now(), summary=dataclasses.asdict(summary))

    def keep_fault(self, step: int, tensors: Mapping[str, Tensor], what: str) -> None:
        """nonfinite/: the batch of an update that was dropped, for inspection."""
        with contextlib.suppress(OSError):  # a full disk ends no run
            (self.path / "nonfinite").mkdir(exist_ok=True)
            write_tensors(self.path / "nonfinite" / f"step-{step:08d}.safetensors", tensors)
        self.note(step, "fault", what=what)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Whatever ends the block early is noted in run.json, and goes on; a full disk as a DiskError that says what to do."""
        try:
            yield
        except BaseException as error:
            if read_state(self.path).get("status") == "finished":  # what fails after the end does not undo it
                raise
            ended: BaseException = error
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                ended = self.unwritable(error)
            with contextlib.suppress(OSError):  # a full disk must not hide what happened
                self._change_state(status=_ending(ended), reason=str(ended) or type(ended).__name__)
            if ended is error:
                raise
            raise ended from error
        finally:
            self._lock.release()

    def unwritable(self, error: OSError) -> DiskError:
        """What a user reads where the run cannot be written, and how it goes on once it can."""
        last = next((checkpoint.step for checkpoint in checkpoints(self.checkpoints)), 0)
        where = f"after step {last}" if last else "again from its beginning, to the same end"
        verb = read_state(self.path).get("verb", "train")
        return DiskError(
            f"{error.filename or self.path} cannot be written ({error.strerror or error}); free space or make it writable, then "
            f"slimrl {verb} --resume {self.path} goes on {where}"
        )

    def _change_state(self, **changes: Any) -> None:
        self._write_state({**read_state(self.path), **changes})

    def _write_state(self, state: Mapping[str, Any]) -> None:
        write_text(self.path / "run.json", as_json(state))


def versions(policy: Policy) -> dict[str, Any]:
    """What else decides the last bits of a result."""
    return {
        "slimrl": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": _device_name(policy),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _ending(error: BaseException) -> str:
    """How a run.json calls an end that is not success."""
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
    """Steps after which a model was left: of a run, of its final/, or of a checkpoint; None for any other model."""
    if match := re.fullmatch(r"step-(\d{8,})", model.resolve().name):
        return int(match[1])
    run = model.resolve().parent if model.resolve().name == "final" else model
    steps = read_state(run).get("summary", {}).get("steps")
    return steps if isinstance(steps, int) else None


def run_path(config: RootConfig, verb: str) -> Path:
    """Where this run lies, or will lie; raises SettingsError where no folder can be named so."""
    if "\0" in config.output:
        raise SettingsError(f"output={config.output!r}: no folder can be named so; remove the NUL character")
    name = config.name or f"{config.task.name}-{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
    return Path(config.output) / name


def new_run(config: RootConfig, verb: str) -> Path:
    """Where this run will lie. Asked before any work, so that what cannot be written is said at once.

    Raises SettingsError for a run that exists already, or an output folder that cannot be written.
    """
    path = run_path(config, verb)
    # a link is neither followed nor replaced, wherever it leads
    if path.exists() or path.is_symlink():
        status = read_state(path).get("status")
        if status in ENDED:
            raise SettingsError(f"{path} is {status} already, and a run is never overwritten; choose another name=...")
        if status is not None:
            raise SettingsError(
                f"{path} is not finished, and a run is never overwritten; go on with slimrl {verb} --resume {path}, or choose "
                "another name=..."
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


def _device_name(policy: Policy) -> str:
    if policy.device.type == "cuda":
        return str(torch.cuda.get_device_name(policy.device))
    return f"{policy.device.type} ({platform.machine()})"
