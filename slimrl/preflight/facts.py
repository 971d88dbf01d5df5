"""The facts that the rules of `preflight/effects.py` judge: one run, or an arm of a study beside its reference.

This module imports no torch, so that a study can be planned without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from slimrl.config.algorithm import SURROGATES, AlgorithmConfig, Surrogate
from slimrl.config.files import settings_of
from slimrl.config.schema import TrainConfig
from slimrl.preflight.observed import Observed

SPEED_ONLY = (
    "parallel", "device_deadline", "rollout.slots", "rollout.compile", "rewards.workers", "environment.workers",
    "sandbox.workers", "optimizer.activation_checkpointing", "optimizer.reference_offload", "optimizer.sharded",
)  # fmt: skip
"""Settings that change speed and memory, and numbers at most in their last bits."""
SPLIT_ONLY = ("optimizer.microbatch_tokens", "memory_share")
"""The same, unless the aggregation depends on the split into micro-batches."""


@dataclass(frozen=True)
class Run:
    """A run as its rules see it: settings, and what was sampled and done so far."""

    config: TrainConfig
    observed: Observed

    @property
    def algorithm(self) -> AlgorithmConfig:
        return self.config.algorithm

    @property
    def surrogate(self) -> Surrogate:
        return SURROGATES[self.algorithm.surrogate]

    @property
    def on_policy(self) -> bool:
        """True if each update learns from what the present policy sampled."""
        return one_update(self.config) and not self.observed.carried

    @property
    def ratio_is_one(self) -> bool:
        """True if every importance ratio is exactly 1; a run without any update has no ratios."""
        return self.on_policy and (self.observed.steps > 0 or not self.observed.skipped)

    @property
    def penalty_and_rewards(self) -> bool:
        """True if the size of advantages decides how much a KL penalty weighs against them."""
        return kl_in_loss(self.algorithm) and not self.algorithm.normalize_components

    @property
    def carried_over(self) -> str:
        return " (but for groups that dynamic sampling may carry over)" if refills(self.config) else ""

    @property
    def leave_one_out(self) -> str:
        size = self.config.rollout.group_size
        return f"leave_one_out is group_mean times {size}/{size - 1}"

    @property
    def constant_leave_one_out(self) -> bool:
        """True if the baseline is leave_one_out over whole groups; with credit by turn the factor depends on the turn."""
        return self.algorithm.baseline == "leave_one_out" and not self.by_turn

    @property
    def by_turn(self) -> bool:
        return self.algorithm.credit == "turn"

    @property
    def compares_turns(self) -> bool:
        """True if returns at a turn are compared with each other."""
        return self.algorithm.baseline in ("group_mean", "leave_one_out") or self.algorithm.scale_rewards != "none"

    @property
    def no_turn_paid(self) -> str:
        """Words on episodes of several turns none of which was paid, with credit by turn; else empty."""
        several = self.by_turn and self.observed.turns > 1 and not self.observed.paid_by_turn
        return (
            f"no turn of {self.observed.completions} episodes was paid, so all turns of one have the same return"
            if several
            else ""
        )

    @property
    def free_tokens(self) -> int:
        """Longest completion that the soft overlong punishment leaves alone."""
        return self.config.rollout.budget - self.config.rewards.buffer(self.config.rollout.budget)

    @property
    def alpha(self) -> float:
        """The value of GPG's alpha, if it had only one."""
        return next(iter(self.observed.alphas))


@dataclass(frozen=True)
class Pair:
    """An arm of a study and its reference, as their rules see them."""

    reference: TrainConfig
    arm: TrainConfig

    @cached_property
    def changed(self) -> list[str]:
        return changed_settings(self.reference, self.arm)

    @property
    def both(self) -> tuple[TrainConfig, TrainConfig]:
        return self.reference, self.arm

    @property
    def kl(self) -> bool:
        """True if both have a KL penalty, and at least one of them in the loss."""
        algorithms = [config.algorithm for config in self.both]
        return all(a.kl_coef for a in algorithms) and any(map(kl_in_loss, algorithms))

    @property
    def fixed_length(self) -> bool:
        """True if one of them divides by a number that does not depend on the tokens there are."""
        return any(config.algorithm.aggregation == "fixed_length" for config in self.both)

    @property
    def ratio_is_one(self) -> bool:
        """True if no importance ratio of either can differ from 1."""
        return all(map(one_update, self.both)) and not any(map(refills, self.both))

    @property
    def dearer(self) -> str:
        """The one of them that refills, in words."""
        return "it" if refills(self.arm) else "its reference"

    @property
    def refill_budget(self) -> float:
        return max(config.algorithm.refill_budget for config in self.both)


def one_update(config: TrainConfig) -> bool:
    """True if a rollout batch gets a single optimizer update."""
    return config.optimizer.minibatches * config.optimizer.epochs == 1


def refills(config: TrainConfig) -> bool:
    """True if dynamic sampling may sample further groups, and carry some over."""
    return config.algorithm.dynamic_sampling == "refill"


def kl_in_loss(algorithm: AlgorithmConfig) -> bool:
    """True if the KL penalty is a term of the loss."""
    return algorithm.kl_coef > 0 and algorithm.kl_place == "loss"


def split_matters(config: TrainConfig) -> bool:
    """True if the loss depends on the split into micro-batches."""
    return config.algorithm.aggregation == "microbatch_token_mean"


def rounding_only(config: TrainConfig) -> set[str]:
    """Dotted keys of the settings that change no more than speed, memory and the last bits of numbers."""
    return {*SPEED_ONLY} if split_matters(config) else {*SPEED_ONLY, *SPLIT_ONLY}


def changed_settings(reference: TrainConfig, arm: TrainConfig) -> list[str]:
    """Dotted keys in which two settings objects differ."""
    theirs, ours = settings_of(reference), settings_of(arm)
    return [key for key in ours if ours[key] != theirs[key]]
