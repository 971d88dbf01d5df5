"""Notable sentences on the course of a run, each with the test behind it.

A training reward that rises while held-out accuracy does not is the sign of a reward that pays for something else, of problems
known by heart, or of too few held-out problems. It needs to be said by more than two numbers that differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from slimrl.results import Comparison
from slimrl.statistics import CONFIDENCE, NO_SPREAD, Interval, welch
from slimrl.text import counted, signed, signed_points

FEWEST_STEPS = 4
"""In a third of a run; below, one odd batch decides."""
FEWEST_PROBLEMS = 30
"""Held out; fewer could hardly show any rise of accuracy."""
UNSCORABLE = 0.1
"""Share of unscorable completions from which they are named as the cause of missing differences."""
FAILING, FAILING_STEPS, LOOKED_AT = 0.9, 3, 50
"""Share of failing calls of tools, and steps with calls, from which they are named; and the last steps that are looked at."""
HEADS = {
    "reward": "training reward up, held-out accuracy not",
    "signal": "no signal",
    "gap": "gap of the sampler",
    "calls": "failing calls",
}
"""The beginning of each sentence, before a colon."""


def findings(
    history: Sequence[Mapping[str, float]],
    difference: Comparison,
    *,
    shuffled: bool,
    grouped: bool,
    taught: bool,
    other_sampler: bool = False,
) -> list[str]:
    """Sentences on a run, from the metrics of its steps and the paired changes of its held-out measures.

    `shuffled` says that every step asks a random choice of problems; where their difficulty follows a plan, rewards of different
    steps cannot be compared. `grouped` says that advantages are differences within groups alone. `taught` says that something
    else than rewards teaches, a teacher or a KL penalty. `other_sampler` says that not the trained module sampled.
    """
    found = [_no_signal(history, taught)] if grouped else []
    if shuffled:
        found.append(_reward_alone(history, difference.get("test", {}).get("sampled", {})))
    if other_sampler:
        found.append(_sampler_gap(history))
    if failing := failing_calls(history):
        found.append(f"{HEADS['calls']}: {'; '.join(failing)}")
    return [sentence for sentence in found if sentence]


def failing_calls(history: Sequence[Mapping[str, float]]) -> list[str]:
    """A sentence on each tool that failed nearly always in the last steps with calls, and on calls that were malformed so."""
    last = f"at least {FAILING:.0%} of its calls in the last {FAILING_STEPS} steps that had some"
    seen = "; the turns in rollouts/ (log.rollouts) have the errors"
    found, history = [], history[-LOOKED_AT:]
    for key in sorted({key for row in history for key in row if key.startswith("tools/")}):
        _, *tool, kind = key.split("/")
        shares = [row[key] for row in history if key in row][-FAILING_STEPS:]
        if len(shares) < FAILING_STEPS or min(shares) < FAILING:
            continue
        if kind == "failed" and tool:
            found.append(
                f"the tool {tool[0]} failed in {last} ({key}){seen}; correct it, or let it answer wrong arguments with words"
            )
        if kind == "malformed":
            found.append(
                f"at least {FAILING:.0%} of the calls in the last {FAILING_STEPS} steps that had some were malformed ({key})"
                f"{seen}; warm-start with slimrl sft on episodes with calls"
            )
    return found


def reward_rise(history: Sequence[Mapping[str, float]]) -> Interval | None:
    """The last third's mean training reward less the first third's, over everything sampled, before any selection.

    Welch's interval over steps, of which each has problems of its own. A trend within a third makes it wider, so a rise is missed
    rather than invented. None for too few steps. Steps without a spread give no interval: where those of the last third are all
    above those of the first, p is then that of the exact permutation test, at most 1 in 35.
    """
    rewards = [row["reward"] for row in history if math.isfinite(row.get("reward", math.nan))]
    third = len(rewards) // 3
    if third < FEWEST_STEPS:
        return None
    first, last = rewards[:third], rewards[-third:]
    rise = welch(first, last)
    if math.isfinite(rise.low) or min(last) - max(first) < NO_SPREAD:
        return rise
    return replace(rise, p=2 / math.comb(2 * third, third))


def _reward_alone(history: Sequence[Mapping[str, float]], change: Mapping[str, float]) -> str:
    """The sentence where the reward's rise is shown and that of held-out accuracy is not."""
    rise = reward_rise(history)
    if rise is None or rise.mean <= 0 or rise.p >= 1 - CONFIDENCE or not change or change["low"] > 0:
        return ""
    if change["n"] < FEWEST_PROBLEMS and change["high"] >= 0:
        return ""
    last = "fell" if change["high"] < 0 else "is not shown to have risen"
    shown = f"[{rise.low:.3g}, {rise.high:.3g}]" if math.isfinite(rise.low) else f"(p = {rise.p:.2g})"
    held_out = f"{signed_points(change['change'])} [{signed(change['low'])}, {signed(change['high'])}]"
    return (
        f"{HEADS['reward']}: from the first to the last third of the steps the reward rose by {rise.mean:.3g} "
        f"{shown}, and held-out accuracy {last} "
        f"({held_out} on {counted(int(change['n']), 'problem')}); "
        "see whether the reward pays for something else, and measure on more problems"
    )


def _no_signal(history: Sequence[Mapping[str, float]], taught: bool) -> str:
    """The sentence where no group of the whole run had two different rewards."""
    equal = [row["frac_reward_zero_std"] for row in history if "frac_reward_zero_std" in row]
    if not equal or float(np.min(equal)) < 1.0:
        return ""
    groups = int(sum(row.get("sampling/groups", 0) for row in history))
    rest = "only the KL penalty moved weights" if taught else "nothing was learnt"
    way_out = "warm-start with slimrl sft, or choose easier or harder problems or a larger rollout.group_size"
    lost = float(np.mean([row.get("unscorable", 0.0) for row in history]))
    if lost >= UNSCORABLE:
        way_out = f"{lost:.0%} of the completions were unscorable, so see first why their rewards failed"
    return f"{HEADS['signal']}: in none of {counted(groups, 'group')} did two rewards differ, so {rest}; {way_out}"


def _sampler_gap(history: Sequence[Mapping[str, float]]) -> str:
    """The sentence on the log-probabilities of a sampler that has weights of its own."""
    key = "sampling/sampling_logp_difference"
    rows = [row for row in history if f"{key}/mean" in row]
    if not rows:
        return ""
    mean, most = float(np.mean([row[f"{key}/mean"] for row in rows])), max(row[f"{key}/max"] for row in rows)
    return (
        f"{HEADS['gap']}: its log-probabilities of drawn tokens differ from the trainer's by {mean:.1e} nats on average, and by "
        f"at most {most:.1e} ({key})"
    )
