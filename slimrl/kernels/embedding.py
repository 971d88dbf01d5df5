"""Gradients of the vocabulary's tables, added in place.

The embedding, and the head that is mostly the same matrix, hold up to a third of a small model's weights. Left to
autograd, every micro-batch makes a gradient of that size for each of the two and then adds both to the sum: with
151,936 tokens of width 896, 1 GiB for a moment. `sum_in_place` marks the weights whose gradients are summed over micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

MARK, WIDE = "slimrl_sums_in_place", "slimrl_wide_gradient"


def sum_in_place(weights: Iterable[Tensor]) -> None:
    """Let a backward pass add to the gradients of these leaves by itself, unseen by hooks and by torch.autograd.grad."""
    for weight in weights:
        setattr(weight, MARK, True)


def running_gradient(weight: Tensor) -> Tensor | None:
    """`.grad` of a marked float32 weight, to which its gradient is added; None for other weights."""
    if not getattr(weight, MARK, False) or weight.dtype != torch.float32:
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def running_sum(weight: Tensor) -> Tensor | None:
    """The same, and for a marked narrow weight its `wide_gradient`, which is made where there is none."""
    if not getattr(weight, MARK, False) or weight.dtype == torch.float32:
        return running_gradient(weight)
    if wide_gradient(weight) is None:
        setattr(weight, WIDE, torch.zeros_like(weight, dtype=torch.float32))
    return wide_gradient(weight)


def wide_gradient(weight: Tensor) -> Tensor | None:
    """The float32 sum of a narrow weight's gradients, which `.grad` cannot be, where there is one."""
    found: Tensor | None = getattr(weight, WIDE, None)
    return found


def drop_gradients(weight: Tensor) -> None:
    """Forget all of them."""
    weight.grad = None
    setattr(weight, WIDE, None)


class SummedEmbedding(nn.Embedding):
    """`nn.Embedding` in all but the way in which a marked weight gets its gradient."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.weight.requires_grad and getattr(self.weight, MARK, False):
            found: Tensor = _Lookup.apply(self.weight, input, self.padding_idx)  # type: ignore[no-untyped-call]
            return found
        return super().forward(input)


def use_summed_embeddings(model: nn.Module) -> None:
    """Let a model on a CPU use it; on a GPU adding rows in any order would make runs differ."""
    for module in model.modules():
        plain = type(module) is nn.Embedding and not (module.max_norm or module.scale_grad_by_freq or module.sparse)
        if plain and module.weight.device.type == "cpu":
            module.__class__ = SummedEmbedding


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding = weight, padding
        return embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        running = running_sum(ctx.weight)
        assert running is not None
        rows = gradient.reshape(-1, gradient.shape[-1]).to(running.dtype)
        if ctx.padding is not None:
            rows = rows * (ids.flatten() != ctx.padding)[:, None]
        running.index_add_(0, ids.flatten(), rows)
        return None, None, None
