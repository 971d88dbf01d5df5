"""Metrics of the groups of a step. Keys follow TRL where the meaning is equal; docs/metrics.md explains every one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from slimrl.algorithm.groups import Collected, has_signal
from slimrl.records import Group, policy_turns
from slimrl.terms import Credit, Signal

Metrics = dict[str, float]


def describe(collected: Collected, signal: Signal, credit: Credit = "episode") -> Metrics:
    """Metrics of everything sampled for a step, before selection, and what selection did."""
    groups = collected.sampled
    metrics: Metrics = {
        "sampling/groups": len(groups),
        "sampling/trained_groups": len(collected.groups),
        "sampling/surplus_groups": len(collected.surplus),
        "sampling/fell_back": float(collected.fell_back),
    }
    if groups:
        metrics |= _rewards(groups) | _lengths(groups) | _signals(groups, signal, credit) | _difficulty(groups)
    if collected.groups:
        rewards = [r.reward for g in collected.groups for r in g.rollouts if not r.unscorable]
        metrics["train/reward"] = float(np.mean(rewards)) if rewards else float("nan")
        metrics["train/accuracy"] = float(np.mean([r.correct for g in collected.groups for r in g.rollouts]))
    return metrics


REASON, REASONS = 100, 50
"""Characters of a reason, and reasons, that are told apart."""


def reasons(told: Iterable[str]) -> Counter[str]:
    """Number of completions by the reason why they lack a reward or a score; an empty text is none."""
    found = Counter(reason[:REASON] for reason in told if reason)
    return Counter(dict(found.most_common(REASONS)))


def is_finite(group: Group) -> bool:
    """True where every number in a group is finite."""
    return all(
        math.isfinite(number)
        for r in group.rollouts
        for number in (r.reward, *r.scores.values(), *r.completion.logprobs)
    )


def _rewards(groups: Sequence[Group]) -> Metrics:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored = [rollout for rollout in rollouts if not rollout.unscorable]
    reasons = Counter(rollout.unscorable for rollout in rollouts if rollout.unscorable)
    metrics: Metrics = {
        "accuracy": float(np.mean([rollout.correct for rollout in rollouts])),
        "unscorable": sum(reasons.values()) / len(rollouts),
    }
    if scored:
        metrics["reward"] = float(np.mean([rollout.reward for rollout in scored]))
        spreads = [np.std(rewards, ddof=1) for group in groups if len(rewards := _scored(group)) > 1]
        metrics["reward_std"] = float(np.mean(spreads)) if spreads else 0.0
    for name in dict.fromkeys(name for rollout in rollouts for name in rollout.scores):
        values = [rollout.scores[name] for rollout in rollouts if name in rollout.scores]
        metrics[f"rewards/{name}/mean"] = float(np.mean(values))
    if lost := sum(bool(rollout.unmeasured) for rollout in rollouts):
        metrics["unmeasured"] = lost / len(rollouts)
    for name in sorted({name for group in groups for name in group.metrics}):
        metrics[f"logged/{name}"] = float(np.mean([x for group in groups for x in group.metrics.get(name, ())]))
    return metrics


def _scored(group: Group) -> list[float]:
    return [rollout.reward for rollout in group.rollouts if not rollout.unscorable]


def _lengths(groups: Sequence[Group]) -> Metrics:
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    lengths = [completion.drawn for completion in completions]
    return {
        "completions/mean_length": float(np.mean(lengths)),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": float(np.mean([completion.finish == "length" for completion in completions])),
        **_turns(groups),
        **_calls(groups),
    }


def _turns(groups: Sequence[Group]) -> Metrics:
    """Of episodes: the mean number of the policy's turns and of the tokens that the environment wrote, and of the turns that have
    a reward its mean.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    turns = [policy_turns(rollout.turns) for rollout in rollouts]
    given = [sum(rollout.completion.given) for rollout in rollouts]
    if not any(turns):
        return {}
    paid = [reward for rollout in rollouts for reward in rollout.turn_rewards if reward is not None]
    means: Metrics = {"turns/mean": float(np.mean(turns)), "turns/given_tokens": float(np.mean(given))}
    return means | ({"turns/reward": float(np.mean(paid))} if paid else {})


def _calls(groups: Sequence[Group]) -> Metrics:
    """Of episodes whose tools are called for the environment: calls, and the shares that were answered with an error."""
    episodes = [r.calls for group in groups for r in group.rollouts if r.calls is not None]
    if not episodes:
        return {}
    calls = [call for episode in episodes for call in episode]
    metrics: Metrics = {"tools/calls": len(calls) / len(episodes)}
    if calls:
        metrics["tools/failed"] = float(np.mean([bool(call.error) for call in calls]))
        metrics["tools/malformed"] = float(np.mean([not call.tool for call in calls]))
    for tool in sorted({call.tool for call in calls if call.tool}):
        metrics[f"tools/{tool}/failed"] = float(np.mean([bool(call.error) for call in calls if call.tool == tool]))
    return metrics


def _difficulty(groups: Sequence[Group]) -> Metrics:
    """Mean, and the share of groups at each whole level, where problems have a difficulty."""
    levels = [group.problem.difficulty for group in groups]
    if not any(levels):
        return {}
    counted = Counter(round(level) for level in levels)
    shares = {f"difficulty/{level}": counted[level] / len(levels) for level in sorted(counted)}
    return {"difficulty/mean": float(np.mean(levels)), **shares}


def _signals(groups: Sequence[Group], signal: Signal, credit: Credit) -> Metrics:
    tokens = [sum(r.completion.drawn for r in g.rollouts) for g in groups]
    useful = sum(n for n, g in zip(tokens, groups, strict=True) if has_signal(g, signal, credit))
    all_right = [all(r.correct for r in g.rollouts) for g in groups]
    all_wrong = [not any(r.correct for r in g.rollouts) for g in groups]
    return {
        "frac_reward_zero_std": float(np.mean([not has_signal(g, "reward", credit) for g in groups])),
        "sampling/no_signal": float(np.mean([not has_signal(g, signal, credit) for g in groups])),
        **({"sampling/tokens_per_useful_token": sum(tokens) / useful} if useful else {}),
        "sampling/all_right": float(np.mean(all_right)),
        "sampling/all_wrong": float(np.mean(all_wrong)),
    }
