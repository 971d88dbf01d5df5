"""The calls that judges are asked for, at most and without retries, as a user should know them before the first one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slimrl.config.schema import EvalConfig, TrainConfig
from slimrl.rewards import JUDGED
from slimrl.text import counted

PROBE_PROBLEMS = 16
"""Training problems that are sampled before a run, at most."""
CACHED = "what the cache holds is not asked again"


@dataclass(frozen=True)
class Calls:
    """The calls of a run for one judge."""

    steps: int
    step: int
    """Completions of a step."""
    held_out: int
    """Of all evaluations."""
    before: int
    """Gold answers and the probe, before the first step."""

    @property
    def total(self) -> int:
        return self.steps * self.step + self.held_out + self.before


def calls_of(config: TrainConfig, held_out: int) -> Calls:
    """The calls of a run that evaluates so many held-out problems."""
    rollout, evaluation = config.rollout, config.evaluation
    refill = config.algorithm.dynamic_sampling == "refill"
    groups = math.ceil(rollout.problems * (config.algorithm.refill_budget if refill else 1))
    every = evaluation.every or config.steps
    times = len({0, *range(every, config.steps, every), config.steps})
    return Calls(
        steps=config.steps,
        step=groups * rollout.group_size,
        held_out=times * held_out * (evaluation.samples + evaluation.greedy),
        before=JUDGED + PROBE_PROBLEMS * rollout.group_size,
    )


def judge_notes(config: TrainConfig, held_out: int) -> list[str]:
    """The price of a run's judges; `held_out` problems are evaluated."""
    asked = config.rewards.judges
    if not asked:
        return []
    calls = calls_of(config, held_out)
    return [
        f"judge {' and '.join(asked)}: at most {len(asked) * calls.total:,} calls without retries, {calls.steps:,} steps of "
        f"{calls.step:,} completions, {calls.held_out:,} held out and {calls.before:,} before the first step"
        f"{f', for each of {len(asked)} judges' if len(asked) > 1 else ''}; {CACHED}"
    ]


def measuring_notes(config: EvalConfig, held_out: int) -> list[str]:
    """The price of the judges of an evaluation."""
    asked, evaluation = config.rewards.judges, config.evaluation
    total = len(asked) * held_out * (evaluation.samples + evaluation.greedy)
    return [f"judge {' and '.join(asked)}: at most {total:,} calls, without retries"] if asked else []


def study_calls(configs: Iterable[TrainConfig]) -> Counter[str]:
    """The calls of runs with these settings by judge, where nothing but the settings is known."""
    found: Counter[str] = Counter()
    for config in configs:
        evaluation = config.evaluation
        harder = evaluation.harder_problems if config.task.name == "arithmetic" else 0  # which alone has a harder split
        calls = calls_of(config, evaluation.problems + harder + evaluation.twins)
        found.update(dict.fromkeys(config.rewards.judges, calls.total))
    return found


def study_notes(configs: Sequence[TrainConfig]) -> list[str]:
    """The price of the judges of runs with these settings."""
    return [
        f"judge {name}: at most {calls:,} calls without retries, over "
        f"{counted(sum(name in config.rewards.judges for config in configs), 'run')}; {CACHED}"
        for name, calls in study_calls(configs).items()
    ]
