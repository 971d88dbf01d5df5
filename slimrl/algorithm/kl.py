"""KL penalties between policy and reference, from sampled tokens or over the whole vocabulary: each kind is one row of a table.

As a loss term what counts is the gradient, and it is not that of the value: see docs/techniques.md.

Sampled kinds (Schulman 2020) take [B, L] log-ratios x = log policy - log reference of the sampled tokens and return [B, L].

Vocabulary kinds take rows of log-probabilities, log p of the policy and log q of the reference, [n, V] nats, and return
the value [n] and its derivative with respect to the policy's logits [n, V]. The rows are a chunk that the head has just
made, so what is needed once is done in place, and logq may be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrl.terms import GklWeights


def k1(x: Tensor) -> Tensor:
    """x: unbiased value, expected gradient 0."""
    return x


def k2(x: Tensor) -> Tensor:
    """x^2 / 2: biased value, gradient of KL(policy || reference)."""
    return x.square() / 2


def k3(x: Tensor) -> Tensor:
    """exp(-x) - 1 + x: unbiased, never negative, gradient of KL(reference || policy) (GRPO's choice)."""
    return (-x).exp() - 1 + x


def k3_k2(x: Tensor) -> Tensor:
    """The value of k3 with the gradient of k2."""
    square = k2(x)
    with torch.no_grad():
        value = k3(x)
    return value + square - square.detach()


SAMPLED: Mapping[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "k3_k2": k3_k2}
"""Kinds that need no more than the sampled tokens."""


def kl_penalty(kind: str, logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """[B, L] nats each -> [B, L], by a kind of SAMPLED."""
    return SAMPLED[kind](logprobs - reference_logprobs)


@dataclass(frozen=True)
class Divergence:
    """A kind of VOCABULARY and the parts of the generalized KL divergence, called as (logp, logq) -> (value, slope)."""

    kind: str
    """A key of VOCABULARY."""
    mse: float = 1.0
    """Factor of half the weighted variance; with policy weights its gradient is that of KL(policy || reference)."""
    cross_entropy: float = 1.0
    """Factor of the soft-label cross-entropy; its gradient is that of KL(reference || policy)."""
    weights: GklWeights = "policy"
    """p; or q^gamma, normalised; or the mean of q over many positions, to the gamma, normalised."""
    gamma: float = 1.0
    prior: Tensor | None = None
    """[V] the global weights, normalised."""

    def __call__(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        return VOCABULARY[self.kind].function(logp, logq, self)


def reverse_kl(logp: Tensor, logq: Tensor, _parts: Divergence | None = None) -> tuple[Tensor, Tensor]:
    """KL(policy || reference)."""
    difference = logp - logq
    p = logp.exp()
    value = (p * difference).sum(-1)
    return value, difference.sub_(value[:, None]).mul_(p)


def forward_kl(logp: Tensor, logq: Tensor, _parts: Divergence | None = None) -> tuple[Tensor, Tensor]:
    """KL(reference || policy)."""
    q = logq.exp()
    value = (q * (logq - logp)).sum(-1)
    return value, logp.exp().sub_(q)


def generalized_kl(logp: Tensor, logq: Tensor, parts: Divergence) -> tuple[Tensor, Tensor]:
    """The generalized KL divergence (arXiv:2503.08038).

    With d = log p - log q and weights w that sum to 1 and carry no gradient, the paper's weighted squared difference of all
    pairs of logits, a quarter of the sum over j and k of w_j w_k (d_j - d_k)^2, is half the variance of d under w, which
    takes V numbers and not V^2. The cross-entropy of the policy under the reference as soft labels is added to it.
    """
    p, q = logp.exp(), logq.exp()
    value = -parts.cross_entropy * (q * logp).sum(-1)
    slope = p.sub(q).mul_(parts.cross_entropy)
    if parts.mse:
        w = _weights(p, logq, parts)
        difference = logp - logq
        mean = (w * difference).sum(-1, keepdim=True)
        difference -= mean
        w *= difference
        value = value + parts.mse / 2 * (w * difference).sum(-1)
        # the variance does not change when all of d moves, so the normalizer of p has no part in it
        slope.add_(w, alpha=parts.mse)
    return value, slope


def _weights(p: Tensor, logq: Tensor, parts: Divergence) -> Tensor:
    """[n, V], rows that sum to 1."""
    if parts.weights == "policy":
        return p.clone()
    if parts.weights == "reference":
        return torch.softmax(parts.gamma * logq, -1)
    assert parts.prior is not None
    return parts.prior.expand_as(p).clone()


def global_weights(mean_probabilities: Tensor, gamma: float) -> Tensor:
    """[V] mean of the reference's probabilities over many positions -> weights that sum to 1."""
    return torch.softmax(gamma * mean_probabilities.clamp(min=torch.finfo(torch.float32).tiny).log(), -1)


@dataclass(frozen=True)
class Vocabulary:
    """A divergence over the whole vocabulary, and its cost."""

    function: Callable[[Tensor, Tensor, Divergence], tuple[Tensor, Tensor]]
    copies: int
    """Buffers of a chunk of logits that its backward pass holds (measured), for the memory plan."""


VOCABULARY: Mapping[str, Vocabulary] = {
    "reverse": Vocabulary(reverse_kl, copies=9),
    "forward": Vocabulary(forward_kl, copies=9),
    "gkl": Vocabulary(generalized_kl, copies=12),
}
