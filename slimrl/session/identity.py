"""The identity of a run: everything but its settings that decides its result, and what of it may differ on resume."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from slimrl import __version__
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.machine.ranks import ranks_here
from slimrl.preflight.environment import environment_digest
from slimrl.preflight.setup import Setup
from slimrl.records import right_answers
from slimrl.rewards.custom import files_digest, rewards_digest
from slimrl.runs.durable import digest
from slimrl.runs.reader import way_to_resume
from slimrl.tasks.curriculum import ENDLESS
from slimrl.text import counted

CODE = ("slimrl", "code", "torch", "transformers", "numpy", "dtype", "rewards")
"""Keys of `identity` that must be equal unless the resumption is forced; another machine is only noted."""
ENDLESS_SAMPLE = 64
"""Problems of an endless supply that its fingerprint is made of."""
PACKAGE = Path(__file__).parent.parent
PROMPTS = 8
"""Prompts that the fingerprint of the data holds: they depend on tokenizer, template and instruction."""


def identity(setup: Setup[Any]) -> dict[str, Any]:
    """Versions, device, threads, ranks, date of the prompts, and the SHA-256 of data, first weights, code and custom rewards."""
    device = setup.policy.device
    return {
        "slimrl": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": _name(device),
        "dtype": str(setup.policy.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "ranks": ranks_here().size,
        "date": setup.prompter.date,
        "data": _data(setup),
        "initial": digest(setup.policy.model.named_parameters()),
        "teacher": "" if setup.teacher is None else digest(setup.teacher.model.named_parameters()),
        "code": files_digest(path for kind in ("*.[ch]pp", "*.py") for path in sorted(PACKAGE.rglob(kind))),
        "rewards": _functions(setup.config) if isinstance(setup.config, TrainConfig) else "",
    }


def _functions(config: TrainConfig) -> str:
    """The digests of the user's rewards and, where there is one, environment."""
    return " ".join(filter(None, [rewards_digest(config.rewards), environment_digest(config.environment)]))


def _name(device: torch.device) -> str:
    """A GPU's name; of a CPU what decides the last bits, its architecture and vector instructions: `cpu (x86_64, AVX2)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    instructions = f", {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else ""
    return f"{device.type} ({platform.machine()}{instructions})"


def compare_identity(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, force: bool) -> list[str]:
    """Notes on the differences between the identity that a run began with, which its run.json holds, and that of now.

    Raises SettingsError for those that make it another run; `force` turns those of software into notes.
    """
    made_of = {
        "data": "the problems of the task, or their prompts,",
        "initial": "the weights of model.path",
        "teacher": "the weights of algorithm.reference",
    }
    for key, what in made_of.items():
        if before.get(key, "") != now[key]:
            raise SettingsError(
                f"{what} are not those that {path} began with; bring them back, or choose another name=..."
            )
    changed = [key for key in CODE if before.get(key) != now[key]]
    if changed and not force:
        names = ", ".join(_named(key, before, now) for key in changed)
        raise SettingsError(
            f"{path} was begun with other software ({names}), so it would not end as it would have; bring that back, choose "
            f"another name=..., or resume it all the same with {way_to_resume(path, force=True)}"
        )
    notes = [f"{_named(key, before, now)} since the run began, so its last bits may differ" for key in changed]
    if before.get("device") != now["device"]:
        notes.append(
            f"this machine ({now['device']}) is not the one before ({before.get('device')}); last bits may differ"
        )
    if (ranks := before.get("ranks", 1)) != now["ranks"]:
        began = counted(ranks, "device")
        notes.append(f"the run began on {began} and goes on with {now['ranks']}, so its last bits may differ")
    return notes


def _named(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key == "code":
        return "SlimRL's own code changed"
    if key == "rewards":
        return "the file of environment.name, or the files or functions of rewards.custom changed"
    return f"{key} {before.get(key)} became {now[key]}"


def _data(setup: Setup[Any]) -> str:
    train = setup.task.train if len(setup.task.train) < ENDLESS else islice(setup.task.train, ENDLESS_SAMPLE)
    found = hashlib.sha256()
    for problem in (*train, *setup.measured):
        whole = (problem.id, problem.question, problem.answer, problem.solution, problem.difficulty)
        columns = sorted(problem.columns.items())  # rewards read them
        known = setup.task.rates.get(problem.id)  # a curriculum begins with them
        more = [own for own in (problem.turns, right_answers(problem.answer)[1:], known) if own]
        found.update(repr((whole, columns, *more)).encode("utf-8", "surrogatepass"))
    for problem in setup.held_out[:PROMPTS]:  # tokenizer, template and instruction
        found.update(repr(setup.prompt_ids(problem)).encode())
    return found.hexdigest()
