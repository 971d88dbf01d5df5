"""Going on with a run that was interrupted: only where it then ends as it would have ended.

What may change between the two, a user may want to change; what must not is named and refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from slimrl.config.files import build, read_yaml, settings_of, with_chosen
from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.errors import DataError, SettingsError
from slimrl.evaluate import read_evaluations
from slimrl.preflight.memory import read_plan
from slimrl.preflight.setup import Setup
from slimrl.records import Plan
from slimrl.rewards.custom import files_digest, rewards_digest
from slimrl.runs.checkpoints import Checkpoint, newest, remove_unfinished
from slimrl.runs.directory import ENDED, new_run, run_path, versions
from slimrl.runs.durable import digest
from slimrl.runs.files import read_state
from slimrl.runs.lock import Lock
from slimrl.runs.measured import Measured
from slimrl.tasks.order import ENDLESS

Config = TypeVar("Config", bound=RootConfig)

MAY_CHANGE = (
    "name", "output", "max_time", "memory_share", "rollout.slots", "evaluation.every",
    "rewards.workers", "rewards.deadline", "rewards.memory", "rewards.unscorable_limit",
    "checkpoint.every", "checkpoint.keep", "checkpoint.keep_best",
    "log.samples_every", "log.samples", "log.rollouts", "log.model", "log.profile",
)  # fmt: skip
"""Settings that no weight depends on, but for rounding under other slots, and for completions that a reward fails on."""
PLACES = ("model.path", "task.path", "task.test_path")
"""And these, as long as what lies there is the same: `identity` tells."""
LENGTH = ("steps", "max_tokens")
"""These too, unless rates or problems are laid out over the whole run."""
CODE = ("slimrl", "code", "torch", "transformers", "numpy", "dtype", "rewards")
"""What else must be as it was, unless --force says otherwise; another machine is only said."""
GIVEN_UP = ("lock", "config.yaml", "rejected.jsonl")
"""What is in a run's folder before it is a run."""
ENDLESS_SAMPLE = 64
"""Problems that stand for an endless supply in its fingerprint."""
PACKAGE = Path(__file__).parent.parent
PROMPTS = 8
"""Prompts that stand for what makes prompts of problems."""


@dataclass(frozen=True)
class Interrupted(Generic[Config]):
    """A run to go on with."""

    path: Path
    wanted: Config
    """The settings as they are now."""
    config: Config
    """The same with the date of the run's prompts."""
    plan: Plan | None
    """Its sizes, for settings that say `auto`; None where run.json has none."""
    checkpoint: Checkpoint | None
    """None: it begins again, which leads to the same end."""
    recorded: Mapping[str, Any]
    """Its run.json."""
    notes: tuple[str, ...]
    lock: Lock
    """Held from here on, so that no other process works on it."""

    @property
    def step(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0


@dataclass(frozen=True)
class Found(Generic[Config]):
    """The run that settings name."""

    path: Path
    summary: dict[str, Any] | None = None
    """Of one that is finished."""
    interrupted: Interrupted[Config] | None = None
    """None: it is to be begun."""


def find_run(config: Config, verb: str, *, resume: bool) -> Found[Config]:
    """Where a run lies and whether it is finished, interrupted or new; the damaged checkpoints of one are set aside.

    Raises SettingsError for a run that exists and is not to be gone on with, is being worked on, or was begun with settings
    that must not differ; DataError where its record is damaged.
    """
    path = run_path(config, verb)
    if not resume:
        return Found(new_run(config, verb))
    if not config.name:
        raise SettingsError("--resume needs to know which run; give its folder, or name=...")
    if path.is_symlink() or (path / "checkpoints").is_symlink():
        raise SettingsError(
            f"{path} is a link to another place, where nothing is written; resume the run where it lies"
        )
    if not path.exists():
        return Found(new_run(config, verb))
    if not (path / "run.json").exists():
        others = sorted(entry.name for entry in path.iterdir() if entry.name not in GIVEN_UP and entry.name[0] != ".")
        if others:
            raise SettingsError(f"{path} is no run, it has no run.json but {others[0]}; choose another name=...")
        return Found(path)  # given up before anything was in it
    lock = Lock(path)
    try:
        return _look_into(config, verb, path, lock)
    except BaseException:
        lock.release()
        raise


def _look_into(config: Config, verb: str, path: Path, lock: Lock) -> Found[Config]:
    recorded = read_state(path)
    if not recorded:
        raise DataError(f"{path}/run.json is damaged; restore it, or start the run anew under another name")
    if recorded.get("verb") != verb:
        raise SettingsError(f"{path} is no run of slimrl {verb}; choose another name=...")
    config = with_chosen(config, recorded.get("chosen", {}))  # what was `auto` then and is now is the same number
    if recorded.get("status") == "finished":
        refuse_another_end(build(type(config), read_yaml(str(path / "config.yaml"))), config, path)
        lock.release()
        return Found(path, summary=recorded["summary"])
    if recorded.get("status") in ENDED:
        raise SettingsError(
            f"{path} has {recorded['status']} and would again; choose another name=... and other settings"
        )
    before = build(type(config), read_yaml(str(path / "config.yaml")), str(path / "config.yaml"))
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
    dated = _with_date(config, recorded)
    return Found(path, interrupted=Interrupted(path, config, dated, plan, checkpoint, recorded, tuple(notes), lock))


def known_evaluations(interrupted: Interrupted[Any]) -> Measured:
    """What was measured up to the step from which the run goes on; raises DataError where some of it is missing."""
    folder = interrupted.path / "evals"
    found = Measured()
    for evaluation in read_evaluations(folder, up_to=interrupted.step):
        found.add(evaluation)
    wanted = interrupted.checkpoint.state()["evaluated"] if interrupted.checkpoint else []
    missing = sorted({*wanted} - {*found.summaries})
    if missing:
        raise DataError(
            f"{folder}/step-{missing[0]:08d}.jsonl is missing or damaged; restore it, or start the run anew under another name"
        )
    return found


def refuse_changes(before: RootConfig, now: RootConfig, path: Path) -> None:
    """Raises SettingsError, naming the first setting that must not differ."""
    theirs, ours = settings_of(before, absolute=True), settings_of(now, absolute=True)
    easy_first = isinstance(before, TrainConfig) and before.curriculum.order == "easy_first"
    laid_out = before.optimizer.schedule != "constant" or easy_first
    free = {*MAY_CHANGE, *PLACES, *(() if laid_out else LENGTH)}
    for key in ours:
        if key not in free and ours[key] != theirs[key]:
            why = " while rates or problems are laid out over the whole run" if key in LENGTH else ""
            raise SettingsError(
                f"{path} was begun with {key}={theirs[key]!r}, which cannot become {ours[key]!r}{why}; leave it, or choose "
                "another name=..."
            )


def refuse_another_end(before: RootConfig, now: RootConfig, path: Path) -> None:
    """Raises SettingsError for a setting with which a finished run would have ended otherwise: nothing is left to heed it.

    A finished run keeps its weights and not the state of its optimizer, so it cannot take further steps either. Settings
    that decide nothing about the end, such as the `max_time` of a scheduler's job, may differ.
    """
    theirs, ours = settings_of(before, absolute=True), settings_of(now, absolute=True)
    changed = [key for key in ours if key not in (*MAY_CHANGE, *PLACES) and ours[key] != theirs[key]]
    if changed and changed[0] == "steps" and now.steps < before.steps:
        raise SettingsError(
            f"{path} is finished with steps={before.steps}, so steps={now.steps} lies behind it; remove it"
        )
    if longer := [key for key in changed if key in LENGTH]:
        key = longer[0]
        raise SettingsError(
            f"{path} is finished with {key}={theirs[key]} and keeps no state of the optimizer from which to go on to "
            f"{key}={ours[key]}; train its model in a new run (model.path={path} name=... steps=...), or "
            f"begin anew with {key}={ours[key]}"
        )
    if changed:
        key = changed[0]
        raise SettingsError(
            f"{path} is finished with {key}={theirs[key]!r}, so {ours[key]!r} would have no effect; remove it, or begin a run of "
            "another name=..."
        )


def _with_date(config: Config, recorded: Mapping[str, Any]) -> Config:
    """The settings with the date of the run where they say `auto`: another date would change prompts."""
    if config.task.date != "auto" or not recorded.get("date"):
        return config
    return config.model_copy(update={"task": config.task.model_copy(update={"date": recorded["date"]})})


def identity(setup: Setup[Any]) -> dict[str, str]:
    """What a run is made from, beside its settings: the date in its prompts, and SHA-256 of its data, its first weights, this
    code, and the user's rewards.
    """
    return {
        "date": setup.prompter.date,
        "data": _data(setup),
        "initial": digest(dict(setup.policy.model.named_parameters())),
        "code": files_digest(path for kind in ("*.[ch]pp", "*.py") for path in sorted(PACKAGE.rglob(kind))),
        "rewards": rewards_digest(setup.config.rewards) if isinstance(setup.config, TrainConfig) else "",
    }


def compare_identity(
    interrupted: Interrupted[Any], setup: Setup[Any], found: Mapping[str, str], *, force: bool
) -> list[str]:
    """What a user must know of the differences; raises SettingsError for those that would make it another run."""
    before, path = interrupted.recorded, interrupted.path
    for key, what in (
        ("data", "the problems of the task, or their prompts,"),
        ("initial", "the weights of model.path"),
    ):
        if before.get(key) != found[key]:
            raise SettingsError(
                f"{what} are not those that {path} began with; bring them back, or choose another name=..."
            )
    now: dict[str, Any] = {**versions(setup.policy), **found}
    changed = [key for key in CODE if before.get(key) != now[key]]
    if changed and not force:
        names = ", ".join(_named(key, before, now) for key in changed)
        raise SettingsError(
            f"{path} was begun with other software ({names}), so it would not end as it would have; bring that back, choose "
            "another name=..., or go on all the same with --force"
        )
    notes = [f"{_named(key, before, now)} since the run began, so its last bits may differ" for key in changed]
    if before.get("device") != now["device"]:
        notes.append(
            f"this machine ({now['device']}) is not the one before ({before.get('device')}); last bits may differ"
        )
    return notes


def _named(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key in ("code", "rewards"):
        return {"code": "SlimRL's own code", "rewards": "the files of rewards.custom"}[key] + " changed"
    return f"{key} {before.get(key)} became {now[key]}"


def _data(setup: Setup[Any]) -> str:
    train = setup.task.train if len(setup.task.train) < ENDLESS else islice(setup.task.train, ENDLESS_SAMPLE)
    found = hashlib.sha256()
    for problem in (*train, *setup.held_out, *setup.harder):
        whole = (problem.id, problem.question, problem.answer, problem.solution, problem.difficulty)
        columns = sorted(problem.columns.items())  # rewards read them
        found.update(repr((whole, columns)).encode("utf-8", "surrogatepass"))
    for problem in setup.held_out[:PROMPTS]:  # tokenizer, template and instruction
        found.update(repr(setup.prompt_ids(problem)).encode())
    return found.hexdigest()
