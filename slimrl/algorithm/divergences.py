"""Full-vocabulary divergences between policy and reference at one position: their values and their slopes.

Every function takes rows of log-probabilities, log p of the policy and log q of the reference, [n, V] nats, and returns
the value [n] and its derivative with respect to the policy's logits [n, V]. The rows are a chunk that the head has just
made, so what is needed once is done in place.

Kullback-Leibler both ways, and the generalized KL divergence (arXiv:2503.08038): with d = log p - log q and weights w that
sum to 1 and carry no gradient, the paper's weighted squared difference of all pairs of logits, a quarter of the sum over
j and k of w_j w_k (d_j - d_k)^2, is half the variance of d under w, which takes V numbers and not V^2. To it comes the
cross-entropy of the policy under the reference as soft labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slimrl.terms import FullKl, GklWeights


@dataclass(frozen=True)
class Divergence:
    """Which divergence, and the parts of the generalized one."""

    kind: FullKl
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
        """[n, V] each -> value [n] in nats, slope [n, V]; logq may be overwritten."""
        match self.kind:
            case "reverse":
                return reverse_kl(logp, logq)
            case "forward":
                return forward_kl(logp, logq)
            case "gkl":
                return self._generalized(logp, logq)

    def _generalized(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        p, q = logp.exp(), logq.exp()
        value = -self.cross_entropy * (q * logp).sum(-1)
        slope = p.sub(q).mul_(self.cross_entropy)
        if self.mse:
            w = self._weights(p, logq)
            difference = logp - logq
            mean = (w * difference).sum(-1, keepdim=True)
            difference -= mean
            w *= difference
            value = value + self.mse / 2 * (w * difference).sum(-1)
            # the variance does not change when all of d moves, so the normalizer of p has no part in it
            slope.add_(w, alpha=self.mse)
        return value, slope

    def _weights(self, p: Tensor, logq: Tensor) -> Tensor:
        """[n, V], rows that sum to 1."""
        if self.weights == "policy":
            return p.clone()
        if self.weights == "reference":
            return torch.softmax(self.gamma * logq, -1)
        assert self.prior is not None
        return self.prior.expand_as(p).clone()


def reverse_kl(logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
    """KL(policy || reference)."""
    difference = logp - logq
    p = logp.exp()
    value = (p * difference).sum(-1)
    return value, difference.sub_(value[:, None]).mul_(p)


def forward_kl(logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
    """KL(reference || policy)."""
    q = logq.exp()
    value = (q * (logq - logp)).sum(-1)
    return value, logp.exp().sub_(q)


def global_weights(mean_probabilities: Tensor, gamma: float) -> Tensor:
    """[V] mean of the reference's probabilities over many positions -> weights that sum to 1."""
    return torch.softmax(gamma * mean_probabilities.clamp(min=torch.finfo(torch.float32).tiny).log(), -1)
