"""An update by imitation: the negative log-likelihood of texts that are to be written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from slimrl.algorithm.batch import balanced, microbatches
from slimrl.config.schema import RootConfig
from slimrl.errors import DivergedError
from slimrl.learner.divided import DividedLayers, demand_memory, divides, extra_parts
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.recompute import checked, checkpointed
from slimrl.machine.ranks import ALONE, Ranks
from slimrl.model.head import token_logprobs
from slimrl.model.packing import pack
from slimrl.model.policy import Policy
from slimrl.records import Plan


@dataclass(frozen=True)
class Example:
    """A prompt and what is to be imitated behind it."""

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    """The solution and the stop token; of an episode all turns, each with the stop token, and what was answered between."""
    given: tuple[bool, ...] = ()
    """True at target ids that are not imitated, since an environment writes them; empty where all are."""

    @property
    def imitated(self) -> int:
        """Number of target ids that carry loss."""
        return len(self.target_ids) - sum(self.given)


def imitating_optimizer(policy: Policy, config: RootConfig, ranks: Ranks) -> MasterAdamW:
    """The optimizer of a run that imitates, with the policy's layers divided where the settings say so."""
    layers = DividedLayers(policy, ranks) if divides(config, policy, ranks) else None
    return MasterAdamW(policy.trainable, config.optimizer, ranks, layers)


def take_imitation_step(
    policy: Policy,
    optimizer: MasterAdamW,
    examples: Sequence[Example],
    rate: float,
    plan: Plan,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """One update at a learning rate on examples that all ranks have; returns what to log, with the `loss` in nats a token.

    Raises DivergedError for a loss that is not finite.
    """
    layers = optimizer.layers
    taught = policy if layers is None else layers.policy
    with ranks.activity.of(computes=True), demand_memory(ranks, plan), optimizer.whole_afterwards():
        with ranks.together() if layers is None else nullcontext(), checkpointed(taught.model, plan.recompute):
            loss = imitate(
                taught, examples, optimizer.backward, max_tokens=plan.microbatch_tokens, ranks=ranks, layers=layers
            )
        optimizer.add_up(ranks)
        return {"loss": sum(ranks.exchange(loss)), **optimizer.step(rate, optimizer.gradient_norm())}


def imitate(
    policy: Policy,
    examples: Sequence[Example],
    backward: Callable[[Tensor], None],
    *,
    max_tokens: int,
    ranks: Ranks = ALONE,
    layers: DividedLayers | None = None,
) -> float:
    """This rank's part of the mean negative log-likelihood per target token, in nats; `backward` gets each micro-batch's share.

    Of divided `layers`, `policy` is theirs. Raises DivergedError for a loss that is not finite.
    """
    lengths = torch.tensor([len(e.prompt_ids) + len(e.target_ids) - 1 for e in examples])
    total = sum(e.imitated for e in examples)
    alone = torch.arange(len(examples))
    parts = microbatches(lengths, lengths, alone, max_tokens=max_tokens, ranks=ranks.size)
    tokens = [int(lengths[part].sum()) for part in parts]
    loss_sum = 0.0

    def added(loss: Tensor) -> None:
        nonlocal loss_sum
        backward(loss)
        loss_sum += float(loss.detach())

    for index in ranks.activity.each(balanced(tokens, ranks.size)[ranks.rank]):
        loss = partial(_loss, policy, [examples[row] for row in parts[index].tolist()], total)
        if layers is None:
            with checked(policy.model, ranks.activity.tick):
                added(loss())
        else:
            layers.add_gradient(loss, _never, added)
    if layers is not None:
        for index in ranks.activity.each(extra_parts(tokens, ranks)):
            nothing = partial(_loss, policy, [examples[row] for row in parts[index].tolist()], math.inf)
            layers.add_gradient(nothing, _never, added)
    return loss_sum


def _never() -> None:
    """A stop waits for the end of an update of imitation."""


def _loss(policy: Policy, examples: Sequence[Example], total: float) -> Tensor:
    """The summed negative log-likelihood of the examples' targets over `total`. Raises DivergedError."""
    lengths = torch.tensor([len(e.prompt_ids) + len(e.target_ids) - 1 for e in examples])
    width = int(lengths.max())
    ids = torch.full((len(examples), width + 1), policy.pad_id)
    mask = torch.zeros((len(examples), width), dtype=torch.bool)
    for i, (example, length) in enumerate(zip(examples, lengths.tolist(), strict=True)):
        ids[i, : length + 1] = torch.tensor([*example.prompt_ids, *example.target_ids])
        mask[i, len(example.prompt_ids) - 1 : length] = True
        if example.given:
            mask[i, len(example.prompt_ids) - 1 : length] = ~torch.tensor(example.given)
    packed = pack(ids[:, :-1], lengths, lengths, torch.arange(len(examples)), device=policy.device)
    hidden = policy.packed_hidden(packed).index_select(0, packed.places[mask.to(policy.device)])
    logprobs, _ = token_logprobs(
        policy.head, hidden, ids[:, 1:][mask].to(policy.device), temperature=1.0, with_entropy=False
    )
    loss = -logprobs.sum() / total
    if not torch.isfinite(loss):
        raise DivergedError(f"the loss is {loss.item()}; this update was not applied. Lower optimizer.learning_rate")
    return loss
