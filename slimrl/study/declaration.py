"""declared.json: what a study fixes before its first run, and the check that it has not changed since."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from slimrl.config.files import build, read_yaml, settings_of, with_chosen
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.preflight.facts import rounding_only
from slimrl.runs.files import write_text
from slimrl.runs.reader import read_chosen, read_json
from slimrl.study.runs import Planned, planned_runs
from slimrl.study.spec import Expanded

DECLARED = "declared.json"


def read_declaration(folder: Path) -> dict[str, Any]:
    """Empty before the first run of a study."""
    return read_json(folder / DECLARED)


def declare(expanded: Expanded, folder: Path) -> str:
    """Write the declaration before the first run; returns the date that all prompts take for today."""
    declared = read_declaration(folder) or declaration(expanded)
    if "date" not in declared:
        declared["date"] = datetime.now().isoformat(timespec="seconds")
        write_text(folder / DECLARED, json.dumps(declared, indent=2) + "\n")
    return str(declared["date"])


def declaration(expanded: Expanded) -> dict[str, Any]:
    """The declaration of a study that has not begun, as JSON."""
    study = expanded.study
    return {
        "primary": study.primary,
        "margin": study.margin,
        "design": study.design,
        "arms": {arm.name: list(arm.overrides) for arm in expanded.arms},
        "budget": study.budget.model_dump(),
        "seeds": study.seeds,
    }


def check_study(expanded: Expanded, folder: Path) -> None:
    """Raises SettingsError if the study differs from its declaration in anything but seeds, or results have other settings."""
    now, began = declaration(expanded), read_declaration(folder)
    for key in began:
        if key in now and key != "seeds" and began[key] != now[key]:
            raise SettingsError(
                f"{folder} was begun with {key}={began[key]!r}, and the study now says {now[key]!r}; what is declared before "
                "the first run stays, so give the changed study another --name"
            )
    for run in planned_runs(expanded, folder):
        check_unchanged(run)


def check_unchanged(run: Planned) -> None:
    """Raises SettingsError if a result was made with other settings than the study has now."""
    if not run.ended:
        return
    recorded = build(TrainConfig, read_yaml(str(run.folder / "config.yaml")), str(run.folder))
    theirs = settings_of(recorded, absolute=True)
    ours = settings_of(with_chosen(run.arm.config, read_chosen(run.folder)), absolute=True)
    ours["seed"] = run.arm.seed(run.index)
    free = {"name", "output", "upload", *rounding_only(recorded), *(key for key in ours if key.startswith("log."))}
    if ours["task.date"] == "auto":
        free.add("task.date")
    for key in ours:
        if key not in free and ours[key] != theirs[key]:
            raise SettingsError(
                f"{run.folder} was made with {key}={theirs[key]!r}, and the study now says {ours[key]!r}; give the study "
                "another --name, or remove that folder"
            )
