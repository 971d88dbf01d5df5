"""Per-token log-probability and entropy from hidden states, in row chunks, never a [rows, tokens, vocabulary] tensor.

Logits of a chunk are recomputed in the backward pass, so the peak is a few chunks whatever the number of tokens.
Everything after the head is float32: log-probabilities are of softmax(logits / temperature), what was sampled from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimrl.model.tables import running_gradient

CHUNK_ELEMENTS = 2**24
"""Logits held at once: 64 MiB in float32, twice that at the peak."""


@dataclass(frozen=True)
class Head:
    """Hidden states to logits: the output embedding and, where the config names one, the soft cap of final logits."""

    projection: nn.Module
    softcap: float = 0.0
    """logits become softcap * tanh(logits / softcap); 0 for none."""

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @property
    def weight(self) -> Tensor:
        """[V, D]."""
        weight = self.projection.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """[V], where the projection has one."""
        bias = getattr(self.projection, "bias", None)
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> float32 logits [..., V]."""
        logits: Tensor = self.projection(hidden).float()
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits


def token_logprobs(
    head: Head, hidden: Tensor, targets: Tensor, *, temperature: float, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """hidden [N, D], targets [N] long -> log-probability [N] and entropy [N] in nats, float32.

    The log-probability carries gradient; the entropy is a measurement and carries none.
    """
    size = max(1, chunk_elements // head.vocabulary)
    weights = (head.weight, head.bias)
    logprobs, entropy = _TokenLogprobs.apply(hidden, *weights, targets, temperature, head.softcap, size)  # type: ignore[no-untyped-call]
    return logprobs, entropy


class _TokenLogprobs(torch.autograd.Function):
    """Chunks of logits, made again in the backward pass and turned into their own gradient in place.

    With p = softmax(z), z = logits / temperature: d logprob[t] / d z = onehot(t) - p. So a chunk needs one buffer of
    logits where autograd would hold four, and the weight's gradient is summed in one buffer over all chunks. Where one
    chunk is all, what p is made of is kept, and nothing is made again (nor can it be differentiated twice).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        softcap: float,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        found = []
        keep = len(hidden) <= size and not softcap
        kept = None
        for h, t in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
            scaled = _logits(h, weight, bias, softcap)
            if temperature != 1:
                scaled /= temperature
            top = scaled.amax(-1)
            scaled -= top[:, None]
            chosen = scaled.gather(-1, t[:, None]).squeeze(-1)
            weights = scaled.exp()
            total = weights.sum(-1)
            entropy = total.log() - scaled.mul_(weights).sum(-1) / total
            found.append((chosen - total.log(), entropy, total if keep else top + total.log()))
            if keep:
                kept = weights
        empty = hidden.new_zeros(0, dtype=torch.float32)
        logprobs, entropy, normalizer = (torch.cat([empty, *part]) for part in zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, bias, targets, normalizer, kept)
        ctx.weight, ctx.temperature, ctx.softcap, ctx.size = weight, temperature, softcap, size
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizer, kept = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        running = running_gradient(ctx.weight) if ctx.needs_input_grad[1] else None
        of_weight = running
        if running is None and ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight, dtype=torch.float32)
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        chunks = (torch.split(tensor, ctx.size) for tensor in (hidden, targets, normalizer, gradient, of_hidden))
        for h, t, n, g, out in zip(*chunks, strict=True):
            g = g / ctx.temperature
            slope = None
            if kept is None:
                logits = _logits(h, weight, bias, ctx.softcap)
                slope = 1 - (logits / ctx.softcap) ** 2 if ctx.softcap else None
                if ctx.temperature != 1:
                    logits /= ctx.temperature
                d = logits.sub_(n[:, None]).exp_().mul_(-g[:, None])
            else:
                d = kept.mul_((-g / n)[:, None])
            d.scatter_add_(1, t[:, None], g[:, None])
            if slope is not None:
                d *= slope
            if of_bias is not None:
                of_bias += d.sum(0)
            narrow = d.to(weight.dtype)
            torch.mm(narrow, weight, out=out)
            if of_weight is not None and of_weight.dtype == narrow.dtype:
                of_weight.addmm_(narrow.t(), h)
            elif of_weight is not None:
                of_weight += narrow.t() @ h
        return (
            of_hidden,
            None if of_weight is None or running is not None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(weight.dtype),
            *[None] * 4,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float) -> Tensor:
    """[n, D] -> [n, V] float32, a buffer that may be overwritten."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits.div_(softcap).tanh_().mul_(softcap) if softcap else logits
