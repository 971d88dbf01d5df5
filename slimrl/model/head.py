"""Per-token log-probability and entropy from hidden states, in row chunks, never a [rows, tokens, vocabulary] tensor.

Logits of a chunk are recomputed in the backward pass, so the peak is a few chunks for any number of tokens.
Everything after the head is float32: log-probabilities are of softmax(logits / temperature), what was sampled from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimrl.algorithm.kl import Divergence
from slimrl.kernels.embedding import running_sum
from slimrl.kernels.linear import wide_product
from slimrl.kernels.native import has_kernels, takes
from slimrl.kernels.vocabulary import kept_gradient, logit_gradient, summarize

CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Logits held at once: 64 MiB in float32 on a CPU and 512 on a GPU, twice that at the peak. On a CPU half as many cost up to 1.3
times as much time with a vocabulary of 152k, and twice as many gain 0 to 6 % where memory stays with the process. A GPU reads and
writes the sum of the weight's gradient once a chunk: an update of the shape of Qwen2.5-0.5B takes 2.1 s on an H200 with 2**24,
1.6 with 2**27, and no less with 2**28."""
PART = 1024
"""Outputs whose weights' gradients are made at once in a narrow type on a CPU: they are added to the sum from its cache."""
Gradients = tuple[Tensor, ...]
"""[N] each: of the log-probabilities, the entropies and the divergences."""


@dataclass(frozen=True)
class Head:
    """Hidden states to logits: the output embedding and, where the config names one, the soft cap of final logits."""

    projection: nn.Module
    softcap: float = 0.0
    """logits become softcap * tanh(logits / softcap); 0 for none."""
    outputs: int | None = None
    """Of the projection's outputs the first so many; None for all."""

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @property
    def weight(self) -> Tensor:
        """[V, D]."""
        weight = self.projection.weight
        assert isinstance(weight, Tensor)
        return weight if self.outputs is None else weight[: self.outputs]

    @property
    def bias(self) -> Tensor | None:
        """[V], where the projection has one."""
        bias = getattr(self.projection, "bias", None)
        assert bias is None or isinstance(bias, Tensor)
        return bias if bias is None or self.outputs is None else bias[: self.outputs]

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> float32 logits [..., V]."""
        if torch.is_grad_enabled() or hidden.ndim != 2 or torch.compiler.is_compiling():
            logits: Tensor = self.projection(hidden)[..., : self.outputs].float()
        else:
            logits = wide_product(hidden, self.weight, self.bias)
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits


@dataclass(frozen=True)
class Reference:
    """The frozen policy at the same positions, for divergences over the whole vocabulary."""

    head: Head
    hidden: Tensor
    """[N, D'] hidden states after its final norm."""
    divergence: Divergence


def token_logprobs(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    with_entropy: bool = True,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor]:
    """hidden [N, D], targets [N] long -> log-probability [N] and entropy [N] in nats, float32.

    The log-probability carries gradient; the entropy is a measurement and carries none. It is 0, and not computed, unless
    `with_entropy`.
    """
    size = _chunk_size(head, hidden, chunk_elements)
    keeps = len(hidden) <= size and not head.softcap
    chunks = _Logprobs(temperature, head.softcap, size, keeps, with_entropy, head.weight.dtype)
    logprobs, entropy, _ = _values(head, hidden, targets, chunks)
    return logprobs, entropy


def token_statistics(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    reference: Reference | None = None,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `token_logprobs`, and the divergence [N] from a reference (0 without one); all three carry gradient.

    One pass over the chunks makes all of them, in forward and in backward; no gradient reaches the reference.
    """
    size = _chunk_size(head, hidden, chunk_elements)
    return _values(head, hidden, targets, _Statistics(temperature, head.softcap, size, reference))


def _chunk_size(head: Head, hidden: Tensor, elements: int | None) -> int:
    """Positions of a chunk of so many logits, by default the device's."""
    return max(1, (elements or CHUNK_ELEMENTS[hidden.device.type]) // head.vocabulary)


def _values(
    head: Head, hidden: Tensor, targets: Tensor, chunks: _Logprobs | _Statistics
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor]
    found = _HeadFunction.apply(hidden, head.weight, head.bias, targets, chunks)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def mean_probabilities(head: Head, hidden: Tensor, *, temperature: float, chunk_elements: int | None = None) -> Tensor:
    """hidden [N, D] -> [V] float64 sum over the N positions of softmax(logits / temperature), in chunks."""
    total = torch.zeros(head.vocabulary, dtype=torch.float64, device=hidden.device)
    for part in torch.split(hidden, _chunk_size(head, hidden, chunk_elements)):
        total += torch.softmax(head(part) / temperature, -1).sum(0, dtype=torch.float64)
    return total


class _Chunk(NamedTuple):
    """The values of n positions."""

    logprobs: Tensor
    entropy: Tensor
    divergence: Tensor
    saved: Tensor
    """[n] for the backward pass."""
    weights: Tensor | None = None
    """[n, V] for the backward pass, where one chunk is all."""


@dataclass(frozen=True)
class _Logprobs:
    """Values of chunks of which only the log-probability carries gradient.

    With p = softmax(z), z = logits / temperature: d logprob[t] / d z = onehot(t) - p. So a chunk needs one buffer of logits,
    which becomes their gradient, where autograd would hold four.
    """

    temperature: float
    softcap: float
    size: int
    """Positions of a chunk."""
    keeps: bool
    """There is one chunk: what p is made of is kept, and nothing is made again (nor can it be differentiated twice)."""
    with_entropy: bool
    dtype: torch.dtype
    """Of the head's weights."""
    differentiable = False

    def forward(self, logits: Tensor, targets: Tensor, rows: slice) -> _Chunk:
        """Overwrites the chunk's `logits` [n, V]; `targets` are those of all positions."""
        if takes(logits):
            logprobs, entropy, normalizer = summarize(logits, targets[rows], self.temperature, keep=self.keeps)
            entropy = entropy if self.with_entropy else torch.zeros_like(entropy)  # which costs the kernel nothing
            return _Chunk(logprobs, entropy, torch.zeros_like(logprobs), normalizer, logits if self.keeps else None)
        if self.temperature != 1:
            logits /= self.temperature
        top = logits.amax(-1)
        logits -= top[:, None]
        chosen = logits.gather(-1, targets[rows][:, None]).squeeze(-1)
        weights = logits.exp() if self.with_entropy else logits.exp_()
        total = weights.sum(-1)
        entropy = torch.zeros_like(total)
        if self.with_entropy:
            entropy = total.log() - logits.mul_(weights).sum(-1) / total
        normalizer = total if self.keeps else top + total.log()
        kept = weights if self.keeps else None
        return _Chunk(chosen - total.log(), entropy, torch.zeros_like(entropy), normalizer, kept)

    def backward(self, logits: Tensor, targets: Tensor, rows: slice, saved: Tensor, gradients: Gradients) -> Tensor:
        """[n, V] gradient of the chunk's logits, in their buffer or in the weights' type; `logits` may be the kept weights."""
        bend = 1 - (logits / self.softcap) ** 2 if self.softcap else None
        gradient = gradients[0][rows] / self.temperature
        if takes(logits) and has_kernels(self.dtype):
            in_place = bend is not None or self.dtype == torch.float32
            d = logits if in_place else torch.empty_like(logits, dtype=self.dtype)
            chunk = (logits, targets[rows], saved[rows], gradient, d)
            if self.keeps:
                kept_gradient(*chunk)
            else:
                logit_gradient(*chunk, self.temperature)
            return d if bend is None else d.mul_(bend)
        if self.keeps:
            d = logits.mul_((-gradient / saved[rows])[:, None])
        else:
            if self.temperature != 1:
                logits /= self.temperature
            d = logits.sub_(saved[rows][:, None]).exp_().mul_(-gradient[:, None])
        d.scatter_add_(1, targets[rows][:, None], gradient[:, None])
        return d if bend is None else d.mul_(bend)


@dataclass(frozen=True)
class _Statistics:
    """Values of chunks of which entropy and divergence carry gradient too.

    With H the entropy: dH / dz = -p (log p + H). A divergence knows its own slope.
    """

    temperature: float
    softcap: float
    size: int
    reference: Reference | None
    differentiable = True

    def forward(self, logits: Tensor, targets: Tensor, rows: slice) -> _Chunk:
        logp = _log_softmax(logits, self.temperature)
        chosen = logp.gather(-1, targets[rows][:, None]).squeeze(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        divergence = torch.zeros_like(chosen)
        if self.reference is not None:
            divergence, _ = self.reference.divergence(logp, _reference_chunk(self.reference, rows, self.temperature))
        return _Chunk(chosen, entropy, divergence, entropy)

    def backward(self, logits: Tensor, targets: Tensor, rows: slice, saved: Tensor, gradients: Gradients) -> Tensor:
        """[n, V] gradient of the chunk's logits; overwrites them."""
        of_logprobs, of_entropy, of_divergence = (gradient[rows] for gradient in gradients)
        bend = 1 - (logits / self.softcap) ** 2 if self.softcap else None
        logp = _log_softmax(logits, self.temperature)
        d: Tensor | None = None
        if self.reference is not None:
            _, d = self.reference.divergence(logp, _reference_chunk(self.reference, rows, self.temperature))
            d *= of_divergence[:, None]
        p = logp.exp()
        logp += saved[rows][:, None]
        slope: Tensor = logp.mul_(of_entropy[:, None]).add_(of_logprobs[:, None]).mul_(p).neg_()
        slope = slope if d is None else d.add_(slope)
        slope.scatter_add_(1, targets[rows][:, None], of_logprobs[:, None])
        slope /= self.temperature
        return slope if bend is None else slope.mul_(bend)


class _HeadFunction(torch.autograd.Function):
    """Chunks of logits, turned into values and forgotten; made again in the backward pass and turned into their gradient.

    The weight's gradient is summed in one buffer over all chunks.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, values: _Logprobs | _Statistics
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Results of all chunks are there before the first: small tensors that outlive a chunk would lie in the room of its
        # logits, and the next chunk's, which then do not fit there, would make the heap grow by as much every time.
        results = [torch.empty(len(hidden), dtype=torch.float32, device=hidden.device) for _ in range(4)]
        kept: Tensor | None = None
        for rows in _chunks(hidden, values.size):
            *found, kept = values.forward(_logits(hidden[rows], weight, bias, values.softcap), targets, rows)
            for result, value in zip(results, found, strict=True):
                result[rows] = value
            del found, value
        logprobs, entropy, divergence, saved = results
        ctx.save_for_backward(hidden, weight, bias, targets, saved, kept)
        ctx.weight, ctx.values = weight, values
        if not values.differentiable:
            ctx.mark_non_differentiable(entropy, divergence)
        return logprobs, entropy, divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, saved, kept = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        head = _HeadGradient(ctx.weight, weight, bias, wanted=ctx.needs_input_grad[1])
        for rows in _chunks(hidden, ctx.values.size):
            logits = _logits(hidden[rows], weight, bias, ctx.values.softcap) if kept is None else kept
            head.add(ctx.values.backward(logits, targets, rows, saved, gradients), hidden[rows], of_hidden[rows])
            del logits  # before the next chunk's are made
        return (of_hidden, *head.result(), None, None)


def _chunks(hidden: Tensor, size: int) -> Iterator[slice]:
    """At least one chunk, which is empty where there is no position."""
    return (slice(start, start + size) for start in range(0, max(1, len(hidden)), size))


class _HeadGradient:
    """The head's gradient over chunks: one float32 buffer, or the weight's own running one."""

    def __init__(self, parameter: Tensor, weight: Tensor, bias: Tensor | None, *, wanted: bool) -> None:
        running = running_sum(parameter) if wanted else None
        self._weight, self._is_running = weight, running is not None
        self._sum = torch.zeros_like(weight, dtype=torch.float32) if wanted and running is None else running
        self._bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, d: Tensor, hidden: Tensor, of_hidden: Tensor) -> None:
        """A chunk's slopes [n, V] and hidden states [n, D]; writes the hidden states' gradient to `of_hidden`."""
        if self._bias is not None:
            self._bias += d.sum(0, dtype=torch.float32)
        narrow = d.to(self._weight.dtype)
        torch.mm(narrow, self._weight, out=of_hidden)
        if self._sum is not None and self._sum.dtype == narrow.dtype:
            self._sum.addmm_(narrow.t(), hidden)
        elif self._sum is not None:
            size = min(PART if d.device.type == "cpu" else self._sum.shape[0], self._sum.shape[0])
            product = hidden.new_empty(size, hidden.shape[1])
            for part, slope in zip(torch.split(self._sum, size), torch.split(narrow, size, 1), strict=True):
                part += torch.mm(slope.t(), hidden, out=product[: len(part)])

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of weight and bias for autograd; None for a weight whose running gradient has it already."""
        dtype = self._weight.dtype
        of_weight = None if self._sum is None or self._is_running else self._sum.to(dtype)
        return of_weight, None if self._bias is None else self._bias.to(dtype)


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
    logits = wide_product(hidden, weight, bias)
    return logits.div_(softcap).tanh_().mul_(softcap) if softcap else logits
