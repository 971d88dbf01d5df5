"""PPO's value function: a copy of the policy's layers with a head of one number, and an optimizer of its own.

The value of a position is read where the policy's next token is drawn from. The head starts at 0, so the first values are 0.
With `critic.gae_lambda=1` and `critic.discount=1`, the defaults, the first advantages are then those of no baseline: the
reward at every token (before `critic.whiten`). A smaller lambda fades them: lambda^n of the reward n tokens before the last.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from slimrl.config.sections import OptimizerConfig
from slimrl.kernels.embedding import use_summed_embeddings
from slimrl.learner.optimizer import MasterAdamW, make_optimizer
from slimrl.model.loading import Policy
from slimrl.model.packing import Packed


class Critic(nn.Module):
    """Values of packed tokens; the policy that it was copied from is not touched by it."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        trunk = copy.deepcopy(policy.model.base_model)
        use_summed_embeddings(trunk)
        self.trunk = trunk.requires_grad_(True)
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


def make_critic(policy: Policy, settings: OptimizerConfig) -> tuple[Critic, MasterAdamW]:
    """The critic and its optimizer, which clips and decays as the policy's does."""
    critic = Critic(policy)
    return critic, make_optimizer(critic, settings)
