"""Per-token log-probability and entropy from hidden states, in row chunks, never a [rows, tokens, vocabulary] tensor.

Logits of a chunk are recomputed in the backward pass, so the peak is a few chunks whatever the number of tokens.
Everything after the head is float32: log-probabilities are of softmax(logits / temperature), what was sampled from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimrl.algorithm.kl import Divergence
from slimrl.kernels.embedding import running_gradient

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


@dataclass(frozen=True)
class Reference:
    """The frozen policy at the same positions, for divergences over the whole vocabulary."""

    head: Head
    hidden: Tensor
    """[N, D'] hidden states after its final norm."""
    divergence: Divergence


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


def token_statistics(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    reference: Reference | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `token_logprobs`, and the divergence [N] from a reference (0 without one); all three carry gradient.

    One pass over the chunks makes all of them, in forward and in backward; no gradient reaches the reference.
    """
    size = max(1, chunk_elements // head.vocabulary)
    found: tuple[Tensor, Tensor, Tensor] = _TokenStatistics.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, temperature, head.softcap, size, reference
    )
    return found


@torch.no_grad()
def mean_probabilities(
    head: Head, hidden: Tensor, *, temperature: float, chunk_elements: int = CHUNK_ELEMENTS
) -> Tensor:
    """hidden [N, D] -> [V] float64 sum over the N positions of softmax(logits / temperature), in chunks."""
    total = torch.zeros(head.vocabulary, dtype=torch.float64, device=hidden.device)
    for part in torch.split(hidden, max(1, chunk_elements // head.vocabulary)):
        total += torch.softmax(head(part) / temperature, -1).sum(0, dtype=torch.float64)
    return total


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
        head = _HeadGradient(ctx.weight, weight, bias, wanted=ctx.needs_input_grad[1])
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
            head.add(d, h, out)
        return (of_hidden, *head.result(), *[None] * 4)


class _TokenStatistics(torch.autograd.Function):
    """As `_TokenLogprobs`, with gradients of the entropy and of a divergence as well.

    With H the entropy: dH / dz = -p (log p + H). A divergence knows its own slope.
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
        reference: Reference | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = []
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            logp = _log_softmax(_logits(hidden[rows], weight, bias, softcap), temperature)
            chosen = logp.gather(-1, targets[rows][:, None]).squeeze(-1)
            entropy = -(logp.exp() * logp).sum(-1)
            apart = torch.zeros_like(chosen)
            if reference is not None:
                apart, _ = reference.divergence(logp, _reference_chunk(reference, rows, temperature))
            found.append((chosen, entropy, apart))
        empty = hidden.new_zeros(0, dtype=torch.float32)
        logprobs, entropies, divergences = (
            (torch.cat([empty, *part]) for part in zip(*found, strict=True)) if found else (empty,) * 3
        )
        ctx.save_for_backward(hidden, weight, bias, targets, entropies)
        ctx.weight, ctx.temperature, ctx.softcap, ctx.size, ctx.reference = (
            weight,
            temperature,
            softcap,
            size,
            reference,
        )
        return logprobs, entropies, divergences

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_entropy: Tensor, of_divergence: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropies = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        head = _HeadGradient(ctx.weight, weight, bias, wanted=ctx.needs_input_grad[1])
        for start in range(0, len(hidden), ctx.size):
            rows = slice(start, start + ctx.size)
            slopes = _slopes(
                _logits(hidden[rows], weight, bias, ctx.softcap), targets[rows], entropies[rows], gradient[rows],
                of_entropy[rows], of_divergence[rows], ctx, rows,
            )  # fmt: skip
            head.add(slopes, hidden[rows], of_hidden[rows])
        return (of_hidden, *head.result(), *[None] * 5)


def _slopes(
    logits: Tensor,
    targets: Tensor,
    entropies: Tensor,
    of_logprobs: Tensor,
    of_entropy: Tensor,
    of_divergence: Tensor,
    ctx: Any,
    rows: slice,
) -> Tensor:
    """[n, V] gradient of a chunk's logits; a function of its own, so that its buffers are gone before the next chunk."""
    bend = 1 - (logits / ctx.softcap) ** 2 if ctx.softcap else None
    logp = _log_softmax(logits, ctx.temperature)
    d: Tensor | None = None
    if ctx.reference is not None:
        _, d = ctx.reference.divergence(logp, _reference_chunk(ctx.reference, rows, ctx.temperature))
        d *= of_divergence[:, None]
    p = logp.exp()
    logp += entropies[:, None]
    slope: Tensor = logp.mul_(of_entropy[:, None]).add_(of_logprobs[:, None]).mul_(p).neg_()
    slope = slope if d is None else d.add_(slope)
    slope.scatter_add_(1, targets[:, None], of_logprobs[:, None])
    slope /= ctx.temperature
    return slope if bend is None else slope.mul_(bend)


class _HeadGradient:
    """The head's gradient over chunks: one float32 buffer, or the weight's own running one."""

    def __init__(self, parameter: Tensor, weight: Tensor, bias: Tensor | None, *, wanted: bool) -> None:
        self._weight = weight
        self._running = running_gradient(parameter) if wanted else None
        self._sum = self._running
        if self._running is None and wanted:
            self._sum = torch.zeros_like(weight, dtype=torch.float32)
        self._bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None

    def add(self, d: Tensor, hidden: Tensor, of_hidden: Tensor) -> None:
        """A chunk's slopes [n, V] and hidden states [n, D]; writes the hidden states' gradient to `of_hidden`."""
        if self._bias is not None:
            self._bias += d.sum(0)
        narrow = d.to(self._weight.dtype)
        torch.mm(narrow, self._weight, out=of_hidden)
        if self._sum is not None and self._sum.dtype == narrow.dtype:
            self._sum.addmm_(narrow.t(), hidden)
        elif self._sum is not None:
            self._sum += narrow.t() @ hidden

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of weight and bias for autograd; None for a weight whose running gradient has it already."""
        apart = self._sum is not None and self._running is None
        of_weight = self._sum.to(self._weight.dtype) if apart and self._sum is not None else None
        return of_weight, None if self._bias is None else self._bias.to(self._weight.dtype)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """In place: [n, V] log-probabilities at this temperature."""
    if temperature != 1:
        logits /= temperature
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def _reference_chunk(reference: Reference, rows: slice, temperature: float) -> Tensor:
    with torch.no_grad():
        head = reference.head
        return _log_softmax(_logits(reference.hidden[rows], head.weight, head.bias, head.softcap), temperature)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float) -> Tensor:
    """[n, D] -> [n, V] float32, a buffer that may be overwritten."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits.div_(softcap).tanh_().mul_(softcap) if softcap else logits
