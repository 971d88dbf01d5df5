"""A linear layer that is quick for the few rows of a decode step on a CPU.

x W^T with 8 to 48 rows is a product for which the CPU's library has no good blocking: it reaches about half of the
arithmetic that W x^T reaches, the same product with the long side first (two Sapphire Rapids cores, float32, 16 rows,
896 x 4,864: 140 against 235 GFLOP/s from the cache; from memory 8.3 against 12.7 GB/s).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEWEST_ROWS, MOST_ROWS = 8, 48
LEAST_WEIGHTS = 2**18
"""Smaller matrices stay in the cache either way."""


class FewRowsLinear(nn.Linear):
    """`nn.Linear` in all but the order of the factors, where no gradient is wanted and the rows are few."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.numel() < LEAST_WEIGHTS or torch.is_grad_enabled():
            return super().forward(input)
        rows = input.numel() // self.in_features
        if not FEWEST_ROWS <= rows <= MOST_ROWS:
            return super().forward(input)
        out = torch.mm(self.weight, input.reshape(rows, self.in_features).t()).t().contiguous()
        if self.bias is not None:
            out += self.bias
        return out.view(*input.shape[:-1], self.out_features)


def speed_up_linear(model: nn.Module) -> None:
    """Let a float32 model on a CPU use it; weights, names and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = FewRowsLinear
