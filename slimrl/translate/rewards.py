"""Reward functions by the names that TRL and open-r1 give them."""

from __future__ import annotations

from pathlib import Path

from slimrl.translate.source import RewardName, Source
from slimrl.translate.translation import Left, Setting

CORRECT = ("accuracy_reward", "reasoning_accuracy_reward", "accuracy")
OVERLONG = ("get_soft_overlong_punishment", "soft_overlong_punishment")
OVERLONG_BUFFER = 256  # of TRL's command line


def reward_settings(source: Source, weights: object, max_new_tokens: object) -> tuple[dict[str, Setting], list[Left]]:
    """The rewards that SlimRL has too, with their weights, and how the others become functions of one's own."""
    found: dict[str, Setting] = {}
    left = []
    listed = (
        weights if isinstance(weights, list) and len(weights) == len(source.rewards) else [1.0] * len(source.rewards)
    )
    if weights is not None and listed is not weights:
        left.append(
            Left("reward_weights", str(weights), "not one number for each function of reward_funcs; 1 is written")
        )
    for reward, weight in zip(source.rewards, listed, strict=True):
        weight = float(weight) if isinstance(weight, int | float) and not isinstance(weight, bool) else 1.0
        if reward.name in CORRECT and not reward.is_local:
            times = ", times its reward_weights" if listed is weights else ""
            found["rewards.correct"] = Setting(weight, f"{reward.name} pays 1 for a right answer{times}")
        elif reward.name in OVERLONG and not reward.is_local:
            found |= _overlong(reward, weight)
            left += _other_limits(reward, max_new_tokens)
        else:
            left.append(_own(source, reward, weight))
    if "rewards.correct" not in found:
        if source.rewards:
            reason = "no reward of the file has an equivalent; replace it by your functions, see below"
        else:
            reason = "the file names no reward function: 1 for a right answer"
        found["rewards.correct"] = Setting(1.0, reason)
    return found, left


def _overlong(reward: RewardName, weight: float) -> dict[str, Setting]:
    buffer = reward.arguments.get("soft_punish_cache")
    watched = (
        {"rewards.watched": Setting(["soft_overlong"], "a weight of 0 measures without paying")} if not weight else {}
    )
    return {
        **watched,
        "rewards.soft_overlong": Setting(weight, f"{reward.name} pays 0 to -1"),
        "rewards.overlong_buffer": Setting(buffer or OVERLONG_BUFFER, "soft_punish_cache"),
    }


def _other_limits(reward: RewardName, max_new_tokens: object) -> list[Left]:
    """The punishment where it begins and ends elsewhere than here, which is at rollout.max_new_tokens."""
    limit, buffer = reward.arguments.get("max_completion_len"), reward.arguments.get("soft_punish_cache")
    buffer = buffer if isinstance(buffer, int) else OVERLONG_BUFFER
    if limit in (None, max_new_tokens):
        return []
    there = f"from {limit - buffer} to {limit} tokens" if isinstance(limit, int) else f"up to {limit} tokens"
    here = f"from {max_new_tokens - buffer} to {max_new_tokens}" if isinstance(max_new_tokens, int) else "to the last"
    reason = f"it falls from 0 to -1 {there} there, and {here} here; rollout.max_new_tokens={limit} makes both the same"
    return [Left("reward_funcs", reward.name, reason)]


def _own(source: Source, reward: RewardName, weight: float) -> Left:
    """A function that becomes one of rewards.custom: its signature is the same, its bounds are needed."""
    name = reward.name.rpartition(".")[2]
    entry = f"rewards.custom: {{rewards.py:{name}: {{weight: {weight:g}, low: LEAST, high: MOST}}}}"
    if "/" in reward.name:
        return Left("reward_funcs", reward.name, "a model's verdict can not be verified; write a function of your own")
    how = (
        "copy it into rewards.py beside this file"
        if reward.is_local
        else "write or copy it into rewards.py beside this file"
    )
    note = f" ({Path(source.file).name} is not imported, since that would train)" if reward.is_local else ""
    return Left(
        "reward_funcs", reward.name, f"{how}{note}; its signature and its reward_weights stay the same: {entry}"
    )
