"""Which switches cannot act under some settings, given what was sampled."""

from __future__ import annotations

from dataclasses import dataclass

from slimrl.config import TrainConfig


@dataclass(frozen=True)
class Seen:
    """What has been sampled so far, as far as switches depend on it."""

    completions: int
    truncated: int
    longest: int
    """Tokens of the longest completion."""
    shortest: int
    groups: int
    constant: int
    """Groups without a signal in the sense of algorithm.signal."""
    carried: int = 0
    """Groups trained on that an earlier policy sampled."""


def combine(first: Seen, second: Seen) -> Seen:
    """Both together."""
    lengths = [seen.shortest for seen in (first, second) if seen.completions]
    return Seen(
        completions=first.completions + second.completions,
        truncated=first.truncated + second.truncated,
        longest=max(first.longest, second.longest),
        shortest=min(lengths, default=0),
        groups=first.groups + second.groups,
        constant=first.constant + second.constant,
        carried=first.carried + second.carried,
    )


def inert_switches(config: TrainConfig, seen: Seen) -> list[str]:
    """Switches that cannot have changed anything, given the settings and what was sampled, in plain words."""
    algorithm, rewards = config.algorithm, config.rewards
    found = []
    if config.optimizer.minibatches * config.optimizer.epochs == 1 and not seen.carried:
        carried = (
            " (but for groups that dynamic sampling may carry over)" if algorithm.dynamic_sampling != "off" else ""
        )
        found.append(
            "algorithm.clip_low and clip_high: with one optimizer update per rollout batch every importance ratio is "
            f"exactly 1, so nothing is clipped{carried}; optimizer.minibatches=2 lets them act"
        )
    if algorithm.overlong_filtering and not seen.truncated:
        found.append(f"algorithm.overlong_filtering: none of {seen.completions} completions was truncated")
    threshold = config.rollout.max_new_tokens - rewards.buffer(config.rollout.max_new_tokens)
    if rewards.soft_overlong and seen.longest <= threshold:
        found.append(
            f"rewards.soft_overlong: it begins above {threshold} tokens and the longest of {seen.completions} "
            f"completions has {seen.longest}"
        )
    if algorithm.dynamic_sampling != "off" and not seen.constant:
        found.append(f"algorithm.dynamic_sampling: every one of {seen.groups} groups carries a signal")
    if algorithm.aggregation != "sequence_mean" and seen.completions and seen.longest == seen.shortest:
        found.append(
            f"algorithm.aggregation: all completions have {seen.longest} tokens, so every choice is the same up to scale"
        )
    return found
