"""An update by imitation: the negative log-likelihood of texts that are to be written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrl.algorithm.batch import balanced, microbatches
from slimrl.errors import DivergedError
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.recompute import checkpointed
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
    with ranks.together(), checkpointed(policy.model, plan.recompute):
        loss = imitate(policy, examples, optimizer.backward, max_tokens=plan.microbatch_tokens, ranks=ranks)
    optimizer.add_up(ranks)
    return {"loss": sum(ranks.exchange(loss)), **optimizer.step(rate, optimizer.gradient_norm())}


def imitate(
    policy: Policy,
    examples: Sequence[Example],
    backward: Callable[[Tensor], None],
    *,
    max_tokens: int,
    ranks: Ranks = ALONE,
) -> float:
    """This rank's part of the mean negative log-likelihood per target token, in nats; `backward` gets each micro-batch's share.

    Raises DivergedError for a loss that is not finite.
    """
    lengths = torch.tensor([len(e.prompt_ids) + len(e.target_ids) - 1 for e in examples])
    total = sum(e.imitated for e in examples)
    loss_sum = 0.0
    alone = torch.arange(len(examples))
    share = max_tokens if ranks.size == 1 else min(max_tokens, -(-int(lengths.sum()) // ranks.size))
    parts = microbatches(lengths, lengths, alone, max_tokens=share)
    own = balanced([int(lengths[part].sum()) for part in parts], ranks.size)[ranks.rank]
    for rows in (parts[index] for index in own):
        width = int(lengths[rows].max())
        ids = torch.full((len(rows), width + 1), policy.pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows.tolist()):
            example = examples[row]
            ids[i, : lengths[row] + 1] = torch.tensor([*example.prompt_ids, *example.target_ids])
            mask[i, len(example.prompt_ids) - 1 : lengths[row]] = True
            if example.given:
                mask[i, len(example.prompt_ids) - 1 : lengths[row]] = ~torch.tensor(example.given)
        packed = pack(ids[:, :-1], lengths[rows], lengths[rows], rows, device=policy.device)
        hidden = policy.packed_hidden(packed).index_select(0, packed.places[mask.to(policy.device)])
        logprobs, _ = token_logprobs(
            policy.head, hidden, ids[:, 1:][mask].to(policy.device), temperature=1.0, with_entropy=False
        )
        loss = -logprobs.sum() / total
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()}; this update was not applied. Lower optimizer.learning_rate"
            )
        backward(loss)
        loss_sum += float(loss.detach())
    return loss_sum
