"""A linear layer that is quick for the rows of a decode step on a CPU; see `decode`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from slimrl.kernels.decode import few_rows, products, recorded_few_rows
from slimrl.kernels.native import has_kernels, has_matrix_unit, lanes, takes

FEWEST_ROWS = 3
"""One or two rows torch multiplies at the speed of memory."""
MOST_VECTORS = 16
"""Vectors of rows up to which the compiled product is as quick as the library's, which in bfloat16 compiles a kernel of its
own for every number of rows. Above it the library's blocking is better."""
MOST_VECTORS_BESIDE_TILES = 2
"""The same for bfloat16 on a processor with a matrix unit (AMX), which the library uses: few rows leave it idle."""
LEAST_WEIGHTS = 4096
"""Smaller matrices cost less than a call."""
TURNED_ROWS = range(8, 49)
"""Rows for which W x^T is quicker than x W^T in torch, where nothing can be compiled."""


def most_rows(dtype: torch.dtype) -> int:
    """Rows up to which `few_rows` multiplies; 0 where it cannot."""
    if not has_kernels(dtype):
        return 0
    beside = dtype == torch.bfloat16 and has_matrix_unit()
    return (MOST_VECTORS_BESIDE_TILES if beside else MOST_VECTORS) * lanes()


def wide_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [N, D], weight [V, D], bias [V] -> x W^T + b [N, V] float32, without gradient.

    In bfloat16 the compiled product makes it for any number of rows, and its sums are not rounded to bfloat16; beside a matrix
    unit torch does, which rounds them.
    """
    if takes(x, weight):
        narrow, few = x.dtype == torch.bfloat16, FEWEST_ROWS <= len(x) <= most_rows(x.dtype)
        if (x.shape[1] % 2 == 0 and not has_matrix_unit()) if narrow else few:
            return products(x, [(weight, bias)], widen=True)[0]
    return linear(x, weight, bias).float()


def together(x: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """x [N, D] -> what each of these layers gives, without gradient; in one call of the compiled product where that is quick."""
    if FEWEST_ROWS <= len(x) <= most_rows(x.dtype) and all(takes(x, layer.weight) for layer in layers):
        return products(x, [(layer.weight, layer.bias) for layer in layers])
    return [layer(x) for layer in layers]


class FewRowsLinear(nn.Linear):
    """`nn.Linear` in all but the way in which few rows are multiplied where no gradient is wanted."""

    most_rows: int
    """Rows up to which `few_rows` multiplies; 0 where it cannot be compiled."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        quick = FEWEST_ROWS <= rows <= self.most_rows
        turned = not self.most_rows and TURNED_ROWS.start <= rows < TURNED_ROWS.stop
        if torch.is_grad_enabled() or not (quick or turned) or input.device.type != "cpu":
            return super().forward(input)
        x = input.reshape(rows, self.in_features)
        compiling = torch.compiler.is_compiling()
        if quick and (compiling or takes(x, self.weight)):
            out: Tensor = (recorded_few_rows if compiling else few_rows)(self.weight, x, self.bias)
        elif turned and self.weight.dtype == torch.float32:
            out = torch.mm(self.weight, x.t()).t().contiguous()
            if self.bias is not None:
                out += self.bias
        else:
            return super().forward(input)
        return out.view(*input.shape[:-1], self.out_features)


def speed_up_linear(model: nn.Module) -> None:
    """Let a model on a CPU use it; weights, names and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.device.type != "cpu":
            continue
        dtype, even = module.weight.dtype, module.in_features % 2 == 0
        if module.weight.numel() >= LEAST_WEIGHTS and (dtype == torch.float32 or (even and has_kernels(dtype))):
            module.__class__ = FewRowsLinear
            module.most_rows = most_rows(dtype)  # type: ignore[assignment]
