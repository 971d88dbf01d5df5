"""A linear layer that is quick for the rows of a decode step on a CPU; see `decode`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from slimrl.kernels.decode import Product, few_rows, products, recorded_few_rows
from slimrl.kernels.native import has_kernels, has_matrix_unit, takes

FEWEST_ROWS = 3
"""One or two rows of float32 torch multiplies at the speed of memory."""
MOST_ROWS = 256
"""Rows up to which the compiled product is as quick as the library's in float32. In bfloat16 it is for any number: the library
compiles a kernel of its own for each."""
MOST_ROWS_BESIDE_TILES = 32
"""The same for bfloat16 on a processor with a matrix unit (AMX), which the library uses: few rows leave it idle."""
LEAST_WEIGHTS = 4096
"""Smaller matrices cost less than a call."""
TURNED_ROWS = range(8, 49)
"""Rows for which W x^T is quicker than x W^T in torch, where nothing can be compiled."""


def quick_rows(dtype: torch.dtype) -> range:
    """Numbers of rows that `few_rows` multiplies; empty where it cannot."""
    if not has_kernels(dtype):
        return range(0)
    if dtype == torch.bfloat16:
        return range(1, MOST_ROWS_BESIDE_TILES + 1 if has_matrix_unit() else sys.maxsize)
    return range(FEWEST_ROWS, MOST_ROWS + 1)


def _is_quick(x: Tensor, weights: Sequence[Tensor]) -> bool:
    even = x.dtype == torch.float32 or x.shape[1] % 2 == 0
    return even and takes(x, *weights) and len(x) in quick_rows(x.dtype)


def wide_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [N, D], weight [V, D], bias [V] -> x W^T + b [N, V] float32, without gradient.

    The compiled product does not round the sums of bfloat16 numbers to bfloat16; torch, which takes its place beside a matrix
    unit, does.
    """
    if _is_quick(x, [weight]):
        return products(x, [Product(weight, bias)], widen=True)[0]
    return linear(x, weight, bias).float()


class Adapter(NamedTuple):
    """The update of a weight by low-rank adaptation (LoRA, arXiv:2106.09685): scaling B A."""

    a: Tensor
    """[rank, inputs]."""
    b: Tensor
    """[outputs, rank]."""
    scaling: float


class AdaptedLinear(NamedTuple):
    """A linear layer: x (W + scaling B A)^T + bias."""

    weight: Tensor
    bias: Tensor | None
    adapter: Adapter | None


def together(x: Tensor, layers: Sequence[AdaptedLinear]) -> list[Tensor]:
    """x [N, D] -> what each of the layers gives, by the compiled product or torch's, without gradient.

    In bfloat16 a row's result does not depend on the rows that it is computed with (beside a matrix unit it does), so that
    sampler and trainer round alike.
    """
    lows = iter(lowered(x, [layer.adapter for layer in layers if layer.adapter is not None]))
    parts = [
        Product(weight, bias) if adapter is None else Product(weight, bias, adapter.b, next(lows))
        for weight, bias, adapter in layers
    ]
    return _multiplied(x, parts)


def lowered(x: Tensor, adapters: Sequence[Adapter]) -> list[Tensor]:
    """x [N, D] -> scaling x A^T [N, rank] for each."""
    if not adapters:
        return []
    found = _multiplied(x, [Product(adapter.a) for adapter in adapters], widen=True)
    return [low.mul_(adapter.scaling).to(x.dtype) for low, adapter in zip(found, adapters, strict=True)]


def _multiplied(x: Tensor, parts: Sequence[Product], *, widen: bool = False) -> list[Tensor]:
    if _is_quick(x, [part.weight for part in parts]):
        return products(x, parts, widen=widen)
    found = []
    for weight, bias, factor, low in parts:
        y = linear(x, weight, bias)
        found.append(y if factor is None or low is None else y.addmm_(low, factor.t()))
    return found


class FewRowsLinear(nn.Linear):
    """`nn.Linear` in all but the way in which few rows are multiplied where no gradient is wanted."""

    quick_rows: range
    """Numbers of rows that `few_rows` multiplies."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        quick = self.quick_rows.start <= rows < self.quick_rows.stop
        turned = not self.quick_rows and TURNED_ROWS.start <= rows < TURNED_ROWS.stop
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
            module.quick_rows = quick_rows(dtype)  # type: ignore[assignment]
