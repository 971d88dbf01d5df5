"""The results of a study: one frozen record, from which every form of the report is written.

It is made from the directories of the runs alone, at any time, also while runs are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from slimrl.config.files import settings_of, with_chosen
from slimrl.preflight.facts import changed_settings
from slimrl.runs.reader import read_answers, read_chosen, read_state, read_summaries
from slimrl.statistics import FEWEST_SEEDS, detectable_effect
from slimrl.study import limits
from slimrl.study.compare import ArmResult, Effect, Noise, arm_result, compare, noise, spread_of_differences
from slimrl.study.declaration import read_declaration
from slimrl.study.primary import read_primary
from slimrl.study.runs import Run, planned_runs, read_run, settled
from slimrl.study.spec import Expanded

SHOWN_PROBLEMS = 4
VERSIONS = ("slimrl", "torch", "transformers", "python", "device", "dtype", "threads", "parameters")
"""Keys of run.json that may differ between runs only by accident."""


@dataclass(frozen=True)
class Results:
    """The findings of a study, complete for every form of the report."""

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
    """Smallest true difference that all planned seeds find with 80 % power, by the spread so far."""
    cannot_tell: tuple[str, ...]
    samples: tuple[Mapping[str, Any], ...]
    """Some problems with `question`, `answer`, `before` and `after` by arm: text and verdict of the first seed."""
    settings: Mapping[str, Any]
    """The reference's, by dotted key."""
    versions: Mapping[str, str]
    runs: tuple[Run, ...]


def collect(expanded: Expanded, folder: Path) -> Results:
    """Read every run of a study that is there, and compare."""
    study = expanded.study
    by_arm: dict[str, list[Run]] = {arm.name: [] for arm in expanded.arms}
    for run in planned_runs(expanded, folder):
        by_arm[run.arm.name].append(read_run(run, study.primary))
    by_arm = settled(by_arm, study.primary)
    runs = [run for own in by_arm.values() for run in own]
    effects = compare(expanded, by_arm)
    arms = tuple(arm_result(arm, by_arm, expanded) for arm in expanded.arms)
    spread, _ = spread_of_differences(effects, study.spread)
    detectable = detectable_effect(study.seeds, spread, expanded.tested)
    chosen = next((read_chosen(folder / run.folder) for run in by_arm[expanded.reference] if run.counts), {})
    reference = with_chosen(expanded.arm(expanded.reference).config, chosen)
    states = [read_state(folder / run.folder) for run in runs if run.counts]
    versions = {key: sorted({str(state[key]) for state in states if key in state}) for key in VERSIONS}
    versions = {key: values for key, values in versions.items() if values}
    tokens = f" ({study.budget.tokens:,} sampled tokens a run)" if study.budget.tokens else ""
    own = expanded.arm(expanded.reference).config
    changed = {key for arm in expanded.arms for key in changed_settings(own, arm.config)}
    is_share = read_primary(study.primary).is_share
    cannot_tell = (
        *limits.evidence(expanded, runs, read_declaration(folder), detectable),
        *limits.conditions(versions, changed, effects),
        *limits.scope(reference, changed, arms, is_share=is_share),
        *limits.unequal_cost(study.budget, next(arm for arm in arms if arm.name == expanded.reference), arms),
        *limits.token_budget(study.budget, {arm.name: arm.config.steps for arm in expanded.arms}, runs),
        *limits.divergence(runs, is_share=is_share),
    )
    return Results(
        name=expanded.name,
        question=study.question,
        design=study.design,
        primary=study.primary,
        margin=study.margin,
        budget=f"equal {study.budget.equal}{tokens}",
        reference=expanded.reference,
        seeds=study.seeds,
        exploratory=fewest_seeds(effects, study.seeds) < FEWEST_SEEDS,
        complete=all(run.counts for run in runs),
        arms=arms,
        effects=effects,
        noise=noise(by_arm[expanded.reference], by_arm[expanded.repeat], study.primary),
        detectable=detectable,
        cannot_tell=cannot_tell,
        samples=_samples(expanded, by_arm, folder),
        settings=settings_of(reference),
        versions={key: " or ".join(values) for key, values in versions.items()},
        runs=tuple(runs),
    )


def fewest_seeds(effects: Sequence[Effect], planned: int) -> int:
    """The smallest number of seeds on which a difference rests; those planned where none does yet."""
    return min((effect.difference.n for effect in effects if effect.difference.n), default=planned)


def _samples(expanded: Expanded, by_arm: Mapping[str, Sequence[Run]], folder: Path) -> tuple[Mapping[str, Any], ...]:
    """The same problems across arms, before and after training, of the first seed; those on which arms disagree first."""
    before: dict[str, Any] = {}
    after: dict[str, dict[str, Any]] = {}
    for arm in expanded.arms:
        first = by_arm[arm.name][0]
        steps = list(read_summaries(folder / first.folder))
        if first.status == "finished" and len(steps) > 1 and not arm.is_repeat:
            before |= _answers(folder / first.folder, steps[0], expanded.study.primary)
            after[arm.name] = _answers(folder / first.folder, steps[-1], expanded.study.primary)

    def disagreement(problem: str) -> float:
        right = [rows[problem]["strict"] for rows in after.values() if problem in rows]
        return abs(fmean(right) - 0.5)

    def shown(row: Mapping[str, Any]) -> dict[str, Any]:
        found = {"text": row["text"], "right": row["strict"], "truncated": row["finish"] == "length"}
        return found | {key: row[key] for key in ("said", "turn_rewards") if key in row}

    return tuple(
        {
            "id": problem,
            "question": before[problem].get("question", ""),
            "answer": before[problem]["answer"],
            "before": shown(before[problem]),
            "after": {arm: shown(rows[problem]) for arm, rows in after.items() if problem in rows},
        }
        for problem in sorted(before, key=lambda problem: (disagreement(problem), problem))[:SHOWN_PROBLEMS]
    )


def _answers(run: Path, step: int, primary: str) -> dict[str, dict[str, Any]]:
    """The first answer to each problem of the primary measure, by problem."""
    wanted = read_primary(primary)
    rows = [row for row in read_answers(run, step) if row["sample"] == 0]
    return {row["id"]: row for row in rows if (row["split"], row["mode"]) == (wanted.split, wanted.mode)}
