"""The parts of a decoder layer between its matrix products, each in one pass over memory.

The residual stream is float32 whatever the type of the weights, so that narrow weights round what enters a product and
nothing else. All tensors are contiguous, on the CPU, and their last dimension is a multiple of `lanes()`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimrl.kernels.native import call


def add_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """residual [N, D] float32, delta [N, D] -> their sum s [N, D] float32, weight * s / rms(s) [N, D], 1 / rms(s) [N] float32.

    RMSNorm (arXiv:1910.07467). Without `delta`, s is `residual` itself.
    """
    rows, width = residual.shape
    total = residual if delta is None else torch.empty_like(residual)
    normalized, scale = residual.new_empty(rows, width, dtype=weight.dtype), residual.new_empty(rows)
    call("add_norm", weight.dtype, total, residual, delta, weight, normalized, scale, rows, width, float(epsilon))
    return total, normalized, scale


def norm_again(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The second result of `add_norm` from its first and third."""
    y = torch.empty_like(x, dtype=weight.dtype)
    call("norm_again", weight.dtype, x, weight, scale, y, *x.shape)
    return y


def norm_backward(slope: Tensor, x: Tensor, weight: Tensor, scale: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Adds to `total` [N, D] float32 the gradient of x under `slope` [N, D], that of `add_norm`'s second result.

    Returns `total` in the weight's type (itself in float32), and the gradient of the weight [D] float32.
    """
    narrow = total if weight.dtype == total.dtype else torch.empty_like(total, dtype=weight.dtype)
    parts = x.new_zeros(torch.get_num_threads(), x.shape[1])
    call("norm_backward", weight.dtype, slope, x, weight, scale, total, narrow, parts, *x.shape)
    return narrow, parts.sum(0)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> None:
    """Rotary positions (arXiv:2104.09864) in place: x [N, heads, d], cosine and sine [N, d]; `back` is the gradient's way."""
    call("rotate", x.dtype, x, cosine, sine, *x.shape, int(back))


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU's product (arXiv:2002.05202): silu(gate) * up, [N, F] each."""
    out = torch.empty_like(gate)
    call("gate", gate.dtype, gate, up, out, gate.numel())
    return out


def gate_backward(gate: Tensor, up: Tensor, slope: Tensor) -> None:
    """In place: gate and up [N, F] become their gradients, and slope, the gradient of silu(gate) * up, becomes that product."""
    call("gate_backward", gate.dtype, gate, up, slope, gate.numel())
