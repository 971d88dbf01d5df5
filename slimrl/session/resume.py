"""Finding a run, and resuming one that was interrupted: only where it then ends as it would have ended.

Settings that decide nothing about the end may differ on resume; any other difference is named and refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from slimrl.config.files import build, read_yaml, settings_of, with_chosen
from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.errors import DataError, SettingsError
from slimrl.machine.ranks import ranks_here
from slimrl.machine.threads import fix_threads
from slimrl.measures import Bounds
from slimrl.preflight.estimate import read_plan
from slimrl.records import Plan
from slimrl.results import SftSummary, TrainSummary
from slimrl.runs.checkpoints import Checkpoint, newest, remove_unfinished
from slimrl.runs.directory import new_run, run_path
from slimrl.runs.lock import Lock
from slimrl.runs.measured import Measured, read_evaluations
from slimrl.runs.reader import ENDED, read_state

Config = TypeVar("Config", bound=RootConfig)
Summary = TypeVar("Summary", TrainSummary, SftSummary)

MAY_CHANGE = (
    "name", "output", "upload", "max_time", "memory_share", "devices", "device_deadline", "parallel",
    "optimizer.sharded", "rollout.slots", "environment.workers", "environment.memory", "environment.deadline",
    "sandbox.workers", "evaluation.every",
    "rewards.workers", "rewards.deadline", "rewards.memory", "rewards.unscorable_limit",
    "checkpoint.every", "checkpoint.keep", "checkpoint.keep_best",
    "log.samples_every", "log.samples", "log.rollouts", "log.tokens", "log.model", "log.profile",
    "log.to", "log.project", "log.group",
)  # fmt: skip
"""Settings that may differ on resume: they change rounding at most, and which completions no reward can be found for."""
JUDGES_MAY_CHANGE = ("concurrency", "retries", "timeout", "cache", "api_key_env")
"""Settings of a judge that may too."""
PLACES = ("model.path", "algorithm.reference", "task.path", "task.test_path", "task.rates")
"""These too, as long as `identity` (session/identity.py) finds the same model and data there."""
LENGTH = ("steps", "max_tokens")
"""These too, unless rates or problems are laid out over the whole run."""
SPLIT = ("optimizer.microbatch_tokens",)
"""This too, unless the split is part of the result."""
LOST_SECONDS = 120.0
"""A file server keeps the lock of a machine that died for so long; a process of this machine that holds it is not waited for."""
GIVEN_UP = ("lock", "config.yaml", "rejected.jsonl", "data.jsonl", "test.jsonl", "model")
"""Contents of a folder that is not a run yet; a Python program leaves its rows and its model there before the run begins."""


@dataclass(frozen=True)
class RunLookup(Generic[Config]):
    """The run that settings name."""

    status: Literal["new", "interrupted", "finished"]
    verb: str
    path: Path
    wanted: Config
    """The settings as they are now."""
    config: Config
    """The settings to prepare with: those of an interrupted run have its precision and the date of its prompts."""
    recorded: Mapping[str, Any]
    """Its run.json; empty for a new run."""
    checkpoint: Checkpoint | None = None
    """None: from the first step."""
    plan: Plan | None = None
    """The sizes of an interrupted run, for settings that say `auto`."""
    notes: tuple[str, ...] = ()
    lock: Lock | None = None
    """Of a run that is begun: held within the block of `find_run`, so that no other process works on it."""

    @property
    def step(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0


@contextmanager
def find_run(config: Config, verb: str, *, resume: bool) -> Iterator[RunLookup[Config]]:
    """Look up the run that settings name: new, or with `resume` also interrupted or finished.

    Damaged checkpoints of an interrupted run are set aside, and this process gets its number of threads. Raises SettingsError
    for a run that exists and is not to be resumed, is being worked on, or was begun with settings that must not differ;
    DataError where its record is damaged.
    """
    path = run_path(config, verb)
    if resume and not config.name:
        raise SettingsError("--resume needs to know which run; give its folder, or name=...")
    if not resume or not _is_begun(path):
        given_up = resume and path.exists()  # before anything was in it
        yield RunLookup("new", verb, path if given_up else new_run(config, verb), config, config, {})
        return
    lock = Lock(path, patience=LOST_SECONDS)
    try:
        found = _look_into(config, verb, path, lock)
        if found.status == "interrupted" and found.recorded.get("ranks", 1) == ranks_here().size:
            fix_threads(int(found.recorded["threads"]))  # other threads, other sums
        yield found
    finally:
        lock.release()


def _is_begun(path: Path) -> bool:
    """True if a folder holds a run; raises SettingsError where no run may be in it."""
    if path.is_symlink() or (path / "checkpoints").is_symlink():
        raise SettingsError(
            f"{path} is a link to another place, where nothing is written; resume the run by its real folder"
        )
    if not path.exists() or (path / "run.json").exists():
        return path.exists()
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in GIVEN_UP and entry.name[0] != ".")
    if others:
        raise SettingsError(f"{path} is no run, it has no run.json but {others[0]}; choose another name=...")
    return False


def _look_into(config: Config, verb: str, path: Path, lock: Lock) -> RunLookup[Config]:
    recorded = read_state(path)
    if not recorded:
        raise DataError(f"{path}/run.json is damaged; restore it, or start the run anew under another name")
    if recorded.get("verb") != verb:
        raise SettingsError(f"{path} is no run of slimrl {verb}; choose another name=...")
    config = with_chosen(config, recorded.get("chosen", {}))  # what was `auto` then and is now is the same number
    status = recorded.get("status")
    if status in ENDED and status != "finished":
        raise SettingsError(f"{path} has {status} and would again; choose another name=... and other settings")
    before = build(type(config), read_yaml(str(path / "config.yaml")), str(path / "config.yaml"))
    if status == "finished":
        refuse_another_end(before, config, path)
        return RunLookup("finished", verb, path, config, config, recorded)
    refuse_changes(before, config, path)
    remove_unfinished(path / "checkpoints")
    checkpoint, notes = newest(path / "checkpoints")
    if checkpoint is None and notes:
        notes.append(f"{path} has no whole checkpoint and begins again")
    if before.rollout.slots != config.rollout.slots:
        notes.append("with other rollout.slots rounding differs, so some draws and the last bits of weights may differ")
    step = checkpoint.step if checkpoint else 0
    if config.steps < step:
        raise SettingsError(f"steps={config.steps} is less than the {step} that {path} has taken; raise it")
    plan = read_plan(recorded["memory"]) if recorded.get("memory") else None
    found = {"task.date": recorded.get("date"), "model.dtype": recorded.get("dtype")}
    begun = with_chosen(config, {key: value for key, value in found.items() if value})
    return RunLookup("interrupted", verb, path, config, begun, recorded, checkpoint, plan, tuple(notes), lock)


def recorded_summary(found: RunLookup[Any], kind: type[Summary]) -> Summary:
    """The summary of a finished run; raises DataError where its run.json does not hold one."""
    try:
        return TypeAdapter(kind).validate_python(found.recorded["summary"])
    except (KeyError, ValidationError):
        raise DataError(
            f"{found.path}/run.json holds no whole summary; restore it, or start the run anew under another name"
        ) from None


def known_evaluations(found: RunLookup[Any], bounds: Mapping[str, Bounds]) -> Measured:
    """The evaluations up to the step after which a run is resumed, whose rewards have these bounds; raises DataError where one
    of them is missing.
    """
    measured = Measured()
    for evaluation in read_evaluations(found.path, up_to=found.step, bounds=bounds):
        measured.add(evaluation)
    wanted = found.checkpoint.state()["evaluated"] if found.checkpoint else []
    missing = sorted({*wanted} - {*measured.summaries})
    if missing:
        raise DataError(
            f"{found.path}/evals/step-{missing[0]:08d}.jsonl is missing or damaged; restore it, or start the run anew under "
            "another name"
        )
    return measured


def refuse_changes(before: RootConfig, now: RootConfig, path: Path) -> None:
    """Raises SettingsError, naming the first setting that must not differ."""
    easy_first = isinstance(before, TrainConfig) and before.curriculum.order == "easy_first"
    laid_out = before.optimizer.schedule != "constant" or easy_first
    fixed_split = isinstance(before, TrainConfig) and before.algorithm.aggregation == "microbatch_token_mean"
    free = {*MAY_CHANGE, *PLACES, *(() if laid_out else LENGTH), *(() if fixed_split else SPLIT)}
    for key, old, new in _changed(before, now, free):
        why = " while rates or problems are laid out over the whole run" if key in LENGTH else ""
        raise SettingsError(
            f"{path} was begun with {key}={old!r}, which cannot become {new!r}{why}; leave it, or choose another name=..."
        )


def refuse_another_end(before: RootConfig, now: RootConfig, path: Path) -> None:
    """Raises SettingsError for a setting with which a finished run would have ended otherwise: it cannot act any more.

    A finished run keeps its weights and not the state of its optimizer, so it cannot take further steps either. Settings
    that decide nothing about the end, such as the `max_time` of a scheduler's job, may differ.
    """
    changed = _changed(before, now, {*MAY_CHANGE, *PLACES})
    if changed and changed[0][0] == "steps" and now.steps < before.steps:
        raise SettingsError(
            f"{path} is finished with steps={before.steps}, so steps={now.steps} is already past; remove it"
        )
    for key, old, new in changed:
        if key in LENGTH:
            raise SettingsError(
                f"{path} is finished with {key}={old} and keeps no state of the optimizer from which to go on to {key}={new}; "
                f"train its model in a new run (model.path={path} name=... steps=...), or begin anew with {key}={new}"
            )
    if changed:
        key, old, new = changed[0]
        raise SettingsError(
            f"{path} is finished with {key}={old!r}, so {new!r} would have no effect; remove it, or begin a run of another "
            "name=..."
        )


def _changed(before: RootConfig, now: RootConfig, free: Collection[str]) -> list[tuple[str, Any, Any]]:
    """Key, old and new value of the settings that differ, but for those that are `free` to."""
    theirs, ours = (_comparable(settings_of(config, absolute=True)) for config in (before, now))
    return [(key, theirs[key], ours[key]) for key in ours if key not in free and ours[key] != theirs[key]]


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, without those of the judges that may differ on resume, and without the folders of files of code
    and of prompts: `identity` finds out whether the files are the same.
    """
    found = {**settings}
    for name, judge in settings.get("rewards.judge", {}).items():
        kept = {key: value for key, value in judge.items() if key not in JUDGES_MAY_CHANGE}
        kept["prompt_file"] = Path(kept.get("prompt_file", "")).name
        found["rewards.judge"] = {**found["rewards.judge"], name: kept}
    if custom := settings.get("rewards.custom"):
        found["rewards.custom"] = {Path(spec).name: reward for spec, reward in custom.items()}
    if environment := settings.get("environment.name"):
        found["environment.name"] = Path(environment).name
    return found
