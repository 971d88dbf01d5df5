"""What is settled of a rollout batch before the first update on it, while no weight has moved.

batch -> what reference, policy and critic say of it -> advantages
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from slimrl.algorithm.advantages import (
    SCALE_EPSILON,
    component_advantages,
    generalized_advantages,
    gpg_alpha,
    group_advantages,
)
from slimrl.algorithm.batch import at_tokens, components_of, minibatches, rewards_of, take
from slimrl.algorithm.divergences import Divergence, global_weights
from slimrl.algorithm.groups import SIGNAL_TOLERANCE
from slimrl.algorithm.kl import SAMPLED
from slimrl.algorithm.loss import importance_weights
from slimrl.algorithm.metrics import Metrics
from slimrl.config.schema import TrainConfig
from slimrl.learner.forward import batch_logprobs, batch_values, masked_statistics, packed_states, split, trained_rows
from slimrl.learner.learner import Known, Learner, demand_finite
from slimrl.learner.recompute import checkpointed
from slimrl.machine.profiler import OFF, Profiler
from slimrl.machine.signals import NEVER, Stop
from slimrl.model.head import mean_probabilities
from slimrl.model.loading import Policy
from slimrl.model.precision import is_narrow
from slimrl.records import Batch, Group


def look_ahead(
    learner: Learner, batch: Batch, config: TrainConfig, watch: Profiler = OFF, stop: Stop = NEVER
) -> Known:
    """What the reference and the critic say of a batch before it is learned from."""
    algorithm = config.algorithm
    known = Known()
    if learner.critic is not None:
        known = replace(known, values=batch_values(learner.critic[0], batch, config))
        demand_finite("a value of the critic", known.values)
    if learner.reference is not None and algorithm.kl_estimator in SAMPLED:
        # a penalty in the reward is one on every completion, also on those that carry no loss
        asked = replace(batch, loss_mask=batch.completion_mask) if algorithm.kl_place == "reward" else batch
        known = replace(known, reference=batch_logprobs(learner.reference, asked, config, watch, stop))
        demand_finite("a log-probability of the reference", known.reference)
        if algorithm.kl_place == "reward" and is_narrow(learner.policy.model):
            recomputed = batch_logprobs(learner.policy, asked, config, watch, stop)
            demand_finite("a recomputed log-probability", recomputed)
            # groups carried over were sampled by an earlier policy
            fresh, earlier = batch.on_policy[:, None], batch.sampler_logprobs
            known = replace(known, sampled=torch.where(fresh, recomputed.to(earlier.device), earlier))
    if learner.reference is not None and algorithm.kl_estimator not in SAMPLED:
        known = replace(known, divergence=divergence_of(learner.reference, batch, config))
    return known


def recomputes_old(policy: Policy, config: TrainConfig) -> bool:
    """Whether the trainer computes the old log-probabilities again instead of taking the sampler's.

    In a type narrower than float32 a decode step and a packed row round differently, by more than GSPO's clip is wide; with
    one update the ratio is 1 by construction, and surrogates without a ratio have no use for them.
    """
    several = config.optimizer.minibatches * config.optimizer.epochs > 1
    has_ratio = config.algorithm.surrogate not in ("reinforce", "gpg")
    return config.algorithm.importance != "off" or (several and has_ratio and is_narrow(policy.model))


def with_old(
    learner: Learner, batch: Batch, known: Known, config: TrainConfig, watch: Profiler = OFF, stop: Stop = NEVER
) -> Known:
    """What is known, with the old log-probabilities and the importance correction where the settings need them.

    The batch has its advantages. Groups carried over keep the log-probabilities of the earlier policy that sampled them.
    """
    algorithm, policy = config.algorithm, learner.policy
    if not recomputes_old(policy, config):
        return known
    recomputed = as_updates_compute(policy, batch, known, config, watch, stop)
    demand_finite("a recomputed log-probability", recomputed)
    sampler, fresh = batch.sampler_logprobs.to(policy.device), batch.on_policy[:, None].to(policy.device)
    old = torch.where(fresh, recomputed, sampler)
    known = replace(known, old=old)
    if algorithm.importance == "off":
        return known
    factors = importance_weights(
        old,
        sampler,
        batch.loss_mask.to(policy.device),
        level=algorithm.importance_level,
        correction=algorithm.importance,
        cap=algorithm.importance_cap,
    )
    return replace(known, factors=factors)


def as_updates_compute(
    policy: Policy, batch: Batch, known: Known, config: TrainConfig, watch: Profiler = OFF, stop: Stop = NEVER
) -> Tensor:
    """[B, L] nats of the policy as it is, in the minibatches, rows and micro-batches of the updates that follow, and the
    sampler's where no update computes a row.

    Equal shapes and the same functions give equal rounding, so ratios are exactly 1 until a weight has moved. Gradients
    stay enabled, though none is taken, since torch chooses attention kernels by that.
    """
    result = batch.sampler_logprobs.to(policy.device, copy=True)
    for rows in minibatches(batch.groups, count=config.optimizer.minibatches):
        part = take(batch, rows)
        for inside in split(part, trained_rows(part, config), config):
            stop.check()
            micro = take(part, inside)
            with checkpointed(policy.model, config.optimizer.activation_checkpointing == "on"):
                logprobs, _, _ = masked_statistics(
                    policy,
                    micro,
                    temperature=config.rollout.temperature,
                    watch=watch,
                    with_entropy=config.algorithm.entropy_coef > 0 or known.divergence is not None,
                )
            result[rows[inside], : logprobs.shape[1]] = logprobs.detach()
    return result


def divergence_of(reference: Policy, batch: Batch, config: TrainConfig) -> Divergence:
    """The full-vocabulary divergence that the settings ask for; global weights are a mean over this batch's tokens."""
    gkl, kind = config.algorithm.gkl, config.algorithm.kl_estimator
    assert kind == "reverse" or kind == "forward" or kind == "gkl"
    found = Divergence(kind, gkl.mse, gkl.cross_entropy, gkl.weights, gkl.gamma)
    if kind != "gkl" or gkl.weights != "global":
        return found
    total = torch.zeros(reference.head.vocabulary, dtype=torch.float64, device=reference.device)
    count = 0
    with torch.no_grad():
        for rows in split(batch, batch.loss_mask.any(1).nonzero().squeeze(-1), config):
            part = take(batch, rows)
            hidden = packed_states(reference, part)
            total += mean_probabilities(reference.head, hidden, temperature=config.rollout.temperature)
            count += len(hidden)
    return replace(found, prior=global_weights((total / max(1, count)).float(), gkl.gamma))


def with_advantages(
    learner: Learner,
    groups: tuple[Group, ...],
    batch: Batch,
    known: Known,
    config: TrainConfig,
    reward_weights: Mapping[str, float],
) -> tuple[Batch, Known, Metrics]:
    """The batch with its advantages; with a critic, what its own update needs too."""
    if learner.critic is not None:
        return critic_advantages(groups, batch, known, config)
    advantages, means = advantages_of(groups, batch, known, config, reward_weights)
    return replace(batch, advantages=at_tokens(advantages, batch.completion_mask)), known, means


def penalty_in_reward(batch: Batch, known: Known, config: TrainConfig) -> Tensor | None:
    """[B, L] nats: log-ratio of the sampled tokens under the policy that sampled and the reference, where it is paid.

    In a narrow type both come from the trainer's pass: a decode step rounds otherwise, by some hundredths of a nat a token,
    which would be a reward for nothing.
    """
    if known.reference is None or config.algorithm.kl_place != "reward":
        return None
    sampled = batch.sampler_logprobs if known.sampled is None else known.sampled
    return (sampled - known.reference.cpu()) * batch.completion_mask


def advantages_of(
    groups: tuple[Group, ...],
    batch: Batch,
    known: Known,
    config: TrainConfig,
    reward_weights: Mapping[str, float],
) -> tuple[Tensor, Metrics]:
    """Advantages [P, G] of completions, by the baseline and the scale that the settings name."""
    algorithm = config.algorithm
    rewards, scorable = rewards_of(groups)
    alpha = gpg_alpha(rewards, scorable, tolerance=SIGNAL_TOLERANCE)  # of what was paid, before any penalty
    means: Metrics = {}
    if (penalty := penalty_in_reward(batch, known, config)) is not None:
        means["kl"] = float(penalty.sum() / batch.completion_mask.sum())
        rewards = rewards - algorithm.kl_coef * penalty.sum(1).view_as(rewards).double()
    assert algorithm.baseline != "critic"
    if algorithm.normalize_components:
        found = component_advantages(components_of(groups), reward_weights, scorable, algorithm.baseline)
    else:
        found = group_advantages(rewards, scorable, algorithm.scale_rewards, algorithm.baseline)
    if algorithm.surrogate == "gpg":
        found, means["gpg_alpha"] = alpha * found, alpha
    return found, means


def critic_advantages(
    groups: tuple[Group, ...], batch: Batch, known: Known, config: TrainConfig
) -> tuple[Batch, Known, Metrics]:
    """The batch with a critic's advantages at each token, and values and returns for its own update.

    A completion's reward comes with its last token; a KL penalty in the reward with each token.
    """
    settings, algorithm, values = config.critic, config.algorithm, known.values
    assert values is not None
    rewards, _ = rewards_of(groups)
    mask = batch.completion_mask
    last = torch.arange(mask.shape[1])[None] == batch.lengths[:, None] - 1
    paid = rewards.reshape(-1, 1).float() * last
    means: Metrics = {}
    if (penalty := penalty_in_reward(batch, known, config)) is not None:
        means["kl"] = float(penalty.sum() / mask.sum())
        paid = paid - algorithm.kl_coef * penalty
    advantages, returns = generalized_advantages(
        paid, values.cpu(), mask, discount=settings.discount, gae_lambda=settings.gae_lambda
    )
    carried = batch.loss_mask
    errors = (returns - values.cpu())[carried]
    spread = returns[carried].var(correction=0)
    means |= {
        "critic/value_mean": float(values.cpu()[carried].mean()),
        "critic/explained_variance": float(1 - errors.var(correction=0) / spread) if spread > 0 else 0.0,
    }
    if settings.whiten and carried.sum() > 1:
        centred = advantages - advantages[carried].mean()
        advantages = torch.where(mask, centred / (advantages[carried].std() + SCALE_EPSILON), 0.0)
    return replace(batch, advantages=advantages), replace(known, returns=returns.to(values.device)), means
