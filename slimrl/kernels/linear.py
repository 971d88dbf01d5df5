"""A linear layer that is quick for the few rows of a decode step on a CPU; see `native`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimrl.kernels.native import few_rows, lanes

FEWEST_ROWS = 3
"""One or two rows torch multiplies at the speed of memory."""
MOST_VECTORS = 6
"""Vectors of rows up to which reading weights is most of the work; with more the library's blocking is as good."""
LEAST_WEIGHTS = 100_000
"""Smaller matrices stay in the cache either way."""
TURNED_ROWS = range(8, 49)
"""Rows for which W x^T is quicker than x W^T in torch, where nothing can be compiled."""


class FewRowsLinear(nn.Linear):
    """`nn.Linear` in all but the way in which few rows are multiplied where no gradient is wanted."""

    most_rows: int
    """Rows up to which `few_rows` multiplies; 0 where it cannot be compiled."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        quick = FEWEST_ROWS <= rows <= self.most_rows
        turned = not self.most_rows and TURNED_ROWS.start <= rows < TURNED_ROWS.stop
        if torch.is_grad_enabled() or not (quick or turned) or not (_plain(input) and _plain(self.weight)):
            return super().forward(input)
        x = input.reshape(rows, self.in_features)
        if quick:
            out: Tensor = few_rows(self.weight, x, self.bias)
        else:
            out = torch.mm(self.weight, x.t()).t().contiguous()
            if self.bias is not None:
                out += self.bias
        return out.view(*input.shape[:-1], self.out_features)


def speed_up_linear(model: nn.Module) -> None:
    """Let a float32 model on a CPU use it; weights, names and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= LEAST_WEIGHTS and _plain(module.weight):
            module.__class__ = FewRowsLinear
            module.most_rows = MOST_VECTORS * lanes()  # type: ignore[assignment]


def _plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"
