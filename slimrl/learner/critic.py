"""PPO's value function: a copy of the policy's layers with a head of one number, and an optimizer of its own.

The value of a position is read where the policy's next token is drawn from. The head starts at 0, so the first values are 0.
With `critic.gae_lambda=1` and `critic.discount=1`, the defaults, the first advantages are then those of no baseline: the
reward at every token (before `critic.whiten`). A smaller lambda fades them: lambda^n of the reward n tokens before the last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimrl.algorithm.advantages import value_loss
from slimrl.algorithm.batch import to_device
from slimrl.config.schema import TrainConfig
from slimrl.errors import NonFiniteError
from slimrl.learner.forward import Microbatcher, packed_rows
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.recompute import checkpointed
from slimrl.machine.ranks import ALONE, Ranks
from slimrl.model.lora import shared_copy
from slimrl.model.packing import Packed
from slimrl.model.policy import Policy
from slimrl.records import Batch, Rows

CRITIC_RATE = 5
"""Times the policy's learning rate, where the critic's is `auto`: its head starts from nothing."""


class Critic(nn.Module):
    """Values of packed tokens; the policy that it was copied from is not touched by it."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.trunk = shared_copy(policy.trunk)
        width = policy.head.weight.shape[1]
        self.head = nn.Linear(width, 1, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, packed: Packed) -> Tensor:
        """[N] float32 values of N packed tokens."""
        out = self.trunk(
            input_ids=packed.ids[None], position_ids=packed.positions[None], use_cache=False, plan=packed.plan
        )
        values: Tensor = self.head(out.last_hidden_state[0].float()).squeeze(-1)
        return values


class CriticLearner:
    """A critic with its optimizer, which clips and decays as the policy's does."""

    def __init__(self, policy: Policy, config: TrainConfig, ranks: Ranks = ALONE) -> None:
        self.critic = Critic(policy)
        self.optimizer = MasterAdamW(self.trainable, config.optimizer, ranks)
        self.value_clip = config.critic.value_clip
        rate = config.critic.learning_rate
        self.peak_rate = CRITIC_RATE * config.optimizer.peak_rate if rate == "auto" else rate

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """All of its parameters but those that it shares with a policy of which an adapter is trained."""
        return {name: p for name, p in self.critic.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def values(self, rows: Rows, microbatcher: Microbatcher) -> Tensor:
        """[B, L] on the CPU: values of the states from which the completions' tokens were drawn, 0 elsewhere."""
        return microbatcher.over_parts(rows, torch.ones(len(rows.lengths), dtype=torch.bool), self.values_at)

    def values_at(self, rows: Rows) -> Tensor:
        """[B, L] on the critic's device, for rows that are one micro-batch."""
        device = self.critic.head.weight.device
        packed = packed_rows(rows, device)
        mask = rows.completion_mask.to(device)
        blank = torch.zeros(mask.shape, dtype=torch.float32, device=device)
        return blank.masked_scatter(mask, self.critic(packed).index_select(0, packed.places[mask]))

    def loss(self, micro: Batch, total: Tensor, recompute: bool) -> Tensor:
        """The micro-batch's share of the mean squared error over the `total` tokens of the update that carry loss.

        Raises NonFiniteError.
        """
        with checkpointed(self.critic.trunk, recompute):
            values = self.values_at(micro)
        micro = to_device(micro, values.device)
        error = value_loss(values, micro.values, micro.returns, clip=self.value_clip)
        loss = (error * micro.loss_mask).sum() / total.to(values.device)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the critic's loss is {loss.item()}")
        return loss
