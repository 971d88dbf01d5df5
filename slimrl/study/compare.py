"""From the runs of a study to its arms over their seeds, and to the differences between arms with a verdict on each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

import numpy as np

from slimrl import statistics
from slimrl.preflight.effects import concerning
from slimrl.preflight.facts import changed_settings
from slimrl.statistics import Interval, Judgement, paired_difference
from slimrl.study.gains import gains
from slimrl.study.primary import read_primary
from slimrl.study.runs import Run
from slimrl.study.spec import Arm, Comparison, Expanded, Study
from slimrl.text import counted

Runs = Mapping[str, Sequence[Run]]
"""By arm, in the order of the seeds."""


@dataclass(frozen=True)
class ArmResult:
    """One arm over its seeds."""

    name: str
    overrides: tuple[str, ...]
    remarks: tuple[tuple[str, str], ...]
    """Kind and text: what was known before the first run, and what all finished runs found."""
    planned: int
    finished: int
    diverged: int
    failed: int
    primary: Interval
    measures: Mapping[str, float]
    """Means over finished runs of `Run.after`, and over runs that count of `tokens`, `seconds`, `steps` and `no_signal`."""
    gains: Mapping[str, Interval] = field(default_factory=dict)
    """Changes from the untrained model, over seeds (`slimrl/study/gains.py`)."""


@dataclass(frozen=True)
class Effect:
    """One comparison, over seeds and over problems."""

    name: str
    kind: Literal["switch", "interaction", "together", "noise"]
    weights: Mapping[str, float]
    seeds: Sequence[int]
    """Indices of the seeds for which every arm of it has a result."""
    pairs: Sequence[float]
    """The difference within each of these seeds."""
    difference: Interval
    adjusted_p: float
    """By Holm's method over the study's switches; the plain p of a comparison that is not part of it."""
    judgement: Judgement
    probability_of_improvement: float
    """NaN for a comparison of more than two arms."""
    problems: Mapping[str, float]
    """`change`, `low`, `high`, `n`: the difference with its interval over held-out problems, as a mean over seeds."""
    identical: int
    """Seeds for which both runs ended with the same weights, to the last bit."""


@dataclass(frozen=True)
class Noise:
    """The difference between two sets of runs with the same settings and other seeds."""

    sd: float
    """Standard deviation over seeds, of the reference and the A/A arm together."""
    floor: float
    """Means of n runs each differ by less than this in 95 of 100 studies."""


@dataclass(frozen=True)
class _Paired:
    """A comparison over the seeds for which every arm of it has a result."""

    comparison: Comparison
    seeds: list[int]
    runs: dict[str, list[Run]]
    """By arm, in the order of `seeds`."""
    pairs: list[float]
    difference: Interval


def compare(expanded: Expanded, runs: Runs) -> tuple[Effect, ...]:
    """Every comparison with its verdict; Holm's method covers all switches, and one without a result has p = 1."""
    paired = [_pair(comparison, runs, expanded.study) for comparison in expanded.comparisons]
    adjusted = iter(statistics.holm([own.difference.p for own in paired if own.comparison.tested]))
    return tuple(
        _effect(own, next(adjusted) if own.comparison.tested else own.difference.p, expanded) for own in paired
    )


def _pair(comparison: Comparison, runs: Runs, study: Study) -> _Paired:
    weights = comparison.weights
    seeds = [i for i in range(study.seeds) if all(runs[arm][i].counts for arm in weights)]
    pairs = [math.fsum(w * runs[arm][i].value(study.primary) for arm, w in weights.items()) for i in seeds]
    most = statistics.attainable(weights)
    difference = statistics.interval(pairs)
    if read_primary(study.primary).is_share:
        difference = statistics.within(difference, -most, most)
    return _Paired(comparison, seeds, {arm: [runs[arm][i] for i in seeds] for arm in weights}, pairs, difference)


def _over_problems(own: _Paired, *, shares: bool) -> Mapping[str, float]:
    """The difference by problem, as a mean over the seeds whose runs all finished; empty without any.

    Problems that have no score in one of these runs, as a reward may have none, are left out.
    """
    finished = [i for i in range(len(own.seeds)) if all(runs[i].status == "finished" for runs in own.runs.values())]
    items = {arm: [own.runs[arm][i].items for i in finished] for arm in own.comparison.weights}
    scored = (
        set.intersection(*(set(scores) for all_runs in items.values() for scores in all_runs)) if finished else set()
    )
    sums = {
        problem: math.fsum(
            weight * scores[problem] / len(finished)
            for arm, weight in own.comparison.weights.items()
            for scores in items[arm]
        )
        for problem in sorted(scored)
    }
    scores = [score for runs in own.runs.values() for run in runs for score in run.items.values()]
    span = 1.0 if shares or not scores else max(scores) - min(scores)
    reach = span * statistics.attainable(own.comparison.weights)
    return paired_difference(dict.fromkeys(sums, 0.0), sums, reach=reach) if sums else {}


def _effect(own: _Paired, p: float, expanded: Expanded) -> Effect:
    comparison, study, difference = own.comparison, expanded.study, own.difference
    over_problems = _over_problems(own, shares=read_primary(study.primary).is_share)
    identical, improvement = 0, math.nan
    if comparison.is_pair:
        ours, theirs = (own.runs[arm] for arm in sorted(own.runs, key=lambda arm: -comparison.weights[arm]))
        identical = sum(bool(a.weights) and a.weights == b.weights for a, b in zip(ours, theirs, strict=True))
        values = ([run.value(study.primary) for run in runs] for runs in (ours, theirs))
        improvement = statistics.probability_of_improvement(*values)
    all_identical = 0 < identical == len(own.seeds) and not any(own.pairs)  # equal weights may be measured otherwise
    if all_identical:  # so they are for any seed and any problem
        difference = replace(difference, low=0.0, high=0.0)
        over_problems = {**over_problems, "low": 0.0, "high": 0.0}
    tested = expanded.tested if comparison.tested else 1
    diverged = sum(run.status == "diverged" for runs in own.runs.values() for run in runs)
    judgement = statistics.judge(difference, p, study.margin, tested, identical=all_identical, diverged=diverged)
    return Effect(
        name=comparison.name,
        kind=comparison.kind,
        weights=comparison.weights,
        seeds=own.seeds,
        pairs=own.pairs,
        difference=difference,
        adjusted_p=p,
        judgement=judgement,
        probability_of_improvement=improvement,
        problems=over_problems,
        identical=identical,
    )


def noise(reference: Sequence[Run], repeat: Sequence[Run], primary: str) -> Noise:
    """Pooled over both arms, whose runs differ in nothing but the seed; NaN where nothing is known."""
    groups = [[run.value(primary) for run in runs if run.counts] for runs in (reference, repeat)]
    groups = [g for g in groups if len(g) > 1]
    if not groups:
        return Noise(math.nan, math.nan)
    freedom = sum(len(g) - 1 for g in groups)
    sd = math.sqrt(sum((len(g) - 1) * float(np.var(g, ddof=1)) for g in groups) / freedom)
    if sd < statistics.NO_SPREAD:  # equal counts do not show that others would be equal
        return Noise(0.0, math.nan)
    n = min(len(g) for g in groups)
    return Noise(sd, statistics.student_t(freedom) * sd * math.sqrt(2 / n))


def spread_of_differences(effects: Sequence[Effect], declared: float) -> tuple[float, str]:
    """Standard deviation of a difference over seeds, and where it comes from.

    It is that of the switches. Until one is measured it is the declared one, or that of the A/A arm if this is larger.
    """
    switches = [e.difference.sd for e in effects if e.kind == "switch" and e.difference.sd > 0]
    if switches:
        return math.sqrt(fmean(sd * sd for sd in switches)), f"measured on {counted(len(switches), 'arm')}"
    repeats = [e.difference.sd for e in effects if e.kind == "noise" and e.difference.sd > declared]
    return (repeats[0], "measured on the A/A arm") if repeats else (declared, "as the study file expects")


def arm_result(arm: Arm, by_arm: Runs, expanded: Expanded) -> ArmResult:
    runs = by_arm[arm.name]
    finished = [run for run in runs if run.status == "finished"]
    counting = [run for run in runs if run.counts]
    known_keys = dict.fromkeys(key for run in finished for key in run.after)  # a reward may have no score in some run
    measures = {key: fmean(run.after[key] for run in finished if key in run.after) for key in known_keys}
    if counting:
        measures |= {key: fmean(getattr(run, key) for run in counting) for key in ("tokens", "seconds", "steps")}
        shares = [x for run in counting for x in run.curves["no_signal"] if math.isfinite(x)]
        measures["no_signal"] = fmean(shares) if shares else math.nan
    primary = statistics.interval([run.value(expanded.study.primary) for run in counting])
    known = [(remark.kind, remark.text) for remark in arm.remarks] + _findings(finished)
    return ArmResult(
        name=arm.name,
        overrides=arm.overrides,
        remarks=(*known, *_found_by_runs(arm, by_arm, expanded)),
        planned=len(runs),
        finished=len(finished),
        diverged=sum(run.status == "diverged" for run in runs),
        failed=sum(run.status == "failed" for run in runs),
        primary=statistics.within(primary, 0.0, 1.0) if read_primary(expanded.study.primary).is_share else primary,
        measures=measures,
        gains=gains(runs),
    )


def _findings(finished: Sequence[Run]) -> list[tuple[str, str]]:
    """Findings of the runs, by how many of them: the sentence of the first."""
    found: dict[str, list[str]] = {}
    for run in finished:
        for sentence in run.findings:
            found.setdefault(sentence.partition(":")[0], []).append(sentence)
    return [
        ("finding", f"in {len(told)} of {counted(len(finished), 'run')}, as in the first, {told[0]}")
        for told in found.values()
    ]


def _found_by_runs(arm: Arm, by_arm: Runs, expanded: Expanded) -> list[tuple[str, str]]:
    """Remarks of all finished runs on settings that the arm changes; none if the arm was known to be inert.

    An arm is inert if all settings that it changes are; one that is inert among others adds nothing. A setting that an arm
    switches off is inert if it was in the runs of the reference.
    """
    other = expanded.against(arm)
    if arm.is_repeat or arm.name == other.name or any(remark.kind == "inert" for remark in arm.remarks):
        return []
    ours, theirs = ([run for run in by_arm[a.name] if run.status == "finished"] for a in (arm, other))
    always_inert = [*_in_all([run.inert for run in ours]), *_in_all([run.inert for run in theirs])]
    by_setting = {_setting(text): text for text in concerning(always_inert, other.config, arm.config)}
    changed = [key.rpartition(".")[2] for key in changed_settings(other.config, arm.config)]
    all_inert = bool(by_setting) and all(any(key in setting for setting in by_setting) for key in changed)
    always = f"in each of its {len(ours)} runs, as in the first"
    found = [
        ("inert", f"{always}, {text}") if all_inert else ("confounded", f"adds nothing here: {text}")
        for text in by_setting.values()
    ]
    confounded = concerning(_in_all([run.confounded for run in ours]), other.config, arm.config)
    return found + [("confounded", f"{always}, {text}") for text in confounded]


def _in_all(told: Sequence[Sequence[str]]) -> list[str]:
    """The sentences of the first run on settings that every run has a sentence on."""
    settings = [{_setting(text) for text in texts} for texts in told]
    first = {_setting(text): text for text in told[0]} if told else {}
    return [text for setting, text in first.items() if all(setting in others for others in settings)]


def _setting(text: str) -> str:
    """The setting that a sentence is about."""
    return text.partition(":")[0]
