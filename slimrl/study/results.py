"""From run directories to what a study found: one frozen record that every report is written from.

Nothing is kept but the runs' own directories, so this can be done at any time, also while runs are missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from slimrl import statistics
from slimrl.config.files import settings_of, with_chosen
from slimrl.config.schema import TrainConfig
from slimrl.preflight.effects import changed_settings, concerning
from slimrl.runs.reader import (
    Run,
    read_chosen,
    read_declaration,
    read_json,
    read_json_lines,
    read_run,
    run_folder,
    value,
)
from slimrl.statistics import CONFIDENCE, FEWEST_SEEDS, Interval, Judgement, paired_difference
from slimrl.study.spec import Arm, Comparison, Expanded

SHOWN_PROBLEMS = 4
CEILING = 0.97


@dataclass(frozen=True)
class ArmResult:
    """One arm over its seeds."""

    name: str
    overrides: tuple[str, ...]
    remarks: tuple[tuple[str, str], ...]
    """Kind and text: what was known before the first run, and what every run found inert."""
    planned: int
    finished: int
    diverged: int
    failed: int
    primary: Interval
    measures: Mapping[str, float]
    """Means over finished runs of what `Run.after` holds, with `tokens`, `seconds`, `steps`, and `no_signal`."""


@dataclass(frozen=True)
class Effect:
    """One comparison, over seeds and over problems."""

    name: str
    kind: str
    weights: Mapping[str, float]
    seeds: Sequence[int]
    """Indices of the seeds for which every arm of it has a result."""
    pairs: Sequence[float]
    """The difference within each of these seeds."""
    difference: Interval
    adjusted_p: float
    """Holm's over the study's switches; the plain p of comparisons outside of it."""
    judgement: Judgement
    probability_of_improvement: float
    """NaN where a comparison has more than two arms."""
    problems: Mapping[str, float]
    """`change`, `low`, `high`, `n`: the same difference with its interval over held-out problems, seeds averaged."""
    identical: int
    """Seeds for which both runs ended with the same weights, to the last bit."""


@dataclass(frozen=True)
class Noise:
    """How far two sets of runs with the same settings and other seeds lie apart."""

    sd: float
    """Over seeds, of the reference and the A/A arm together."""
    floor: float
    """Means of n runs each differ by less than this in 95 of 100 studies."""


@dataclass(frozen=True)
class Results:
    """What a study found, complete for every form of the report."""

    name: str
    question: str
    design: str
    primary: str
    margin: float
    budget: str
    reference: str
    seeds: int
    exploratory: bool
    complete: bool
    arms: tuple[ArmResult, ...]
    effects: tuple[Effect, ...]
    noise: Noise
    detectable: float
    """Smallest true difference that all planned seeds find with 80 % power, by the spread seen so far."""
    cannot_tell: tuple[str, ...]
    samples: tuple[Mapping[str, Any], ...]
    """Some problems with `question`, `answer`, `before` and `after` by arm: text and verdict of seed index 0."""
    settings: Mapping[str, Any]
    """The reference's, by dotted key."""
    versions: Mapping[str, str]
    runs: tuple[Run, ...]


def collect(expanded: Expanded, folder: Path) -> Results:
    """Read every run of a study that is there, and compare."""
    study = expanded.study
    runs = [
        read_run(run_folder(folder, arm.name, index), arm, index, study.primary)
        for arm in expanded.arms
        for index in range(study.seeds)
    ]
    by_arm = {arm.name: [run for run in runs if run.arm == arm.name] for arm in expanded.arms}
    effects = compare(expanded, by_arm)
    arms = tuple(_arm_result(arm, by_arm, expanded) for arm in expanded.arms)
    noise = _noise(by_arm[expanded.reference], by_arm[f"{expanded.reference}_again"], study.primary)
    spreads = [e.difference.sd for e in effects if e.kind == "switch" and e.difference.n > 1 and e.difference.sd > 0]
    spread = math.sqrt(fmean(s * s for s in spreads)) if spreads else study.spread
    detectable = statistics.detectable_effect(study.seeds, spread, max(1, expanded.tested))
    reference = as_run(expanded.arm(expanded.reference), by_arm[expanded.reference], folder)
    versions = _versions(runs, folder)
    tokens = f" ({study.budget.tokens:,} sampled tokens a run)" if study.budget.tokens else ""
    return Results(
        name=expanded.name,
        question=study.question,
        design=study.design,
        primary=study.primary,
        margin=study.margin,
        budget=f"equal {study.budget.equal}{tokens}",
        reference=expanded.reference,
        seeds=study.seeds,
        exploratory=min((e.difference.n for e in effects if e.difference.n), default=study.seeds) < FEWEST_SEEDS,
        complete=all(run.counts for run in runs),
        arms=arms,
        effects=effects,
        noise=noise,
        detectable=detectable,
        cannot_tell=_cannot_tell(
            expanded, reference, arms, effects, runs, detectable, read_declaration(folder), versions
        ),
        samples=_samples(expanded, folder),
        settings=settings_of(reference),
        versions={key: " or ".join(values) for key, values in versions.items()},
        runs=tuple(runs),
    )


def as_run(arm: Arm, runs: Sequence[Run], folder: Path) -> TrainConfig:
    """An arm's settings with the numbers that its first result was made with where they say `auto`."""
    made = next((read_chosen(folder / run.folder) for run in runs if run.counts), {})
    return with_chosen(arm.config, made)


def compare(expanded: Expanded, runs: Mapping[str, Sequence[Run]]) -> tuple[Effect, ...]:
    """Every comparison with its verdict; Holm's method over all switches, of which one without a result has p = 1."""
    primary, margin = expanded.study.primary, expanded.study.margin
    found = []
    for comparison in expanded.comparisons:
        seeds = [i for i in range(expanded.study.seeds) if all(runs[arm][i].counts for arm in comparison.weights)]
        pairs = [math.fsum(w * value(runs[arm][i], primary) for arm, w in comparison.weights.items()) for i in seeds]
        most = statistics.attainable(comparison.weights)
        found.append((comparison, seeds, pairs, statistics.within(statistics.interval(pairs), -most, most)))
    tested = [difference.p for comparison, _, _, difference in found if comparison.kind in ("switch", "interaction")]
    adjusted = iter(statistics.holm(tested))
    effects = []
    for comparison, seeds, pairs, difference in found:
        held = comparison.kind in ("switch", "interaction")
        p = next(adjusted) if held else difference.p
        twins = _identical(comparison, runs, seeds)
        same = 0 < twins == len(seeds)
        over_problems = _over_problems(comparison, runs, seeds)
        if same:  # on every seed and every problem, whichever they are
            difference = replace(difference, low=0.0, high=0.0)
            over_problems = {**over_problems, "low": 0.0, "high": 0.0}
        effects.append(
            Effect(
                name=comparison.name,
                kind=comparison.kind,
                weights=comparison.weights,
                seeds=seeds,
                pairs=pairs,
                difference=difference,
                adjusted_p=p,
                judgement=statistics.judge(
                    difference,
                    p,
                    margin,
                    len(tested) if held else 1,
                    identical=same,
                    diverged=sum(runs[arm][i].status == "diverged" for arm in comparison.weights for i in seeds),
                ),
                probability_of_improvement=_improvement(comparison, runs, seeds, primary),
                problems=over_problems,
                identical=twins,
            )
        )
    return tuple(effects)


def _two(comparison: Comparison) -> tuple[str, str] | None:
    """The arm and its reference, where there are only these."""
    if sorted(comparison.weights.values()) != [-1.0, 1.0]:
        return None
    (arm,) = (name for name, weight in comparison.weights.items() if weight > 0)
    (other,) = (name for name, weight in comparison.weights.items() if weight < 0)
    return arm, other


def _identical(comparison: Comparison, runs: Mapping[str, Sequence[Run]], seeds: Sequence[int]) -> int:
    two = _two(comparison)
    if two is None:
        return 0
    ours, theirs = (runs[name] for name in two)
    return sum(bool(ours[i].weights) and ours[i].weights == theirs[i].weights for i in seeds)


def _improvement(
    comparison: Comparison, runs: Mapping[str, Sequence[Run]], seeds: Sequence[int], primary: str
) -> float:
    two = _two(comparison)
    if two is None:
        return math.nan
    ours, theirs = ([value(runs[name][i], primary) for i in seeds] for name in two)
    return statistics.probability_of_improvement(ours, theirs)


def _over_problems(
    comparison: Comparison, runs: Mapping[str, Sequence[Run]], seeds: Sequence[int]
) -> Mapping[str, float]:
    """The difference by problem, averaged over the seeds whose runs all finished."""
    finished = [i for i in seeds if all(runs[arm][i].status == "finished" for arm in comparison.weights)]
    if not finished:
        return {}
    zero: dict[str, float] = {}
    sums: dict[str, float] = {}
    reach = math.fsum(weight for weight in comparison.weights.values() if weight > 0)
    for arm, weight in comparison.weights.items():
        for i in finished:
            for problem, share in runs[arm][i].items.items():
                zero[problem] = 0.0
                sums[problem] = sums.get(problem, 0.0) + weight * share / len(finished)
    return paired_difference(zero, sums, reach=reach)


def _arm_result(arm: Arm, by_arm: Mapping[str, Sequence[Run]], expanded: Expanded) -> ArmResult:
    primary, runs = expanded.study.primary, by_arm[arm.name]
    finished = [run for run in runs if run.status == "finished"]
    counted = [run for run in runs if run.counts]
    measures = {key: fmean(run.after[key] for run in finished) for key in (finished[0].after if finished else ())}
    if counted:
        measures |= {
            "tokens": fmean(run.tokens for run in counted),
            "seconds": fmean(run.seconds for run in counted),
            "steps": fmean(run.steps for run in counted),
        }
        shares = [x for run in counted for x in run.curves["no_signal"] if math.isfinite(x)]
        measures["no_signal"] = fmean(shares) if shares else math.nan
    return ArmResult(
        name=arm.name,
        overrides=arm.overrides,
        remarks=(*((remark.kind, remark.text) for remark in arm.remarks), *_found(arm, by_arm, expanded)),
        planned=len(runs),
        finished=len(finished),
        diverged=sum(run.status == "diverged" for run in runs),
        failed=sum(run.status == "failed" for run in runs),
        primary=statistics.within(statistics.interval([value(run, primary) for run in counted]), 0.0, 1.0),
        measures=measures,
    )


def _found(arm: Arm, by_arm: Mapping[str, Sequence[Run]], expanded: Expanded) -> list[tuple[str, str]]:
    """What every finished run says of the settings that the arm changes, unless it was known before.

    Inert is an arm all of whose changed settings are; a part that is adds nothing. A setting that an arm switches off is
    inert where it was in the reference's runs.
    """
    other = expanded.against(arm)
    if arm.again or arm.name == other.name or any(remark.kind == "inert" for remark in arm.remarks):
        return []
    said: dict[str, list[str]] = {}
    for name, attribute in ((arm.name, "inert"), (other.name, "inert"), (arm.name, "confounded")):
        finished = [run for run in by_arm[name] if run.status == "finished"]
        told = [{text.partition(":")[0]: text for text in getattr(run, attribute)} for run in finished]
        always = [text for head, text in told[0].items() if all(head in run for run in told)] if told else []
        said.setdefault(attribute, []).extend(concerning(always, other.config, arm.config))
    idle = list({text.partition(":")[0]: text for text in said["inert"]}.values())
    changed = changed_settings(other.config, arm.config)
    whole = bool(idle) and all(
        any(key.rpartition(".")[2] in text.partition(":")[0] for text in idle) for key in changed
    )
    count = f"in each of its {sum(run.status == 'finished' for run in by_arm[arm.name])} runs, as in the first"
    found = [
        ("inert" if whole else "confounded", f"{count}, {text}" if whole else f"adds nothing here: {text}")
        for text in idle
    ]
    return found + [("confounded", f"{count}, {text}") for text in said["confounded"]]


def _noise(reference: Sequence[Run], again: Sequence[Run], primary: str) -> Noise:
    """Pooled over both arms, whose runs differ in nothing but the seed."""
    groups = [[value(run, primary) for run in runs if run.counts] for runs in (reference, again)]
    groups = [g for g in groups if len(g) > 1]
    if not groups:
        return Noise(math.nan, math.nan)
    freedom = sum(len(g) - 1 for g in groups)
    sd = math.sqrt(sum((len(g) - 1) * float(np.var(g, ddof=1)) for g in groups) / freedom)
    if sd < statistics.NO_SPREAD:  # equal counts say nothing of how far others would lie apart
        return Noise(0.0, math.nan)
    n = min(len(g) for g in groups)
    return Noise(sd, float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * sd * math.sqrt(2 / n))


def _cannot_tell(
    expanded: Expanded,
    config: TrainConfig,
    arms: Sequence[ArmResult],
    effects: Sequence[Effect],
    runs: Sequence[Run],
    detectable: float,
    began: Mapping[str, Any],
    versions: Mapping[str, Sequence[str]],
) -> tuple[str, ...]:
    """What a reader should not conclude, in sentences that hold for this study."""
    study = expanded.study
    found = []
    missing = sum(not run.counts for run in runs)
    if missing:
        found.append(f"{missing} of {len(runs)} runs have no result yet, so every figure may still change.")
    if study.seeds < FEWEST_SEEDS:
        found.append(f"With fewer than {FEWEST_SEEDS} seeds ({study.seeds}) this is exploratory, not evidence.")
    if began and study.seeds > began["seeds"]:
        found.append(
            f"The study began with {began['seeds']} seeds and was given more: where that was decided after looking, "
            "differences are called better or worse more often than in 5 of 100 null studies."
        )
    if math.isfinite(detectable):
        found.append(
            f"A true difference of {100 * detectable:.1f} points is found by 80 of 100 such studies ({study.seeds} seeds, "
            f"{max(1, expanded.tested)} compared, the mean spread of all arms); smaller ones may be missed, and one half "
            "as large usually is."
        )
    differing = [key for key, values in versions.items() if len(values) > 1]
    if differing:
        found.append(f"Runs were not all made alike: {', '.join(differing)} differ, see the versions.")
    again = next(effect for effect in effects if effect.kind == "noise")
    if again.difference.n > 1 and again.difference.p < 1 - CONFIDENCE:
        found.append(
            "The A/A arm differs from its reference beyond what chance does in 95 of 100 studies; trust small differences "
            "less than their intervals say."
        )
    found.append(
        f"One model ({config.model.path}), one task ({config.task.name}), one learning rate ({config.optimizer.learning_rate}) "
        "and one batch size: nothing follows for others, and an arm might do better with settings tuned for it."
    )
    found.append(
        "Intervals over seeds say what another run on these held-out problems would give; intervals over problems say what "
        "other problems would give these runs. Neither covers both."
    )
    high = [arm.name for arm in arms if arm.primary.n and arm.primary.mean > CEILING]
    if high:
        found.append(f"Near the ceiling of the measure nothing can differ much: {', '.join(high)} above {CEILING:.0%}.")
    reference = next(arm for arm in arms if arm.name == expanded.reference)
    own = reference.measures.get("tokens", 0.0)
    dear = [a for a in arms if own and not 0.9 < a.measures.get("tokens", own) / own < 1.1]
    if dear and study.budget.equal == "steps":
        costs = ", ".join(f"{a.name} {a.measures['tokens'] / own:.2f} times" for a in dear)
        found.append(f"Arms are compared at equal steps, not at equal cost: of the reference's tokens, {costs}.")
    spent = [run for run in runs if study.budget.tokens and run.counts]
    short = {run.arm for run in spent if run.steps == config.steps and run.tokens < 0.9 * study.budget.tokens}
    if short:
        found.append(f"Steps ended before the token budget did in {', '.join(sorted(short))}; raise steps.")
    elif spent:
        shares, steps = [run.tokens / study.budget.tokens for run in spent], [run.steps for run in spent]
        found.append(
            f"Runs end with the step nearest to the token budget: at {100 * min(shares):.0f} to {100 * max(shares):.0f} % of it, "
            f"after {min(steps)} to {max(steps)} steps."
        )
    diverged = sum(run.status == "diverged" for run in runs)
    if diverged:
        found.append(f"{diverged} runs diverged and count as no answer right.")
    return tuple(found)


def _samples(expanded: Expanded, folder: Path) -> tuple[Mapping[str, Any], ...]:
    """The same problems across arms, before and after, of the first seed: those on which arms disagree come first."""
    split, mode = expanded.study.primary.split("/")
    after: dict[str, dict[str, Any]] = {}
    before: dict[str, Any] = {}
    for arm in expanded.arms:
        files = sorted((run_folder(folder, arm.name, 0) / "evals").glob("step-*.jsonl"))
        state = read_json(run_folder(folder, arm.name, 0) / "run.json")
        if arm.again or len(files) < 2 or state.get("status") != "finished":
            continue
        for rows, target in ((files[-1], after.setdefault(arm.name, {})), (files[0], before)):
            for row in read_json_lines(rows):
                if (row["split"], row["mode"], row["sample"]) == (split, mode, 0):
                    target[row["id"]] = row
    if not after:
        return ()

    def disagreement(problem: str) -> float:
        right = [rows[problem]["strict"] for rows in after.values() if problem in rows]
        return abs(fmean(right) - 0.5)

    chosen = sorted(before, key=lambda problem: (disagreement(problem), problem))[:SHOWN_PROBLEMS]

    def shown(row: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": row["text"], "right": row["strict"], "truncated": row["finish"] == "length"}

    return tuple(
        {
            "id": problem,
            "question": before[problem].get("question", ""),
            "answer": before[problem]["answer"],
            "before": shown(before[problem]),
            "after": {arm: shown(rows[problem]) for arm, rows in after.items() if problem in rows},
        }
        for problem in chosen
    )


def _versions(runs: Sequence[Run], folder: Path) -> dict[str, list[str]]:
    """Every value that a run recorded, by what it is of."""
    keys = ("slimrl", "torch", "transformers", "python", "device", "dtype", "threads", "parameters")
    states = [read_json(folder / run.folder / "run.json") for run in runs if run.counts]
    return {
        key: sorted({str(state[key]) for state in states if key in state})
        for key in keys
        if any(key in s for s in states)
    }
