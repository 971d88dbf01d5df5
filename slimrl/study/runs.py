"""The runs of a study: their settings and folders, and a record of each as far as it came."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from slimrl.config.places import address_below
from slimrl.config.schema import TrainConfig
from slimrl.errors import DataError
from slimrl.runs.reader import ENDED, read_answers, read_metrics, read_state, read_status, read_summaries
from slimrl.study.primary import read_primary
from slimrl.study.spec import Arm, Expanded

CURVES = {
    "step": "step", "tokens": "num_tokens", "seconds": "time/total", "accuracy": "accuracy", "length": "completions/mean_length",
    "truncated": "completions/clipped_ratio", "entropy": "entropy", "kl": "kl", "reward": "reward",
    "no_signal": "sampling/no_signal",
}  # fmt: skip
"""Keys of metrics.jsonl by the curve that they make."""
CELLS = {
    (True, True): "right", (True, False): "right_out_of_form",
    (False, True): "wrong_in_form", (False, False): "wrong_out_of_form",
}  # fmt: skip
"""By whether the answer is right and whether the form is."""
MODES = {"sampled": "accuracy", "greedy": "greedy"}
"""Keys of a summary by the mode of decoding."""
MAYBE = ("disputed", "pass@n", "lenient_pass@n", "unscorable")
"""Measures of the test split that not every evaluation has."""
LONGEST_NAME = 56
Outcome = Literal["finished", "diverged", "failed", "missing"]
"""State of a run; one that is `missing` has not begun, or was interrupted."""


@dataclass(frozen=True)
class Planned:
    """One run of a study, whether it has begun or not."""

    arm: Arm
    index: int
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def status(self) -> str:
        """A `Status` of slimrl.runs.reader; empty before the run begins."""
        return read_status(self.folder)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def config(self, memory_share: float, date: str = "auto") -> TrainConfig:
        """The settings of this run; `date` is used in its prompts unless the study's settings have one."""
        task, log, upload = self.arm.config.task, self.arm.config.log, self.arm.config.upload
        study = self.folder.parent.parent.name
        update = {
            "log": log if log.group else log.model_copy(update={"group": study}),
            "task": task.model_copy(update={"date": date}) if task.date == "auto" else task,
            "seed": self.arm.seed(self.index),
            "name": self.name,
            "output": str(self.folder.parent),
            "upload": f"{address_below(upload, study)}/runs" if upload else "",
            "memory_share": memory_share,
        }
        return self.arm.config.model_copy(update=update)


@dataclass(frozen=True)
class Run:
    """The record of one run."""

    arm: str
    index: int
    seed: int
    status: Outcome
    reason: str
    folder: str
    """Relative to the study's."""
    steps: int
    tokens: int
    """Sampled in training."""
    seconds: float
    """Of training, without set-up and evaluation."""
    weights: str
    """SHA-256 of the trained weights."""
    before: Mapping[str, float]
    """Held-out measures of the untrained model, with the keys of `after`."""
    after: Mapping[str, float]
    """`test/sampled`, `test/greedy` and so on (strict accuracy), `test/rewards/NAME` and so on (scores), the twins' `drop`, and
    of sampled test completions `lenient`, `format`, `truncated`, `disputed`, `pass@n`, `lenient_pass@n` (shares), `mean_length`
    (tokens), `right`, `right_out_of_form`, `wrong_in_form`, `wrong_out_of_form`."""
    items: Mapping[str, float]
    """The primary measure by problem."""
    curves: Mapping[str, Sequence[float]]
    """Each of CURVES by step; NaN for a step without a value."""
    held_out: Sequence[tuple[float, float, float]]
    """Tokens and seconds so far, and the primary measure, of every evaluation."""
    inert: Sequence[str]
    confounded: Sequence[str]
    """Settings that had no effect in this run, and that had a further one."""
    worst: float = 0.0
    """What a run that diverged counts as: no answer right, or the lowest score of the primary measure's reward, NaN where none is
    known (`settled`). Its model is of no use, so it is not left out."""
    findings: Sequence[str] = ()
    """Notable sentences on its course."""

    @property
    def counts(self) -> bool:
        """True for a run that is a result."""
        return self.status in ENDED

    def value(self, primary: str) -> float:
        """The primary measure of a run that counts; raises DataError if the run was finished without it."""
        if self.status == "diverged":
            return self.worst
        if primary not in self.after:
            raise DataError(
                f"{self.folder} is finished and has no measure {primary}; remove that folder and run the study again"
            )
        return self.after[primary]


def planned_runs(expanded: Expanded, folder: Path) -> list[Planned]:
    """Every run of a study, seed by seed, so that arms can be compared early."""
    places = [(arm, index) for index in range(expanded.study.seeds) for arm in expanded.arms]
    return [Planned(arm, index, run_folder(folder, arm.name, index)) for arm, index in places]


def run_folder(folder: Path, arm: str, index: int) -> Path:
    """The folder of a run within its study's; a name that is too long ends in a hash of it."""
    name = arm.replace("+", ".")
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return folder / "runs" / f"{name}-{index}"


def read_run(planned: Planned, primary: str) -> Run:
    """The record of a run; it has no measures unless the run counts.

    Raises DataError if its metrics are damaged.
    """
    folder, state = planned.folder, read_state(planned.folder)
    recorded, summary = state.get("status"), state.get("summary", {})
    counts, finished = recorded in ENDED, recorded == "finished"
    status: Outcome = state["status"] if counts or recorded == "failed" else "missing"
    history = read_metrics(folder) if counts else []
    summaries = read_summaries(folder) if counts else {}
    measures = {step: _measures(splits) for step, splits in summaries.items()}
    spent = {int(row["step"]): (float(row["num_tokens"]), float(row["time/total"])) for row in history}
    last = max(measures, default=0)
    rows = read_answers(folder, last) if finished else []
    return Run(
        arm=planned.arm.name,
        index=planned.index,
        seed=planned.arm.seed(planned.index),
        status=status,
        reason=str(state.get("reason", "")),
        folder=f"runs/{planned.name}",
        steps=len(history),
        tokens=int(history[-1]["num_tokens"]) if history else 0,
        seconds=float(history[-1]["time/total"]) if history else 0.0,
        weights=str(summary.get("weights", "")),
        before=measures[min(measures)] if measures else {},
        after=measures.get(last, {}) | _form(rows) if finished else {},
        items=_items(rows, primary),
        curves=_curves(history, read_primary(primary).reward),
        held_out=[(*spent.get(step, (0.0, 0.0)), found.get(primary, math.nan)) for step, found in measures.items()],
        inert=summary.get("inert", []),
        confounded=summary.get("confounded", []),
        worst=_worst(summaries, primary),
        findings=summary.get("findings", []),
    )


def _measures(summaries: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The held-out measures of an evaluation, as `Run.after` has them, from its summaries by split."""
    found: dict[str, float] = {}
    for split, summary in summaries.items():
        found |= {f"{split}/{mode}": summary[key] for mode, key in MODES.items() if key in summary}
        found |= {f"{split}/{key}": summary[key] for key in summary if re.fullmatch(r"rewards/[^/]+", key)}
    if "test" in summaries:
        found |= {key: summaries["test"][key] for key in ("lenient", "format", "truncated", "mean_length")}
        found |= {key: summaries["test"][key] for key in MAYBE if key in summaries["test"]}
    if "drop" in summaries.get("twins", {}):
        found["drop"] = summaries["twins"]["drop"]
    return found


def _worst(summaries: Mapping[int, Mapping[str, Mapping[str, float]]], primary: str) -> float:
    """The lowest score of a reward in any evaluation of a run, or the lowest that it can give; of accuracy 0."""
    wanted = read_primary(primary)
    if not wanted.reward:
        return 0.0
    splits = [found[wanted.split] for found in summaries.values() if wanted.split in found]
    key = f"rewards/{wanted.reward}/least"
    return min((float(found[key]) for found in splits if key in found), default=math.nan)


def settled(runs: Mapping[str, Sequence[Run]], primary: str) -> dict[str, list[Run]]:
    """The runs of a study by arm, all with the `worst` of the worst of them, so that one that diverged is below every finished
    one: a reward may have no lower bound, and one run's own scores do not know how low others went."""
    every = [run for own in runs.values() for run in own]
    known = [*(run.worst for run in every), *(run.after.get(primary, math.nan) for run in every)]
    worst = min((value for value in known if math.isfinite(value)), default=0.0)
    return {arm: [replace(run, worst=worst) for run in own] for arm, own in runs.items()}


def _curves(history: Sequence[Mapping[str, float]], reward: str) -> dict[str, list[float]]:
    """The curves of a run; that of the primary measure is a reward's, where one is named."""
    keys = CURVES | ({"accuracy": f"rewards/{reward}/mean"} if reward else {})
    return {name: [float(row.get(key, math.nan)) for row in history] for name, key in keys.items()}


def _form(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of sampled test completions by answer (read leniently) and form."""
    sampled = [row for row in rows if row["split"] == "test" and row["mode"] == "sampled"]
    cells = Counter((row["lenient"] or row["strict"], row["well_formed"]) for row in sampled)
    return {name: cells[cell] / len(sampled) for cell, name in CELLS.items()} if sampled else {}


def _items(rows: Sequence[Mapping[str, Any]], primary: str) -> dict[str, float]:
    wanted = read_primary(primary)
    found: dict[str, list[float]] = {}
    for row in rows:
        if (value := wanted.value(row)) is not None:
            found.setdefault(row["id"], []).append(value)
    return {problem: fmean(values) for problem, values in found.items()}
