"""AdamW in one pass over memory: clipping, moments, master weights, and the narrow weights of the module."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrl.kernels.native import call, has_kernels


@dataclass(frozen=True)
class AdamW:
    """The settings of one update (arXiv:1711.05101)."""

    rate: float
    beta1: float
    beta2: float
    epsilon: float
    factor: float
    """Of gradients, to clip them."""


class _Step(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_float) for name in ("rate", "beta1", "beta2", "epsilon", "decay", "root", "factor")
    )


def can_update(weights: Sequence[Tensor]) -> bool:
    """True where the kernels take these weights: dense, on the CPU, of types that they know."""
    return all(w.device.type == "cpu" and has_kernels(w.dtype) and w.is_contiguous() for w in weights)


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """The 2-norm of all numbers, 0 of none; not finite where one of them is not."""
    gradients = [gradient.contiguous() for gradient in gradients]
    if not can_update(gradients):
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        return float(torch.linalg.vector_norm(torch.stack(norms)))
    sums = torch.zeros(len(gradients), torch.get_num_threads(), dtype=torch.float64)
    for gradient, own in zip(gradients, sums, strict=True):
        call("sum_squares", gradient.dtype, gradient, own, gradient.numel())
    return float(sums.sum().sqrt())


def adamw(
    weight: Tensor, master: Tensor, gradient: Tensor, state: dict[str, Tensor], settings: AdamW, weight_decay: float
) -> int:
    """One update of a master [...] float32 and of the module's `weight`, which may be the same tensor.

    `state` holds `step`, `exp_avg` and `exp_avg_sq` as torch's AdamW keeps them, and is updated. Returns the number of weights
    that are not finite afterwards.
    """
    state["step"] += 1
    step, spoiled = int(state["step"]), torch.zeros(1, dtype=torch.long)
    numbers = _Step(
        settings.rate / (1 - settings.beta1**step), settings.beta1, settings.beta2, settings.epsilon,
        settings.rate * weight_decay, (1 - settings.beta2**step) ** 0.5, settings.factor,
    )  # fmt: skip
    narrow = weight if weight is not master else None
    kernel = "adamw" if narrow is None else "adamw_narrow"
    moments = (state["exp_avg"], state["exp_avg_sq"])
    call(kernel, gradient.dtype, master, *moments, gradient, narrow, spoiled, master.numel(), numbers)
    return int(spoiled)
