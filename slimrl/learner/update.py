"""From the groups of a step to new weights: advantages, then minibatches, then micro-batches of one gradient each.

    groups -> batch -> what is known before the first update -> loss -> step

What an update compares the policy with (the reference, the policy that sampled, the critic's values) is computed once per
rollout batch, before any weight moves. Everything that a token's loss needs is [B, L] and sliced with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from slimrl.algorithm.advantages import value_loss
from slimrl.algorithm.batch import make_batch, minibatches, packed_tokens, take
from slimrl.algorithm.groups import Collected
from slimrl.algorithm.kl import SAMPLED, kl_penalty
from slimrl.algorithm.loss import clipped_ratio, surrogate, token_weights, top_entropy_mask
from slimrl.algorithm.metrics import Metrics, TokenMeans
from slimrl.config.schema import TrainConfig
from slimrl.errors import NonFiniteError
from slimrl.learner.critic import Critic
from slimrl.learner.forward import masked_statistics, split, to_device, trained_rows, values_at
from slimrl.learner.learner import Fault, Known, Learner, Updated, demand_finite, fitting
from slimrl.learner.optimizer import MasterAdamW, learning_rate
from slimrl.learner.recompute import checkpointed
from slimrl.learner.targets import look_ahead, with_advantages, with_old
from slimrl.machine.profiler import OFF, Profiler
from slimrl.machine.signals import NEVER, Stop
from slimrl.model.loading import Policy
from slimrl.records import Batch

CRITIC_RATE = 5
"""Times the policy's learning rate, where the critic's is `auto`: its head starts from nothing."""


def update(
    learner: Learner,
    collected: Collected,
    config: TrainConfig,
    step: int,
    *,
    reward_weights: Mapping[str, float],
    watch: Profiler = OFF,
    stop: Stop = NEVER,
) -> Updated:
    """The optimizer updates of one step, or none where nothing carries loss.

    Raises Stopped, nothing changed, where that is asked before the first of them is applied; SettingsError where memory
    does not suffice for a single completion.
    """
    if not collected.groups:
        return Updated({"update/skipped": 1.0})
    groups = collected.groups
    batch = make_batch(
        groups,
        advantages=torch.zeros(len(groups), len(groups[0].rollouts)),
        overlong_filtering=config.algorithm.overlong_filtering,
        step=step,
        pad_id=learner.policy.pad_id,
    )
    if not batch.loss_mask.any():
        return Updated({"update/skipped": 1.0})
    try:
        demand_finite("a log-probability of the sampler", batch.sampler_logprobs)
        with watch.part("reference"):
            known = fitting(learner, batch, config, lambda fitted: look_ahead(learner, batch, fitted, watch, stop))
        learned, known, means = with_advantages(learner, groups, batch, known, config, reward_weights)
        demand_finite("an advantage", learned.advantages)
        with watch.part("reference"):
            settled = known
            known = fitting(
                learner, batch, config, lambda fitted: with_old(learner, learned, settled, fitted, watch, stop)
            )
    except NonFiniteError as error:
        return Updated({"update/skipped": 1.0, "update/nonfinite": 1.0}, Fault(str(error), batch))
    updated = update_policy(learner, learned, known, config, step, watch, stop)
    return replace(updated, metrics=means | updated.metrics)


def update_policy(
    learner: Learner,
    batch: Batch,
    known: Known,
    config: TrainConfig,
    step: int,
    watch: Profiler = OFF,
    stop: Stop = NEVER,
) -> Updated:
    """Epochs x minibatches of one rollout batch; each minibatch is one optimizer update (and one of the critic's)."""
    parts = minibatches(batch.groups, count=config.optimizer.minibatches)
    collected: list[Metrics] = []
    fault: Fault | None = None
    for number in range(len(parts) * config.optimizer.epochs):
        rows = parts[number % len(parts)]
        if not batch.loss_mask[rows].any():
            collected.append({"update/skipped": 1.0})
            continue
        part = take(batch, rows)
        # with weights, or a float16 loss scale, that have moved there is no step to drop any more: it is brought to its end
        may_stop = NEVER if collected else stop

        def work(
            fitted: TrainConfig,
            part: Batch = part,
            rows: Tensor = rows,
            number: int = number,
            may_stop: Stop = may_stop,
        ) -> Metrics:
            return gradients(learner, part, known.take(rows), fitted, number == 0, watch, may_stop)

        try:
            means = fitting(learner, part, config, work)
            norms = [optimizer.clip() for optimizer in _optimizers(learner)]
        except NonFiniteError as error:
            learner.drop()
            fault = fault or Fault(str(error), part)
            collected.append({"update/skipped": 1.0, "update/nonfinite": 1.0})
            continue
        try:
            with watch.part("optimizer"):
                collected.append(means | apply(learner, norms, config, step, number))
        except NonFiniteError as error:
            return Updated({"update/skipped": 0.0, "update/nonfinite": 1.0}, Fault(str(error), part, spoiled=True))
    means = {
        key: sum(m[key] for m in collected if key in m) / sum(key in m for m in collected)
        for key in dict.fromkeys(key for m in collected for key in m)
    }
    largest = "update/microbatch_tokens"
    return Updated(means | {largest: max(m.get(largest, 0.0) for m in collected)}, fault)


def _optimizers(learner: Learner) -> list[MasterAdamW]:
    return [learner.optimizer] if learner.critic is None else [learner.optimizer, learner.critic[1]]


def gradients(
    learner: Learner, batch: Batch, known: Known, config: TrainConfig, first: bool, watch: Profiler, stop: Stop
) -> Metrics:
    """Those of the policy and of the critic for one optimizer update, left in their optimizers."""
    means = accumulate_gradient(
        learner.policy,
        batch,
        known,
        learner.optimizer.backward,
        config,
        reference=learner.reference,
        first_update=first,
        watch=watch,
        stop=stop,
    )
    if learner.critic is not None:
        critic, optimizer = learner.critic
        means |= accumulate_value_gradient(critic, batch, known, optimizer.backward, config, stop)
    return means


def apply(learner: Learner, norms: list[float], config: TrainConfig, step: int, number: int) -> Metrics:
    """One optimizer update, number `number` of its step, at the rates of the schedule; gradients were found finite."""
    settings = config.optimizer
    updates_per_step = settings.minibatches * settings.epochs

    def rate(peak: float) -> float:
        return learning_rate(
            step * updates_per_step + number,
            peak=peak,
            schedule=settings.schedule,
            warmup=settings.warmup_steps,
            total=config.steps * updates_per_step,
        )

    means = learner.optimizer.step(rate(settings.peak_rate), norms[0])
    if learner.critic is not None:
        chosen = config.critic.learning_rate
        critic_rate = CRITIC_RATE * settings.peak_rate if chosen == "auto" else chosen
        means["critic/grad_norm"] = learner.critic[1].step(rate(critic_rate), norms[1]).get("grad_norm", float("nan"))
    return means


def accumulate_gradient(
    policy: Policy,
    batch: Batch,
    known: Known,
    backward: Callable[[Tensor], None],
    config: TrainConfig,
    *,
    first_update: bool,
    reference: Policy | None = None,
    watch: Profiler = OFF,
    stop: Stop = NEVER,
) -> Metrics:
    """Forward and backward over the micro-batches of one optimizer update; the split changes no more than rounding.

    `backward` is called once per micro-batch with its share of the loss. Raises NonFiniteError for a log-probability or a
    loss that is not finite, before it can reach the weights; Stopped between micro-batches.
    """
    algorithm, temperature = config.algorithm, config.rollout.temperature
    single = config.optimizer.minibatches * config.optimizer.epochs == 1
    weights = token_weights(
        batch.loss_mask,
        batch.completion_mask,
        batch.groups,
        algorithm.aggregation,
        max_new_tokens=config.rollout.budget,
    )
    chosen = trained_rows(batch, config)
    parts = split(batch, chosen, config)
    steered = steered_tokens(policy, batch, config)
    means = TokenMeans()
    again = config.optimizer.activation_checkpointing == "on"
    for rows in parts:
        stop.check()
        part = take(batch, rows)
        width = part.inputs.shape[1]
        own = known.take(rows, width)
        with watch.part("forward"), checkpointed(policy.model, again):
            logprobs, entropy, divergence = masked_statistics(
                policy,
                part,
                temperature=temperature,
                watch=watch,
                passes=3,
                reference=reference if known.divergence is not None else None,
                divergence=known.divergence,
                with_entropy=algorithm.entropy_coef > 0,
            )
        micro = to_device(part, policy.device)
        weight = weights[rows, :width].to(policy.device)
        if algorithm.aggregation == "microbatch_token_mean":
            weight = micro.loss_mask / micro.loss_mask.sum() / len(parts)
        fresh = logprobs.detach()
        before = micro.sampler_logprobs if own.old is None else own.old
        old = torch.where(micro.on_policy[:, None], fresh, before) if single else before
        pulled = micro.loss_mask if steered is None else steered[rows, :width].to(policy.device)
        value = token_values(logprobs, entropy, divergence, old, pulled, micro, own, config, means)
        loss = (weight * value).sum()
        if not (torch.isfinite(loss) & torch.isfinite(fresh).all()):
            demand_finite("a log-probability", fresh)
            raise NonFiniteError(f"the loss is {loss.item()}")
        with watch.part("backward"):
            backward(loss)
        means.total("loss", loss.detach())
        means.most("update/microbatch_tokens", packed_tokens(part))
        means.add("entropy", entropy.detach(), micro.loss_mask)
        note_clipping(means, fresh, old, micro, config)
        if first_update:
            gap = (fresh - micro.sampler_logprobs).abs()
            means.add("sampling/sampling_logp_difference/mean", gap, micro.loss_mask & micro.on_policy[:, None])
            means.maximum("sampling/sampling_logp_difference/max", gap, micro.loss_mask & micro.on_policy[:, None])
    return means.result()


def token_values(
    logprobs: Tensor,
    entropy: Tensor,
    divergence: Tensor,
    old: Tensor,
    pulled: Tensor,
    batch: Batch,
    known: Known,
    config: TrainConfig,
    means: TokenMeans,
) -> Tensor:
    """[B, L] surrogate + kl_coef KL - entropy_coef H of a micro-batch; `pulled` marks the tokens that have a surrogate."""
    algorithm = config.algorithm
    value = pulled * surrogate(
        algorithm.surrogate,
        logprobs,
        old,
        batch.advantages,
        batch.loss_mask,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip,
        sapo_up=algorithm.sapo_up,
        sapo_down=algorithm.sapo_down,
    )
    if known.factors is not None:
        value = value * known.factors
        means.add("importance/mean", known.factors, batch.loss_mask)
        means.maximum("importance/max", known.factors, batch.loss_mask)
    if algorithm.kl_place == "loss" and algorithm.kl_coef > 0:
        kl = divergence
        if known.reference is not None:
            assert algorithm.kl_estimator in SAMPLED
            kl = kl_penalty(algorithm.kl_estimator, logprobs, known.reference)
        value = value + algorithm.kl_coef * kl
        means.add("kl", kl.detach(), batch.loss_mask)
    return value - algorithm.entropy_coef * entropy if algorithm.entropy_coef else value


def note_clipping(means: TokenMeans, fresh: Tensor, old: Tensor, batch: Batch, config: TrainConfig) -> None:
    """Shares of tokens whose ratio lies beyond a bound in the direction that their advantage pushes."""
    algorithm = config.algorithm
    ratio = clipped_ratio(algorithm.surrogate, fresh, old, batch.loss_mask)
    if ratio is None:
        return
    low = (ratio < 1 - algorithm.clip_low) & (batch.advantages < 0)
    high = (ratio > 1 + algorithm.clip_high) & (batch.advantages > 0)
    means.add("clip_ratio/low_mean", low, batch.loss_mask)
    means.add("clip_ratio/high_mean", high, batch.loss_mask)
    means.add("clip_ratio/region_mean", low | high, batch.loss_mask)


def accumulate_value_gradient(
    critic: Critic,
    batch: Batch,
    known: Known,
    backward: Callable[[Tensor], None],
    config: TrainConfig,
    stop: Stop = NEVER,
) -> Metrics:
    """The critic's squared error over the micro-batches of one optimizer update: the mean over tokens that carry loss."""
    assert known.values is not None
    assert known.returns is not None
    total = batch.loss_mask.sum().clamp(min=1)
    means = TokenMeans()
    for rows in split(batch, batch.loss_mask.any(1).nonzero().squeeze(-1), config):
        stop.check()
        part = take(batch, rows)
        own = known.take(rows, part.inputs.shape[1])
        assert own.values is not None
        assert own.returns is not None
        with checkpointed(critic.trunk, config.optimizer.activation_checkpointing == "on"):
            values = values_at(critic, part)
        mask = part.loss_mask.to(values.device)
        error = value_loss(values, own.values, own.returns, clip=config.critic.value_clip)
        loss = (error * mask).sum() / total.to(values.device)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the critic's loss is {loss.item()}")
        backward(loss)
        means.total("critic/loss", loss.detach())
    return means.result()


def steered_tokens(policy: Policy, batch: Batch, config: TrainConfig) -> Tensor | None:
    """[B, L] bool: tokens that carry the policy gradient under entropy_share, over the whole update; None: all of them."""
    if config.algorithm.entropy_share == 1:
        return None
    entropies = torch.zeros(batch.inputs.shape)
    with torch.no_grad():
        for rows in split(batch, batch.loss_mask.any(1).nonzero().squeeze(-1), config):
            part = take(batch, rows)
            _, entropy, _ = masked_statistics(policy, part, temperature=config.rollout.temperature)
            entropies[rows, : part.inputs.shape[1]] = entropy.cpu()
    return top_entropy_mask(entropies, batch.loss_mask, config.algorithm.entropy_share)
