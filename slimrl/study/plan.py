"""Before a study: what it will take here, and how small an effect it can see."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

from slimrl.config.files import dump_yaml, with_chosen
from slimrl.errors import DataError
from slimrl.preflight.effects import concerning, inert_switches
from slimrl.preflight.observed import Observed
from slimrl.runs.reader import read_chosen
from slimrl.statistics import MOST_SEEDS, detectable_effect, seeds_needed
from slimrl.study.launcher import Job, LocalLauncher, Slots
from slimrl.study.results import collect
from slimrl.study.runner import DONE, choose_slots, locked, planned_runs
from slimrl.study.spec import Arm, Expanded

PROBE_STEPS = 3


@dataclass(frozen=True)
class Measured:
    """What a run takes here, beside others in the other slots."""

    runs: int
    """Finished runs of this study that this rests on; 0: a probe of a few steps."""
    step_seconds: float
    other_seconds: float
    """Start, evaluations, and everything else."""
    step_tokens: float
    seen: Observed
    """What was sampled, as far as switches depend on it."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Numbers that the runs chose where settings say `auto`."""


@dataclass(frozen=True)
class ArmPlan:
    """One arm before it runs."""

    name: str
    overrides: tuple[str, ...]
    tokens: float
    """Sampled in training, estimated, by all of its runs."""
    seconds: float
    """Of all of its runs, one after another."""
    remarks: tuple[tuple[str, str], ...]
    """Kind and text: what follows from the settings, and (kind `probe`) what the probe adds."""


@dataclass(frozen=True)
class Plan:
    """What `slimrl study plan` prints."""

    name: str
    runs: int
    left: int
    seeds: int
    slots: int
    threads: int
    arms: tuple[ArmPlan, ...]
    tokens: float
    hours: float
    """Of what is left, in these slots."""
    spread: float
    """Standard deviation over seeds of a difference; `spread_from` says whether it was measured."""
    spread_from: str
    detectable: float
    """Smallest true difference that 80 of 100 such studies find, Holm's method heeded."""
    margin: float
    seeds_for_margin: int
    """Seeds that find a true difference of the margin with the same power."""
    needed: Mapping[str, int]
    """Seeds by effect, in points."""
    measured_on: int
    """Finished runs that the estimates rest on; 0: a probe."""


def plan_study(expanded: Expanded, folder: Path, *, slots: int, effects: tuple[float, ...]) -> Plan:
    """Estimate from finished runs where there are some, else from a few steps of the reference in every slot at once.

    Raises DataError where the probe fails, with its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = planned_runs(expanded, folder)
    left = [run for run in runs if run.status not in DONE]
    with locked(folder) as lock:
        chosen = choose_slots(folder, expanded, slots, keep=False)
        measured = _from_runs(expanded, folder) or _probe(expanded, folder, chosen, lock)
    arms = tuple(_arm_plan(arm, expanded, measured) for arm in expanded.arms)
    seconds = {arm.name: arm.seconds / expanded.study.seeds for arm in arms}
    spread, spread_from = _spread(expanded, folder)
    tested = max(1, expanded.tested)
    steps = {f"{100 * effect:g}": seeds_needed(effect, spread, tested) for effect in effects}
    return Plan(
        name=expanded.name,
        runs=len(runs),
        left=len(left),
        seeds=expanded.study.seeds,
        slots=chosen.count,
        threads=chosen.threads,
        arms=arms,
        tokens=sum(arm.tokens for arm in arms),
        hours=sum(seconds[run.arm.name] for run in left) / chosen.count / 3600,
        spread=spread,
        spread_from=spread_from,
        detectable=detectable_effect(expanded.study.seeds, spread, tested),
        margin=expanded.study.margin,
        seeds_for_margin=seeds_needed(expanded.study.margin, spread, tested),
        needed=steps,
        measured_on=measured.runs,
    )


def sentences(plan: Plan) -> list[str]:
    """The plan for a person."""
    find = (
        f"80 of 100 such studies would find a true difference of {100 * plan.detectable:.1f} points"
        if math.isfinite(plan.detectable)
        else "one seed finds nothing"
    )
    found = [
        f"{plan.runs} runs ({len(plan.arms)} arms x {plan.seeds} seeds), {plan.left} left: about {_hours(plan.hours)} here, "
        f"{plan.slots} at once with {plan.threads} thread{'s' if plan.threads > 1 else ''} each, and "
        f"{plan.tokens / 1e6:.1f} million sampled tokens in all "
        f"({f'by {plan.measured_on} finished runs' if plan.measured_on else 'by a probe of a few steps'})",
        f"{find} (spread of a difference over seeds: {100 * plan.spread:.1f} points, {plan.spread_from}); one of "
        f"{100 * plan.margin:g} points, the margin, takes {_seeds(plan.seeds_for_margin)} seeds",
    ]
    found += [f"a difference of {effect} points takes {_seeds(n)} seeds" for effect, n in plan.needed.items()]
    for arm in plan.arms:
        found += [f"{arm.name}: {kind}: {text}" for kind, text in arm.remarks]
    return found


def _seeds(n: int) -> str:
    return f"more than {MOST_SEEDS:,}" if n >= MOST_SEEDS else f"{n:,}"


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1.5 else f"{60 * hours:.0f} minutes"


def _spread(expanded: Expanded, folder: Path) -> tuple[float, str]:
    results = collect(expanded, folder)
    measured = [e.difference.sd for e in results.effects if e.kind == "switch" and e.difference.n > 2]
    measured = [sd for sd in measured if sd > 0]
    if measured:
        return math.sqrt(fmean(sd * sd for sd in measured)), f"measured on {len(measured)} arms"
    return expanded.study.spread, "as the study file expects"


def _arm_plan(arm: Arm, expanded: Expanded, measured: Measured) -> ArmPlan:
    """Cost relative to the probe of the reference; what dynamic sampling adds follows from the groups without a signal."""
    reference = expanded.arm(expanded.reference).config
    batch = (arm.config.rollout.problems * arm.config.rollout.group_size) / (
        reference.rollout.problems * reference.rollout.group_size
    )
    batch *= _refill(arm, measured) / _refill(expanded.arm(expanded.reference), measured)
    tokens = arm.config.steps * measured.step_tokens * batch
    if arm.config.max_tokens:
        tokens = min(tokens, float(arm.config.max_tokens))
    seconds = measured.other_seconds + tokens / measured.step_tokens * measured.step_seconds
    known: list[tuple[str, str]] = [(remark.kind, remark.text) for remark in arm.remarks]
    if not any(kind == "inert" for kind, _ in known) and arm.name != expanded.reference and not arm.again:
        idle = inert_switches(with_chosen(arm.config, measured.chosen), measured.seen)
        idle = concerning(idle, expanded.against(arm).config, arm.config)
        known += [("probe", sentence) for sentence in idle]
    return ArmPlan(arm.name, arm.overrides, tokens * expanded.study.seeds, seconds * expanded.study.seeds, tuple(known))


def _refill(arm: Arm, measured: Measured) -> float:
    """How many times the groups of a step dynamic sampling is likely to sample."""
    algorithm = arm.config.algorithm
    if algorithm.dynamic_sampling != "refill":
        return 1.0
    useful = 1 - measured.seen.constant / max(1, measured.seen.groups)
    return min(algorithm.refill_budget, max(1.0, algorithm.refill_share / max(1e-9, useful)))


def _from_runs(expanded: Expanded, folder: Path) -> Measured | None:
    """What finished runs of the reference took."""
    results = collect(expanded, folder)
    runs = [r for r in results.runs if r.status == "finished" and r.arm == expanded.reference and r.steps]
    if not runs:
        return None
    walls = [_wall(folder / run.folder) for run in runs]
    return Measured(
        runs=len(runs),
        step_seconds=fmean(run.seconds / run.steps for run in runs),
        other_seconds=max(0.0, fmean(w - run.seconds for w, run in zip(walls, runs, strict=True))),
        step_tokens=fmean(run.tokens / run.steps for run in runs),
        seen=_seen(expanded, [folder / run.folder for run in runs]),
        chosen=read_chosen(folder / runs[0].folder),
    )


def _probe(expanded: Expanded, folder: Path, slots: Slots, lock: int) -> Measured:
    """A few steps of the reference in every slot at once, in a folder that is removed again."""
    config = expanded.arm(expanded.reference).config
    probes = folder / "probe"
    shutil.rmtree(probes, ignore_errors=True)
    launcher = LocalLauncher(slots, lock)
    running, started = [], time.monotonic()
    try:
        for slot in range(slots.count):
            steps = min(PROBE_STEPS, config.steps)
            own = config.model_copy(
                update={
                    "seed": slot,
                    "name": f"probe-{slot}",
                    "output": str(probes),
                    "steps": steps,
                    "memory_share": slots.memory_share,
                    "log": config.log.model_copy(update={"model": False}),
                }
            )
            probes.mkdir(exist_ok=True)
            settings = probes / f"{slot}.yaml"
            settings.write_text(dump_yaml(own), encoding="utf-8")
            running.append(launcher.start(Job(settings, probes / f"{slot}.txt"), slot))
        while any(process.poll() is None for process in running):
            time.sleep(0.1)
        wall = time.monotonic() - started
        folders = [probes / f"probe-{slot}" for slot in range(slots.count)]
        for slot, run in enumerate(folders):
            if not _finished(run):
                said = (probes / f"{slot}.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise DataError(f"the probe of {expanded.reference} failed: {said[-1] if said else 'it said nothing'}")
        rows = [row for run in folders for row in _history(run)]
        later = [row for row in rows if row["step"] > 1] or rows  # the first step warms up
        spent = fmean(_history(run)[-1]["time/total"] for run in folders)
        return Measured(
            runs=0,
            step_seconds=median(row["time/rollout"] + row["time/update"] for row in later),
            other_seconds=max(0.0, wall - spent),
            step_tokens=fmean(_history(run)[-1]["num_tokens"] / len(_history(run)) for run in folders),
            seen=_seen(expanded, folders),
            chosen=read_chosen(folders[0]),
        )
    finally:
        for process in running:
            process.stop()
        shutil.rmtree(probes, ignore_errors=True)


def _seen(expanded: Expanded, folders: list[Path]) -> Observed:
    """What metrics.jsonl says was sampled, in the form in which switches ask for it."""
    group = expanded.arm(expanded.reference).config.rollout.group_size
    rows = [row for folder in folders for row in _history(folder) if "completions/max_length" in row]
    groups = sum(int(row["sampling/groups"]) for row in rows)
    return Observed(
        completions=groups * group,
        truncated=round(sum(row["completions/clipped_ratio"] * row["sampling/groups"] * group for row in rows)),
        longest=int(max((row["completions/max_length"] for row in rows), default=0)),
        shortest=int(min((row["completions/min_length"] for row in rows), default=0)),
        groups=groups,
        constant=round(sum(row["sampling/no_signal"] * row["sampling/groups"] for row in rows)),
    )


def _history(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _finished(folder: Path) -> bool:
    path = folder / "run.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["status"] == "finished"


def _wall(folder: Path) -> float:
    """Seconds from making a run's folder to its end; start-up before it is not seen."""
    state = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return (datetime.fromisoformat(state["ended"]) - datetime.fromisoformat(state["started"])).total_seconds()
