"""The limits of a study: sentences on what a reader should not conclude from it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
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
    if declared and seeds < declared["seeds"]:
        found.append(
            f"The study was declared with {declared['seeds']} seeds, and only {seeds} are looked at: what holds for some of them "
            "is no result of the study."
        )
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


VARIED_BY = {"dtype": "model.dtype", "parameters": "model.", "device": "model.device"}
"""Facts of a run that arms may differ in by design, and the beginning of the settings that decide them."""


def conditions(versions: Mapping[str, Sequence[str]], changed: Collection[str], effects: Sequence[Effect]) -> list[str]:
    """Differences between runs that the design, in which arms change these settings, does not explain."""
    found = []
    by_design = {fact for fact, start in VARIED_BY.items() if any(key.startswith(start) for key in changed)}
    if differing := [key for key, values in versions.items() if len(values) > 1 and key not in by_design]:
        found.append(f"Runs were not all made alike: {', '.join(differing)} differ, see the versions.")
    repeat = next(effect.difference for effect in effects if effect.kind == "noise")
    if repeat.n > 1 and repeat.p < 1 - CONFIDENCE:
        found.append(
            "The A/A arm differs from its reference beyond what chance does in 95 of 100 studies; trust small differences "
            "less than their intervals say."
        )
    return found


def scope(config: TrainConfig, changed: Collection[str], arms: Sequence[ArmResult], *, is_share: bool) -> list[str]:
    """Settings that no arm `changed`, with those of the reference `config`, and arms that can hardly get better."""
    things = {
        "model.path": f"one model ({config.model.path})",
        "task.name": f"one task ({config.task.name})",
        "optimizer.learning_rate": f"one learning rate ({config.optimizer.learning_rate})",
        "rollout.problems rollout.group_size": "one batch size",
    }
    kept = [thing for keys, thing in things.items() if not {*keys.split()} & {*changed}]
    listed = " and ".join(filter(None, [", ".join(kept[:-1]), *kept[-1:]]))
    found = [
        f"{listed[0].upper()}{listed[1:]}: nothing follows for others, and an arm might do better with settings tuned for it.",
        "Intervals over seeds say what another run on these held-out problems would give; intervals over problems say what "
        "other problems would give these runs. Neither covers both.",
    ]
    if is_share and (high := [arm.name for arm in arms if arm.primary.n and arm.primary.mean > CEILING]):
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


def token_budget(budget: Budget, steps: Mapping[str, int], runs: Sequence[Run]) -> list[str]:
    """The share of the token budget that finished runs used, which take at most so many `steps` by arm."""
    spent = [run for run in runs if budget.tokens and run.status == "finished"]
    if not spent:
        return []
    short = {run.arm for run in spent if run.steps == steps[run.arm] and run.tokens < 0.9 * budget.tokens}
    if short:
        return [f"Steps ended before the token budget did in {', '.join(sorted(short))}; raise steps."]
    shares, taken = [run.tokens / budget.tokens for run in spent], [run.steps for run in spent]
    return [
        f"Runs end with the step nearest to the token budget: at {100 * min(shares):.0f} to {100 * max(shares):.0f} % of it, "
        f"after {min(taken)} to {max(taken)} steps."
    ]


def divergence(runs: Sequence[Run], *, is_share: bool) -> list[str]:
    diverged = sum(run.status == "diverged" for run in runs)
    if not diverged:
        return []
    what = "No answer counts as right" if is_share else "The lowest score of the reward counts as that"
    return [f"{what} of {counted(diverged, 'run')} that diverged."]
