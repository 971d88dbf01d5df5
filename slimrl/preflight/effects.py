"""Which switches cannot act under some settings, and which act as something else, given what was sampled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slimrl.config.algorithm import AlgorithmConfig
from slimrl.config.schema import TrainConfig

EARLIEST = 3
"""Steps after which something that held in all of them is worth saying."""


@dataclass(frozen=True)
class Seen:
    """What has been sampled and done so far, as far as switches depend on it."""

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
    steps: int = 0
    """Those with an update."""
    clipped: int = 0
    """Of these, steps in which every update's gradient was scaled down."""
    corrected: int = 0
    """Of these, steps in which an importance correction was not exactly 1."""
    bounded: int = 0
    """Of these, steps in which some importance ratio lay beyond a bound."""
    alphas: frozenset[float] = frozenset()
    """Values of GPG's alpha."""


NOTHING_SEEN = Seen(completions=0, truncated=0, longest=0, shortest=0, groups=0, constant=0)


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
        steps=first.steps + second.steps,
        clipped=first.clipped + second.clipped,
        corrected=first.corrected + second.corrected,
        bounded=first.bounded + second.bounded,
        alphas=first.alphas | second.alphas,
    )


def note_update(seen: Seen, metrics: Mapping[str, float]) -> Seen:
    """What a step's update adds."""
    if "update/clipped" not in metrics:
        return seen
    exact = metrics.get("importance/max", 1.0) == 1.0 == metrics.get("importance/mean", 1.0)
    alpha = {metrics["gpg_alpha"]} if "gpg_alpha" in metrics else set()
    return replace(
        seen,
        steps=seen.steps + 1,
        clipped=seen.clipped + (metrics["update/clipped"] == 1.0),
        corrected=seen.corrected + (not exact),
        bounded=seen.bounded + (metrics.get("clip_ratio/region_mean", 0.0) > 0),
        alphas=seen.alphas | alpha,
    )


def inert_switches(config: TrainConfig, seen: Seen) -> list[str]:
    """Switches that cannot have changed anything, given the settings and what was sampled, in plain words."""
    algorithm, rewards = config.algorithm, config.rewards
    found = []
    if config.optimizer.minibatches * config.optimizer.epochs == 1 and not seen.carried:
        carried = (
            " (but for groups that dynamic sampling may carry over)" if algorithm.dynamic_sampling == "refill" else ""
        )
        found += [
            f"{names}: with one optimizer update per rollout batch every importance ratio is exactly 1, so {so}{carried}; "
            "optimizer.minibatches=2 lets them act"
            for names, so in ratio_switches(algorithm)
        ]
    elif algorithm.surrogate in ("clip", "gspo", "gspo_token") and seen.steps >= EARLIEST and not seen.bounded:
        found.append(f"algorithm.clip_low and clip_high: no importance ratio lay beyond them in {seen.steps} steps")
    if algorithm.baseline == "leave_one_out" and (not _kl_in_loss(algorithm) or algorithm.normalize_components):
        size = config.rollout.group_size
        found.append(
            f"algorithm.baseline: leave_one_out is group_mean times {size}/{size - 1}, a constant factor, which AdamW divides out"
        )
    if algorithm.overlong_filtering and not seen.truncated:
        found.append(f"algorithm.overlong_filtering: none of {seen.completions} completions was truncated")
    if rewards.zero_truncated and not seen.truncated:
        found.append(f"rewards.zero_truncated: none of {seen.completions} completions was truncated")
    if rewards.soft_overlong and seen.longest <= (threshold := _free_tokens(config)):
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
    if algorithm.importance != "off" and seen.steps and not seen.corrected:
        found.append(
            f"algorithm.importance: sampler and trainer gave the same log-probabilities in all of {seen.steps} steps"
        )
    if algorithm.surrogate == "gpg" and seen.steps >= EARLIEST and len(seen.alphas) == 1:
        found.append(
            f"algorithm.surrogate: GPG's alpha was {next(iter(seen.alphas)):g} in all of {seen.steps} steps, and AdamW divides a "
            "constant factor out"
        )
    if algorithm.normalize_components and len(paid_rewards(config)) == 1:
        found.append(
            f"algorithm.normalize_components: only {paid_rewards(config)[0]} is paid, so there is nothing to weigh"
        )
    return found


def set_by_hand(sentences: Sequence[str], config: TrainConfig) -> list[str]:
    """Those of `inert_switches` about a setting that somebody chose: it is not the default, or was given as it.

    A section in which every setting is given was written by a run, and says nothing of what was chosen.
    """
    return [sentence for sentence in sentences if _is_chosen(sentence.partition(":")[0], config)]


def _is_chosen(head: str, config: TrainConfig) -> bool:
    """Whether one of the settings of a section was chosen: `algorithm.clip_low and clip_high`."""
    name, _, rest = head.partition(".")
    section = getattr(config, name)
    fields = type(section).model_fields
    written_out = section.model_fields_set == {*fields}
    return any(
        getattr(section, key) != fields[key].default or (key in section.model_fields_set and not written_out)
        for key in re.findall(r"\w+", rest)
        if key in fields
    )


def confounded_switches(config: TrainConfig, seen: Seen) -> list[str]:
    """Switches that act, but also in another way than they say, in plain words."""
    algorithm = config.algorithm
    found = []
    if _kl_in_loss(algorithm) and algorithm.kl_estimator == "k1":
        found.append(
            "algorithm.kl_estimator: the gradient of k1 in the loss is 0 on average, so the penalty pulls nowhere"
        )
    if algorithm.normalize_components and _kl_in_loss(algorithm):
        found.append(
            f"algorithm.normalize_components: advantages have another size, and algorithm.kl_coef={algorithm.kl_coef:g} weighs "
            "the more or the less against them"
        )
    if algorithm.scale_rewards != "group" and _kl_in_loss(algorithm):
        found.append(
            f"algorithm.scale_rewards: with {algorithm.scale_rewards} advantages have another size than with group, and "
            f"algorithm.kl_coef={algorithm.kl_coef:g} weighs the more or the less against them"
        )
    if seen.steps >= EARLIEST and seen.clipped == seen.steps:
        found.append(
            f"optimizer.max_grad_norm: every update of all {seen.steps} steps was scaled down to "
            f"{config.optimizer.max_grad_norm:g}, so what changes the gradient's size (aggregation, scale_rewards, GPG's alpha) "
            "changes nothing"
        )
    several = config.optimizer.minibatches * config.optimizer.epochs > 1
    if algorithm.surrogate in ("reinforce", "gpg") and (several or seen.carried):
        what = (
            "all but the first of a batch's updates learn" if several else f"{seen.carried} carried groups were learned"
        )
        found.append(
            f"algorithm.surrogate: {algorithm.surrogate} takes no importance ratio, and {what} from what another policy sampled"
        )
    if algorithm.baseline == "leave_one_out" and _kl_in_loss(algorithm) and not algorithm.normalize_components:
        size = config.rollout.group_size
        found.append(
            f"algorithm.baseline: leave_one_out is group_mean times {size}/{size - 1}, so beside the penalty it only weighs "
            "rewards more"
        )
    return found


def _free_tokens(config: TrainConfig) -> int:
    """Longest completion that the soft overlong punishment leaves alone."""
    return config.rollout.budget - config.rewards.buffer(config.rollout.budget)


def _kl_in_loss(algorithm: AlgorithmConfig) -> bool:
    return algorithm.kl_coef > 0 and algorithm.kl_place == "loss"


def ratio_switches(algorithm: AlgorithmConfig) -> list[tuple[str, str]]:
    """Settings that act on importance ratios, and what becomes of them where every ratio is 1."""
    match algorithm.surrogate:
        case "clip":
            dual = [("algorithm.dual_clip", "nothing is bounded")] if algorithm.dual_clip else []
            return [("algorithm.clip_low and clip_high", "nothing is clipped"), *dual]
        case "reinforce" | "gpg":
            return []
        case name:
            return [(f"algorithm.surrogate, clip and gate of {name}", "its gradient is that of reinforce")]


def paid_rewards(config: TrainConfig) -> list[str]:
    """Names of the rewards whose weight is not 0."""
    rewards = config.rewards
    names = (
        "correct", "format", "match_format_exactly", "match_format_approximately", "check_answer", "check_numbers",
        "soft_overlong",
    )  # fmt: skip
    return [name for name in names if getattr(rewards, name)] + [n for n, c in rewards.custom.items() if c.weight]
