"""The limits of a study: sentences on what a reader should not conclude from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slimrl.config.schema import TrainConfig
from slimrl.statistics import CONFIDENCE, FEWEST_SEEDS
from slimrl.study.compare import ArmResult, Effect
from slimrl.study.runs import Run
from slimrl.study.spec import Budget, Expanded
from slimrl.text import counted, percent

CEILING = 0.97


def evidence(expanded: Expanded, runs: Sequence[Run], declared: Mapping[str, Any], detectable: float) -> list[str]:
    """Too few runs, runs that were added after the study was declared, and differences that are too small to be found."""
    seeds, found = expanded.study.seeds, []
    if missing := sum(not run.counts for run in runs):
        found.append(f"{missing} of {len(runs)} runs have no result yet, so every figure may still change.")
    if seeds < FEWEST_SEEDS:
        found.append(f"With fewer than {FEWEST_SEEDS} seeds ({seeds}) this is exploratory, not evidence.")
    if declared and seeds > declared["seeds"]:
        found.append(
            f"The study began with {declared['seeds']} seeds and was given more: where that was decided after looking, "
            "differences are called better or worse more often than in 5 of 100 null studies."
        )
    if math.isfinite(detectable):
        found.append(
            f"A true difference of {percent(detectable)} points is found by 80 of 100 such studies ({seeds} seeds, "
            f"{expanded.tested} compared, the mean spread of all arms); smaller ones may be missed, and one half as large "
            "usually is."
        )
    return found


def conditions(versions: Mapping[str, Sequence[str]], effects: Sequence[Effect]) -> list[str]:
    """Differences between runs that the design does not explain."""
    found = []
    if differing := [key for key, values in versions.items() if len(values) > 1]:
        found.append(f"Runs were not all made alike: {', '.join(differing)} differ, see the versions.")
    repeat = next(effect.difference for effect in effects if effect.kind == "noise")
    if repeat.n > 1 and repeat.p < 1 - CONFIDENCE:
        found.append(
            "The A/A arm differs from its reference beyond what chance does in 95 of 100 studies; trust small differences "
            "less than their intervals say."
        )
    return found


def scope(config: TrainConfig, arms: Sequence[ArmResult]) -> list[str]:
    """Settings that were not varied, with those of the reference `config`, and arms that can hardly get better."""
    found = [
        f"One model ({config.model.path}), one task ({config.task.name}), one learning rate ({config.optimizer.learning_rate}) "
        "and one batch size: nothing follows for others, and an arm might do better with settings tuned for it.",
        "Intervals over seeds say what another run on these held-out problems would give; intervals over problems say what "
        "other problems would give these runs. Neither covers both.",
    ]
    if high := [arm.name for arm in arms if arm.primary.n and arm.primary.mean > CEILING]:
        found.append(f"Near the ceiling of the measure nothing can differ much: {', '.join(high)} above {CEILING:.0%}.")
    return found


def unequal_cost(budget: Budget, reference: ArmResult, arms: Sequence[ArmResult]) -> list[str]:
    """Arms that sampled more or fewer tokens than the reference, where only steps are equal."""
    own = reference.measures.get("tokens", 0.0)
    if budget.equal != "steps" or not own:
        return []
    relative = {arm.name: arm.measures.get("tokens", own) / own for arm in arms}
    costs = ", ".join(f"{name} {times:.2f} times" for name, times in relative.items() if not 0.9 < times < 1.1)
    sentence = f"Arms are compared at equal steps, not at equal cost: of the reference's tokens, {costs}."
    return [sentence] if costs else []


def token_budget(budget: Budget, steps: int, runs: Sequence[Run]) -> list[str]:
    """The share of the token budget that runs of at most `steps` steps used."""
    spent = [run for run in runs if budget.tokens and run.counts]
    if not spent:
        return []
    short = {run.arm for run in spent if run.steps == steps and run.tokens < 0.9 * budget.tokens}
    if short:
        return [f"Steps ended before the token budget did in {', '.join(sorted(short))}; raise steps."]
    shares, taken = [run.tokens / budget.tokens for run in spent], [run.steps for run in spent]
    return [
        f"Runs end with the step nearest to the token budget: at {100 * min(shares):.0f} to {100 * max(shares):.0f} % of it, "
        f"after {min(taken)} to {max(taken)} steps."
    ]


def divergence(runs: Sequence[Run]) -> list[str]:
    diverged = sum(run.status == "diverged" for run in runs)
    return [f"No answer counts as right of {counted(diverged, 'run')} that diverged."] if diverged else []
