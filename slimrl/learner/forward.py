"""What a model says of a batch: log-probabilities, entropies, divergences and values at its tokens, in micro-batches.

A batch lies on the CPU, where its layout is made; results are on the model's device, [B, L] with 0 where nothing was asked.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from slimrl.algorithm.batch import microbatches, take
from slimrl.algorithm.divergences import Divergence
from slimrl.config.schema import TrainConfig
from slimrl.learner.critic import Critic
from slimrl.machine.profiler import OFF, Profiler
from slimrl.machine.signals import NEVER, Stop
from slimrl.model.cost import cost_of
from slimrl.model.head import Reference, token_logprobs, token_statistics
from slimrl.model.loading import Policy
from slimrl.model.packing import Packed, pack
from slimrl.preflight.memory import MOST_TOKENS
from slimrl.records import Batch


def split(batch: Batch, rows: Tensor, config: TrainConfig) -> list[Tensor]:
    """The given rows in micro-batches that fit `optimizer.microbatch_tokens`; without a plan, `auto` is its upper end."""
    parts = microbatches(
        batch.lengths[rows],
        batch.prompt_lengths[rows],
        batch.groups[rows],
        max_tokens=MOST_TOKENS if config.optimizer.microbatch_tokens == "auto" else config.optimizer.microbatch_tokens,
    )
    return [rows[part] for part in parts]


def trained_rows(batch: Batch, config: TrainConfig) -> Tensor:
    """[n] rows that can have a gradient: those with loss and, where nothing else pulls at them, with an advantage.

    Weights count every row whether it is computed or not, so leaving out what is 0 changes nothing. One row stays, for
    an optimizer that sees a gradient of 0 goes on by its momentum, and one that sees none does not.
    """
    algorithm = config.algorithm
    wanted = batch.loss_mask.any(1)
    pulled = (algorithm.kl_coef and algorithm.kl_place == "loss") or algorithm.entropy_coef
    if not pulled and algorithm.aggregation != "microbatch_token_mean":
        moving = wanted & (batch.advantages != 0).any(1)
        wanted = moving if moving.any() else wanted & (wanted.cumsum(0) == 1)
    return wanted.nonzero().squeeze(-1)


def masked_statistics(
    policy: Policy,
    batch: Batch,
    *,
    temperature: float,
    watch: Profiler = OFF,
    passes: int = 1,
    reference: Policy | None = None,
    divergence: Divergence | None = None,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy and divergence from a reference of the tokens that carry loss: [B, L] nats, 0 elsewhere.

    The entropy carries gradient only `with_entropy`, the divergence is 0 without a reference. The batch lies on the CPU,
    where its layout is made; the result on the policy's device. `passes` is the work in forward passes that `watch` is
    told of: 3 where a backward pass follows.
    """
    packed = packed_rows(policy, batch)
    if watch.on:
        own = batch.lengths - batch.prompt_lengths
        pairs = float((own * (batch.prompt_lengths + own / 2)).sum())
        watch.count(flops=passes * cost_of(policy).forward(len(packed.ids), float(batch.loss_mask.sum()), pairs))
    mask = batch.loss_mask.to(policy.device)
    places = packed.places[mask]
    hidden = policy.packed_hidden(packed).index_select(0, places)
    targets = batch.targets.to(policy.device)[mask]
    blank = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    if divergence is None and not with_entropy:
        logprobs, entropy = token_logprobs(policy.head, hidden, targets, temperature=temperature)
        return blank.masked_scatter(mask, logprobs), blank.masked_scatter(mask, entropy), blank
    other = None
    if divergence is not None:
        assert reference is not None
        with torch.no_grad():
            other = Reference(reference.head, reference.packed_hidden(packed).index_select(0, places), divergence)
    found = token_statistics(policy.head, hidden, targets, temperature=temperature, reference=other)
    logprobs, entropy, apart = (blank.masked_scatter(mask, part) for part in found)
    return logprobs, entropy if with_entropy else entropy.detach(), apart


def packed_rows(policy: Policy, batch: Batch) -> Packed:
    return pack(batch.inputs, batch.lengths, batch.prompt_lengths, batch.groups, device=policy.device)


def packed_states(policy: Policy, batch: Batch) -> Tensor:
    """[N, D] hidden states from which the tokens that carry loss are drawn."""
    packed = packed_rows(policy, batch)
    return policy.packed_hidden(packed).index_select(0, packed.places[batch.loss_mask.to(policy.device)])


@torch.no_grad()
def batch_logprobs(
    policy: Policy, batch: Batch, config: TrainConfig, watch: Profiler = OFF, stop: Stop = NEVER
) -> Tensor:
    """[B, L] nats under a policy that does not learn from it, in micro-batches. Raises Stopped between them."""
    result = torch.zeros_like(batch.sampler_logprobs, device=policy.device)
    for rows in split(batch, batch.loss_mask.any(1).nonzero().squeeze(-1), config):
        stop.check()
        temperature = config.rollout.temperature
        logprobs, _, _ = masked_statistics(policy, take(batch, rows), temperature=temperature, watch=watch)
        result[rows, : logprobs.shape[1]] = logprobs
    return result


def values_at(critic: Critic, batch: Batch) -> Tensor:
    """[B, L] values of the states from which the completions' tokens were drawn, 0 elsewhere."""
    device = critic.head.weight.device
    packed = pack(batch.inputs, batch.lengths, batch.prompt_lengths, batch.groups, device=device)
    mask = batch.completion_mask.to(device)
    blank = torch.zeros(mask.shape, dtype=torch.float32, device=device)
    return blank.masked_scatter(mask, critic(packed).index_select(0, packed.places[mask]))


@torch.no_grad()
def batch_values(critic: Critic, batch: Batch, config: TrainConfig) -> Tensor:
    """[B, L] values, in micro-batches."""
    result = torch.zeros(batch.inputs.shape, device=critic.head.weight.device)
    for rows in split(batch, torch.arange(len(batch.inputs)), config):
        values = values_at(critic, take(batch, rows))
        result[rows, : values.shape[1]] = values
    return result


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on another device."""
    return Batch(**{field.name: getattr(batch, field.name).to(device) for field in fields(Batch)})
