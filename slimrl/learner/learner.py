"""What learns, what its updates know and report, and how they are fitted into the memory there is."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from slimrl.algorithm.divergences import Divergence
from slimrl.algorithm.metrics import Metrics
from slimrl.config.schema import TrainConfig
from slimrl.errors import NonFiniteError, SettingsError
from slimrl.learner.critic import Critic, make_critic
from slimrl.learner.optimizer import MasterAdamW, make_optimizer
from slimrl.machine.limits import is_out_of_memory
from slimrl.model.policy import Policy, freeze
from slimrl.preflight.memory import MOST_TOKENS
from slimrl.records import Batch

T = TypeVar("T")


@dataclass
class Learner:
    """What learns, and what it is compared with."""

    policy: Policy
    optimizer: MasterAdamW
    reference: Policy | None
    """The initial policy, where a KL penalty needs it."""
    critic: tuple[Critic, MasterAdamW] | None
    """PPO's value function and its optimizer, where the baseline is one."""
    microbatch_tokens: int
    """As the plan has it, or less where memory ran out."""
    exact: bool = True
    """False where the sampler's log-probabilities are not those of this policy's module; see `rollout.Sampler`."""

    def drop(self) -> None:
        """Forget gradients that will not be used."""
        self.optimizer.drop()
        if self.critic is not None:
            self.critic[1].drop()


@dataclass(frozen=True)
class Fault:
    """An update that was dropped, since a number was not finite."""

    what: str
    """Which number, for a sentence."""
    batch: Batch
    """What it was to learn from."""
    spoiled: bool = False
    """It was found only in the weights: they must be thrown away."""


@dataclass(frozen=True)
class Updated:
    """What the updates of a step did."""

    metrics: Metrics
    fault: Fault | None = None
    """The first one."""


@dataclass(frozen=True)
class Known:
    """What is settled before the first update on a rollout batch, [B, L] each on the policy's device."""

    reference: Tensor | None = None
    """Log-probabilities of the sampled tokens under the reference."""
    sampled: Tensor | None = None
    """Those under the policy as it sampled, recomputed by the trainer beside `reference`, where a penalty in the reward
    compares the two and the module is narrower than float32; None: the sampler's own are taken.
    """
    old: Tensor | None = None
    """Those of the policy as it sampled, recomputed by the trainer; None: the sampler's own are taken."""
    factors: Tensor | None = None
    """Importance correction."""
    values: Tensor | None = None
    returns: Tensor | None = None
    divergence: Divergence | None = None
    """The full-vocabulary divergence of the loss; not a tensor, and not sliced."""

    def take(self, rows: Tensor, width: int | None = None) -> Known:
        """The given rows, as wide as a batch of them."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows][:, :width]

        return Known(
            cut(self.reference),
            cut(self.sampled),
            cut(self.old),
            cut(self.factors),
            cut(self.values),
            cut(self.returns),
            self.divergence,
        )


def make_learner(policy: Policy, config: TrainConfig, *, exact: bool = True) -> Learner:
    """Everything an update needs; a reference or a critic only where the settings do."""
    planned = config.optimizer.microbatch_tokens
    return Learner(
        policy,
        make_optimizer(policy.trainable, config.optimizer),
        freeze(policy) if config.algorithm.kl_coef else None,
        make_critic(policy, config.optimizer) if config.algorithm.baseline == "critic" else None,
        MOST_TOKENS if planned == "auto" else planned,
        exact,
    )


def fitting(learner: Learner, batch: Batch, config: TrainConfig, work: Callable[[TrainConfig], T]) -> T:
    """`work` with the settings it is given; while memory runs out, again with micro-batches half as large.

    Raises SettingsError where single completions do not fit, or the result would depend on the split.
    """
    while True:
        optimizer = config.optimizer.model_copy(update={"microbatch_tokens": learner.microbatch_tokens})
        try:
            return work(config.model_copy(update={"optimizer": optimizer}))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fixed = config.algorithm.aggregation == "microbatch_token_mean"
            if fixed or learner.microbatch_tokens <= int(batch.lengths.max()):
                cause = "and its split is part of what is computed" if fixed else "even for one completion at a time"
                raise SettingsError(
                    f"memory ran out in the update with optimizer.microbatch_tokens={learner.microbatch_tokens}, {cause}; set "
                    "optimizer.activation_checkpointing=on or model.dtype=bfloat16, or lower rollout.max_new_tokens"
                ) from None
        # not in the except block, whose traceback holds on to the tensors
        learner.drop()
        learner.microbatch_tokens = max(learner.microbatch_tokens // 2, int(batch.lengths.max()))
        gc.collect()
        if learner.policy.device.type == "cuda":
            torch.cuda.empty_cache()


def demand_finite(what: str, numbers: Tensor | None) -> None:
    """Raises NonFiniteError."""
    if numbers is not None and not torch.isfinite(numbers).all():
        raise NonFiniteError(f"{what} is not finite")
