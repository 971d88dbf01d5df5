"""Planning a study: the time that it takes on this machine, and the smallest difference that it can find."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

from slimrl.config.files import with_chosen
from slimrl.config.schema import TrainConfig
from slimrl.errors import DataError
from slimrl.preflight.effects import concerning, inert_switches
from slimrl.preflight.observed import Observed
from slimrl.preflight.price import study_calls, study_notes
from slimrl.runs.lock import Lock
from slimrl.runs.reader import read_chosen, read_metrics, read_state, read_status
from slimrl.statistics import MOST_SEEDS, detectable_effect, seeds_needed
from slimrl.study.compare import spread_of_differences
from slimrl.study.launcher import Slots
from slimrl.study.place import HERE, Place
from slimrl.study.results import Results, collect
from slimrl.study.runner import LOCK_SECONDS, choose_slots, of_use, write_job
from slimrl.study.runs import planned_runs
from slimrl.study.spec import Arm, Expanded
from slimrl.text import points

PROBE_STEPS = 3
PROBES_OF_A_CLUSTER = 2
"""Its nodes do not share cores and memory as the slots of one machine do."""


@dataclass(frozen=True)
class Measured:
    """The cost of a run of the reference while the other slots are busy."""

    runs: int
    """Finished runs of this study that were measured; 0 if a probe of a few steps was."""
    step_seconds: float
    other_seconds: float
    """Start, evaluations, and everything else."""
    step_tokens: float
    seen: Observed
    """Statistics of the samples, on which effects of settings depend."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Values that the runs chose where settings say `auto`."""


@dataclass(frozen=True)
class ArmPlan:
    """One arm before it runs."""

    name: str
    overrides: tuple[str, ...]
    tokens: float
    """Estimate of those sampled in training by all of its runs."""
    seconds: float
    """Of all of its runs, one after another."""
    remarks: tuple[tuple[str, str], ...]
    """Kind and text: what follows from the settings, and (kind `probe`) from what was sampled."""


@dataclass(frozen=True)
class Plan:
    """The output of `slimrl study plan`."""

    name: str
    runs: int
    left: int
    seeds: int
    slots: int
    threads: int
    arms: tuple[ArmPlan, ...]
    tokens: float
    hours: float
    """Of the runs that are left, in these slots."""
    place: str
    """In words: `on this machine`."""
    portion: str
    """The CPUs and GPUs of a run, in words."""
    spread: float
    """Standard deviation of a difference over seeds."""
    spread_from: str
    detectable: float
    """Smallest true difference that 80 of 100 such studies find with Holm's method."""
    margin: float
    seeds_for_margin: int
    """Seeds that find a true difference of the margin with the same power."""
    needed: Mapping[str, int]
    """The same for other differences, by their size in points."""
    measured_on: int
    """Finished runs that the estimates are based on; 0: a probe."""
    judge_calls: Mapping[str, int] = field(default_factory=dict)
    """By judge: the calls of the runs that are left, at most and without retries."""


def plan_study(
    expanded: Expanded,
    folder: Path,
    *,
    slots: int,
    effects: tuple[float, ...],
    place: Place = HERE,
    say: Callable[[str], object] = lambda _: None,
) -> Plan:
    """Estimate from finished runs of the reference; without any, from a few steps of it in every slot at once.

    `say` gets the price of judges, of the study and of the probe, before the first of them is asked. Raises DataError if the
    probe fails, with its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, tested, runs = expanded.study, expanded.tested, planned_runs(expanded, folder)
    left = [run for run in runs if not run.ended]
    with Lock(folder, patience=LOCK_SECONDS) as lock:
        chosen = of_use(choose_slots(folder, expanded, slots, place, keep=False), len(left), place)
        results = collect(expanded, folder)
        for note in study_notes([run.arm.config for run in left]):
            say(note)
        measured = _from_runs(expanded, results, folder)
        if measured is None:
            probing = of_use(chosen, PROBES_OF_A_CLUSTER, place)
            probes = [_probe_config(expanded)] * probing.count
            for note in study_notes(probes):
                say(f"for this plan, {note}")
            measured = _probe(expanded, folder, probing, place, lock.descriptor)
    arms = tuple(_arm_plan(arm, expanded, measured) for arm in expanded.arms)
    seconds = {arm.name: arm.seconds / study.seeds for arm in arms}
    spread, spread_from = spread_of_differences(results.effects, study.spread)
    return Plan(
        name=expanded.name,
        runs=len(runs),
        left=len(left),
        seeds=study.seeds,
        slots=chosen.count,
        threads=chosen.threads,
        arms=arms,
        tokens=sum(arm.tokens for arm in arms),
        hours=sum(seconds[run.arm.name] for run in left) / chosen.count / 3600,
        place=str(place),
        portion=place.portion(chosen.cpus),
        spread=spread,
        spread_from=spread_from,
        detectable=detectable_effect(study.seeds, spread, tested),
        margin=study.margin,
        seeds_for_margin=seeds_needed(study.margin, spread, tested),
        needed={f"{100 * effect:g}": seeds_needed(effect, spread, tested) for effect in effects},
        measured_on=measured.runs,
        judge_calls=study_calls(run.arm.config for run in left),
    )


def sentences(plan: Plan) -> list[str]:
    """The plan for a person."""
    find = (
        f"80 of 100 such studies would find a true difference of {points(plan.detectable)}"
        if math.isfinite(plan.detectable)
        else "one seed finds nothing"
    )
    found = [
        f"{plan.runs} runs ({len(plan.arms)} arms x {plan.seeds} seeds), {plan.left} left: "
        f"about {_hours(plan.hours)} {plan.place}, "
        f"{plan.slots} at once with {plan.portion} each, and "
        f"{plan.tokens / 1e6:.1f} million sampled tokens in all "
        f"({f'by {plan.measured_on} finished runs' if plan.measured_on else 'by a probe of a few steps'})",
        f"{find} (spread of a difference over seeds: {points(plan.spread)}, {plan.spread_from}); one of "
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


def _arm_plan(arm: Arm, expanded: Expanded, measured: Measured) -> ArmPlan:
    """Cost relative to the reference's; what dynamic sampling adds follows from the groups without a signal."""
    reference = expanded.arm(expanded.reference)
    ours, theirs, seeds = arm.config.rollout, reference.config.rollout, expanded.study.seeds
    batch = (ours.problems * ours.group_size) / (theirs.problems * theirs.group_size)
    batch *= _refill(arm, measured) / _refill(reference, measured)
    tokens = arm.config.steps * measured.step_tokens * batch
    if arm.config.max_tokens:
        tokens = min(tokens, float(arm.config.max_tokens))
    seconds = measured.other_seconds + tokens / measured.step_tokens * measured.step_seconds
    known: list[tuple[str, str]] = [(remark.kind, remark.text) for remark in arm.remarks]
    if not any(kind == "inert" for kind, _ in known) and arm.name != expanded.reference and not arm.is_repeat:
        idle = inert_switches(with_chosen(arm.config, measured.chosen), measured.seen)
        idle = concerning(idle, expanded.against(arm).config, arm.config)
        known += [("probe", sentence) for sentence in idle]
    return ArmPlan(arm.name, arm.overrides, tokens * seeds, seconds * seeds, tuple(known))


def _refill(arm: Arm, measured: Measured) -> float:
    """The factor by which dynamic sampling is likely to increase the groups of a step."""
    algorithm = arm.config.algorithm
    if algorithm.dynamic_sampling != "refill":
        return 1.0
    useful = 1 - measured.seen.constant / max(1, measured.seen.groups)
    return min(algorithm.refill_budget, max(1.0, algorithm.refill_share / max(1e-9, useful)))


def _from_runs(expanded: Expanded, results: Results, folder: Path) -> Measured | None:
    """The cost of finished runs of the reference; None if there are none."""
    runs = [r for r in results.runs if r.status == "finished" and r.arm == expanded.reference and r.steps]
    if not runs:
        return None
    folders = [folder / run.folder for run in runs]
    return Measured(
        runs=len(runs),
        step_seconds=fmean(run.seconds / run.steps for run in runs),
        other_seconds=max(0.0, fmean(_wall(f) - run.seconds for f, run in zip(folders, runs, strict=True))),
        step_tokens=fmean(run.tokens / run.steps for run in runs),
        seen=_seen(expanded, [read_metrics(folder) for folder in folders]),
        chosen=read_chosen(folders[0]),
    )


def _probe_config(expanded: Expanded) -> TrainConfig:
    """The settings of a probe: the reference's with few steps."""
    config = expanded.arm(expanded.reference).config
    log = config.log.model_copy(update={"model": False})
    return config.model_copy(update={"steps": min(PROBE_STEPS, config.steps), "log": log})


def _probe(expanded: Expanded, folder: Path, slots: Slots, place: Place, lock: int) -> Measured:
    """Run a few steps of the reference in every slot at once, in a folder that is removed again."""
    config = _probe_config(expanded)
    for left in folder.glob("probe-*"):
        shutil.rmtree(left, ignore_errors=True)
    # Each time another name: jobs of a plan that was killed may still be in a queue.
    probes = Path(tempfile.mkdtemp(prefix="probe-", dir=folder))
    launcher = place.launcher(slots, lock)
    jobs, running, started = [], [], time.monotonic()
    try:
        update = {"output": str(probes), "upload": "", "memory_share": slots.memory_share}
        for slot in range(slots.count):
            own = config.model_copy(update=update | {"seed": slot, "name": f"probe-{slot}"})
            jobs.append(write_job(probes, f"{slot}", own))
            running.append(launcher.start(jobs[-1], slot))
        while any(process.poll() is None for process in running):
            time.sleep(0.1)
        wall = time.monotonic() - started
        folders = [probes / f"probe-{slot}" for slot in range(slots.count)]
        for run, job in zip(folders, jobs, strict=True):
            if read_status(run) != "finished":
                raise DataError(f"the probe of {expanded.reference} failed: {job.last_words()}")
        histories = [read_metrics(run) for run in folders]
        rows = [row for history in histories for row in history]
        later = [row for row in rows if row["step"] > 1] or rows  # the first step warms up
        if place.kind != "local":  # without the time in the queue
            wall = fmean(_wall(run) for run in folders)
        return Measured(
            runs=0,
            step_seconds=median(row["time/rollout"] + row["time/update"] for row in later),
            other_seconds=max(0.0, wall - fmean(history[-1]["time/total"] for history in histories)),
            step_tokens=fmean(history[-1]["num_tokens"] / len(history) for history in histories),
            seen=_seen(expanded, histories),
            chosen=read_chosen(folders[0]),
        )
    finally:
        for process in running:
            process.stop()
        shutil.rmtree(probes, ignore_errors=True)


def _seen(expanded: Expanded, histories: Sequence[Sequence[Mapping[str, float]]]) -> Observed:
    """Statistics of the samples of runs of the reference, from the rows of metrics.jsonl."""
    group = expanded.arm(expanded.reference).config.rollout.group_size
    rows = [row for history in histories for row in history if "completions/max_length" in row]
    groups = sum(int(row["sampling/groups"]) for row in rows)
    return Observed(
        completions=groups * group,
        truncated=round(sum(row["completions/clipped_ratio"] * row["sampling/groups"] * group for row in rows)),
        longest=int(max((row["completions/max_length"] for row in rows), default=0)),
        shortest=int(min((row["completions/min_length"] for row in rows), default=0)),
        groups=groups,
        constant=round(sum(row["sampling/no_signal"] * row["sampling/groups"] for row in rows)),
        turns=math.ceil(max((row.get("turns/mean", 0.0) for row in rows), default=0.0)),
        paid_by_turn=sum("turns/reward" in row for row in rows),
    )


def _wall(folder: Path) -> float:
    """Seconds from the making of a run's folder to its end; the start before that is not included."""
    state = read_state(folder)
    return (datetime.fromisoformat(state["ended"]) - datetime.fromisoformat(state["started"])).total_seconds()
