"""What can be said of an arm before it runs: that it cannot act, or that it changes more than its name says.

Only what follows from the settings is said here; `slimrl study plan` adds what a probe of the model shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slimrl.config.files import settings_of
from slimrl.config.schema import TrainConfig
from slimrl.preflight.effects import paid_rewards

ROUNDING_ONLY = (
    "rollout.slots", "rollout.compile", "rewards.workers", "optimizer.microbatch_tokens", "optimizer.activation_checkpointing",
    "memory_share",
)  # fmt: skip
"""Settings that change speed and memory, and numbers at most in their last bits."""
ON_RATIOS = (
    "algorithm.clip_low", "algorithm.clip_high", "algorithm.dual_clip", "algorithm.sapo_up", "algorithm.sapo_down",
)  # fmt: skip
"""Settings that do nothing where every importance ratio is 1."""
MEASURED_WITH = ("rollout.max_new_tokens", "rollout.temperature")
"""Settings that evaluation uses too."""


@dataclass(frozen=True)
class Remark:
    """One thing to know of an arm."""

    kind: Literal["inert", "confounded", "reward"]
    """Cannot differ from its reference; differs in more than its name says; its training reward means something else."""
    text: str


def changed_settings(reference: TrainConfig, arm: TrainConfig) -> list[str]:
    """Dotted keys in which two settings objects differ."""
    theirs, ours = settings_of(reference), settings_of(arm)
    return [key for key in ours if ours[key] != theirs[key]]


def concerning(sentences: Sequence[str], reference: TrainConfig, arm: TrainConfig) -> list[str]:
    """Those of `slimrl.preflight.effects.inert_switches` that are about what an arm changes."""
    changed = {key.rpartition(".")[2] for key in changed_settings(reference, arm)}
    return [text for text in sentences if any(key in text.partition(":")[0] for key in changed)]


def remarks(reference: TrainConfig, arm: TrainConfig, name: str) -> tuple[Remark, ...]:
    """What follows from the settings of an arm and of its reference, called `name`."""
    changed = changed_settings(reference, arm)
    if not changed:
        return (Remark("inert", f"its settings are those of {name}"),)
    reasons = {key: without_effect(key, reference, arm) for key in changed}
    if all(reasons.values()):
        text = "; ".join(dict.fromkeys(f"{key} {why}" for key, why in reasons.items()))
        return (Remark("inert", f"it cannot differ from {name}: {text}"),)
    idle = [Remark("confounded", f"{key} {why}, so it adds nothing here") for key, why in reasons.items() if why]
    found = [Remark("confounded", text) for text in _confounds(reference, arm, changed)]
    reward = [Remark("reward", text) for text in _reward_changes(changed)]
    return (*idle, *found, *reward)


def without_effect(key: str, reference: TrainConfig, arm: TrainConfig) -> str:
    """Why a changed setting can change no result, or nothing at all may be said."""
    both = (reference, arm)
    if key in ON_RATIOS and all(map(_ratio_is_one, both)):
        return "acts on importance ratios, and with one update per rollout batch every one is exactly 1"
    if (
        key == "algorithm.surrogate"
        and "gpg" not in {c.algorithm.surrogate for c in both}
        and all(map(_ratio_is_one, both))
    ):
        return (
            "makes no difference with one update per rollout batch, where every surrogate has the gradient of reinforce"
        )
    if key == "algorithm.signal" and all(map(_reward_is_correctness, both)):
        return "makes no difference where the reward is correctness alone"
    if key in rounding_only(reference) & rounding_only(arm):
        return "changes speed and memory, and numbers in their last bits only"
    return ""


def rounding_only(config: TrainConfig) -> set[str]:
    """ROUNDING_ONLY, less what the one aggregation that depends on the split makes of it."""
    if config.algorithm.aggregation == "microbatch_token_mean":
        return {*ROUNDING_ONLY} - {"optimizer.microbatch_tokens", "memory_share"}
    return {*ROUNDING_ONLY}


def _ratio_is_one(config: TrainConfig) -> bool:
    """One update per rollout batch, and no group that an earlier policy sampled."""
    single = config.optimizer.minibatches * config.optimizer.epochs == 1
    return single and config.algorithm.dynamic_sampling != "refill"


def _reward_is_correctness(config: TrainConfig) -> bool:
    return paid_rewards(config) == ["correct"] and not config.rewards.zero_truncated


def _confounds(reference: TrainConfig, arm: TrainConfig, changed: list[str]) -> list[str]:
    theirs, ours = reference.algorithm, arm.algorithm
    found = []
    kl = bool(theirs.kl_coef and ours.kl_coef) and "loss" in (theirs.kl_place, ours.kl_place)
    if {"algorithm.scale_rewards", "algorithm.normalize_components"} & {*changed} and kl:
        found.append(
            "advantages change their scale and algorithm.kl_coef does not, so the weight of the KL penalty against the "
            "reward changes too; compare without KL, or scale kl_coef along"
        )
    if "algorithm.scale_rewards" in changed and arm.optimizer.max_grad_norm < 1e6:
        found.append(_clipped("advantages change their scale"))
    if "algorithm.aggregation" in changed and "fixed_length" in (ours.aggregation, theirs.aggregation):
        found.append(_clipped("fixed_length divides by rollout.max_new_tokens instead of the tokens there are"))
        if kl:
            found.append("the KL penalty is aggregated in the same way, so its weight per token changes along")
    if {"rewards.correct", "rewards.format"} & {*changed} and kl and ours.scale_rewards == "none":
        found.append("the reward changes its scale and algorithm.kl_coef does not")
    if any(key.startswith("optimizer.") and key.rpartition(".")[2] in ("minibatches", "epochs") for key in changed):
        found.append("it takes another number of optimizer updates on the same rollouts")
    for key in MEASURED_WITH:
        if key in changed:
            found.append(f"evaluation uses {key} too, so the measure changes with the training")
    if "rollout.problems" in changed or "rollout.group_size" in changed:
        found.append("it samples another number of completions a step; see budget.equal=tokens")
    if "steps" in changed:
        found.append("it takes another number of steps than its reference")
    refills = "refill" in (theirs.dynamic_sampling, ours.dynamic_sampling)
    if "algorithm.dynamic_sampling" in changed and refills and not arm.max_tokens:
        dearer = "it" if ours.dynamic_sampling == "refill" else "its reference"
        budget = max(ours.refill_budget, theirs.refill_budget)
        found.append(
            f"at equal steps {dearer} may sample up to {budget:g} times the tokens; budget.equal=tokens compares at equal cost"
        )
    if "algorithm.kl_estimator" in changed and ("k1", "loss") in (
        (ours.kl_estimator, ours.kl_place), (theirs.kl_estimator, theirs.kl_place)
    ):  # fmt: skip
        found.append("the gradient of k1 in the loss is 0 on average, so with it the KL penalty pulls nowhere")
    return found


def _clipped(what: str) -> str:
    return (
        f"{what}, which AdamW undoes but optimizer.max_grad_norm does not: where it clips one arm and not the other, that "
        "is a difference too (grad_norm in metrics.jsonl)"
    )


def _reward_changes(changed: list[str]) -> list[str]:
    """Why the training reward of an arm cannot be compared with its reference's."""
    found = []
    if any(key.startswith("rewards.") and key != "rewards.workers" for key in changed):
        found.append("what is paid changes, so training rewards are not comparable")
    if any(key.startswith("curriculum.") for key in changed):
        found.append("what it is asked is chosen by difficulty or success, so training rewards are not comparable")
    if "algorithm.dynamic_sampling" in changed or "algorithm.signal" in changed:
        found.append("what it trains on is selected by reward, so train/reward is not comparable")
    return found
