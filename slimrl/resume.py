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

from slimrl.config import RootConfig, TrainConfig
from slimrl.errors import SettingsError
from slimrl.model.loading import fingerprint
from slimrl.prepare import Setup
from slimrl.runs.checkpoints import Checkpoint, newest
from slimrl.runs.directory import ENDED, Lock, read_state, run_path, versions
from slimrl.settings import build, read_yaml, settings_of
from slimrl.tasks.order import ENDLESS

Config = TypeVar("Config", bound=RootConfig)

MAY_CHANGE = (
    "name", "output", "max_time", "memory_share", "rollout.slots", "evaluation.every",
    "rewards.workers", "rewards.deadline", "rewards.memory", "rewards.unscorable_limit",
    "checkpoint.every", "checkpoint.keep", "checkpoint.keep_best",
    "log.samples_every", "log.samples", "log.rollouts", "log.model", "log.profile",
)  # fmt: skip
"""Settings that no weight depends on."""
LENGTH = ("steps", "max_tokens")
"""These too, unless rates or problems are laid out over the whole run."""
CODE = ("slimrl", "code", "torch", "transformers", "dtype", "rewards")
"""What else must be as it was, unless --force says otherwise; another machine is only said."""
ENDLESS_SAMPLE = 64
"""Problems that stand for an endless supply in its fingerprint."""


@dataclass(frozen=True)
class Interrupted(Generic[Config]):
    """A run to go on with."""

    path: Path
    wanted: Config
    """The settings as they are now."""
    config: Config
    """The same with the sizes that the run was planned with."""
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


def find_interrupted(config: Config, verb: str) -> Interrupted[Config] | None:
    """The run that these settings name, if there is one to go on with; its damaged checkpoints are set aside.

    Raises SettingsError where settings differ that must not.
    """
    path = run_path(config, verb)
    if not config.name:
        raise SettingsError("--resume needs to know which run; give its folder, or name=...")
    recorded = read_state(path)
    if not recorded or recorded.get("status") in ENDED:
        return None
    if (path / "checkpoints").is_symlink() or path.is_symlink():
        raise SettingsError(
            f"{path} is a link to another place, where nothing is written; resume the run where it lies"
        )
    if recorded.get("verb") != verb:
        raise SettingsError(f"{path} is no run of slimrl {verb}; choose another name=...")
    before = build(type(config), read_yaml(str(path / "config.yaml")), str(path / "config.yaml"))
    refuse_changes(before, config, path)
    lock = Lock(path)
    checkpoint, notes = newest(path / "checkpoints")
    if checkpoint is None and notes:
        notes.append(f"{path} has no whole checkpoint and begins again")
    step = checkpoint.step if checkpoint else 0
    if config.steps < step:
        lock.release()
        raise SettingsError(f"steps={config.steps} is less than the {step} that {path} has taken; raise it")
    return Interrupted(path, config, _planned(config, before, recorded), checkpoint, recorded, tuple(notes), lock)


def refuse_changes(before: RootConfig, now: RootConfig, path: Path) -> None:
    """Raises SettingsError, naming the first setting that must not differ."""
    theirs, ours = settings_of(before), settings_of(now)
    easy_first = isinstance(before, TrainConfig) and before.curriculum.order == "easy_first"
    laid_out = before.optimizer.schedule != "constant" or easy_first
    free = {*MAY_CHANGE, *(() if laid_out else LENGTH)}
    for key in ours:
        if key not in free and ours[key] != theirs[key]:
            why = " while rates or problems are laid out over the whole run" if key in LENGTH else ""
            raise SettingsError(
                f"{path} was begun with {key}={theirs[key]!r}, which cannot become {ours[key]!r}{why}; leave it, or choose "
                "another name=..."
            )


def _planned(config: Config, before: Config, recorded: Mapping[str, Any]) -> Config:
    """Sizes that were `auto` are what they were: other micro-batches would change the last bits of a sum."""
    plan = recorded.get("memory", {})
    again = "on" if plan.get("activation_checkpointing") else "off"
    optimizer, rollout = config.optimizer, config.rollout
    if before.optimizer.microbatch_tokens == "auto" and plan.get("microbatch_tokens"):
        optimizer = optimizer.model_copy(update={"microbatch_tokens": plan["microbatch_tokens"]})
    if before.optimizer.activation_checkpointing == "auto" and plan:
        optimizer = optimizer.model_copy(update={"activation_checkpointing": again})
    if config.rollout.slots == before.rollout.slots == "auto" and plan.get("slots"):
        rollout = rollout.model_copy(update={"slots": plan["slots"]})
    return config.model_copy(update={"optimizer": optimizer, "rollout": rollout})


def identity(setup: Setup) -> dict[str, str]:
    """SHA-256 of what a run is made from, beside its settings: its data, its first weights, this code, the user's rewards."""
    custom = setup.config.rewards.custom if isinstance(setup.config, TrainConfig) else ()
    return {
        "data": _data(setup),
        "initial": fingerprint(setup.policy.model),
        "code": _files(sorted(Path(__file__).parent.rglob("*.[ch]pp")) + sorted(Path(__file__).parent.rglob("*.py"))),
        "rewards": _files([Path(spec.rpartition(":")[0]).expanduser() for spec in custom]),
    }


def compare_identity(
    interrupted: Interrupted[Any], setup: Setup, found: Mapping[str, str], *, force: bool
) -> list[str]:
    """What a user must know of the differences; raises SettingsError for those that would make it another run."""
    before, path = interrupted.recorded, interrupted.path
    for key, what in (("data", "the problems of the task"), ("initial", "the weights of model.path")):
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


def _data(setup: Setup) -> str:
    train = setup.task.train if len(setup.task.train) < ENDLESS else islice(setup.task.train, ENDLESS_SAMPLE)
    digest = hashlib.sha256()
    for problem in (*train, *setup.held_out, *setup.harder):
        whole = (problem.id, problem.question, problem.answer, problem.solution, problem.difficulty)
        digest.update(repr(whole).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
