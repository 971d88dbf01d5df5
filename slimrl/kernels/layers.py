"""The parts of a decoder layer between its matrix products, each in one pass over memory.

The residual stream is float32 whatever the type of the weights, so that narrow weights round what enters a product and
nothing else. All tensors are contiguous, on the CPU, and their last dimension is a multiple of `lanes()`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimrl.kernels.native import call


def add_norm(
    residual: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float, offset: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """residual [N, D] float32, delta [N, D] -> their sum s [N, D] float32, (weight + offset) * s / rms(s) [N, D] in the weight's
    type, 1 / rms(s) [N] float32.

    RMSNorm (arXiv:1910.07467). Without `delta`, s is `residual` itself, which may then be of the weight's type too.
    """
    rows, width = residual.shape
    total = residual if delta is None else torch.empty_like(residual)
    normalized, scale = (
        residual.new_empty(rows, width, dtype=weight.dtype),
        residual.new_empty(rows, dtype=torch.float32),
    )
    kernel = _of("add_norm", residual)
    call(kernel, weight.dtype, total, residual, delta, weight, normalized, scale, rows, width, float(epsilon), offset)
    return total, normalized, scale


def norm_again(x: Tensor, weight: Tensor, scale: Tensor, offset: float = 0.0) -> Tensor:
    """The second result of `add_norm` from its first, in float32, and its third."""
    y = torch.empty_like(x, dtype=weight.dtype)
    call("norm_again", weight.dtype, x, weight, scale, y, *x.shape, offset)
    return y


def norm_backward(
    slope: Tensor, x: Tensor, weight: Tensor, scale: Tensor, total: Tensor | None, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Adds to `total` [N, D] float32 the gradient of x under `slope` [N, D], that of `add_norm`'s second result.

    Returns `total` in the weight's type (itself in float32), or without `total` the gradient of x alone, in the weight's type;
    and the gradient of the weight [D] float32.
    """
    same = total is not None and weight.dtype == total.dtype
    narrow = total if same else torch.empty_like(x, dtype=weight.dtype)
    assert narrow is not None
    parts = x.new_zeros(torch.get_num_threads(), x.shape[1], dtype=torch.float32)
    call(_of("norm_backward", x), weight.dtype, slope, x, weight, scale, total, narrow, parts, *x.shape, offset)
    return narrow, parts.sum(0)


def _of(kernel: str, x: Tensor) -> str:
    """The name of the kernel that normalizes what is of this type."""
    return kernel if x.dtype == torch.float32 else f"narrow_{kernel}"


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> None:
    """Rotary positions (arXiv:2104.09864) in place: x [N, heads, d], cosine and sine [N, d]; `back` is the gradient's way.

    Cosine and sine are of the type of x or float32.
    """
    kernel = "rotate" if cosine.dtype == x.dtype else "wide_rotate"
    call(kernel, x.dtype, x, cosine, sine, *x.shape, int(back))


def gate(gate: Tensor, up: Tensor, *, gelu: bool = False) -> Tensor:
    """The product of a gated MLP (arXiv:2002.05202), [N, F] each: silu(gate) * up, or with the tanh form of gelu."""
    out = torch.empty_like(gate)
    call("gate", gate.dtype, gate, up, out, gate.numel(), int(gelu))
    return out


def gate_backward(gate: Tensor, up: Tensor, slope: Tensor, *, gelu: bool = False) -> None:
    """In place: gate and up [N, F] become their gradients, and slope, the gradient of `gate`'s result, becomes that result."""
    call("gate_backward", gate.dtype, gate, up, slope, gate.numel(), int(gelu))
