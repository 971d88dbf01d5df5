"""Inverse-CDF draws: the token is a function of the distribution and of one given uniform number."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Tokens whose probabilities are summed before the search. Sums of blocks are accumulated in float64: over a vocabulary
of 150,000 a float32 running sum would drop the tail."""
BELOW_ONE = 1 - 2.0**-40
"""Keeps a target under the sum it is a share of, whatever the rounding, so that what is found has a probability."""


@torch.no_grad()
def draw(logits: Tensor, uniform: Tensor, *, temperature: float, greedy: bool) -> tuple[Tensor, Tensor]:
    """float32 logits [N, V], uniform [N] float64 in [0, 1) -> token ids [N] and their log-probabilities [N] in nats.

    The log-probability is under softmax(logits / temperature), also for greedy choices. Overwrites `logits`.
    """
    if temperature != 1.0:
        logits /= temperature
    best = logits.argmax(-1, keepdim=True) if greedy else None
    logits -= logits.amax(-1, keepdim=True)
    weights = logits.exp_()
    sums = _block_sums(weights)
    running = sums.cumsum(-1)
    token = _search(weights, sums, running, uniform[:, None]) if best is None else best
    return token.squeeze(-1), (weights.gather(-1, token) / running[:, -1:]).log().float().squeeze(-1)


def _block_sums(weights: Tensor) -> Tensor:
    """[N, V] -> [N, ceil(V / BLOCK)] float64."""
    whole = weights.shape[1] // BLOCK * BLOCK
    parts = [weights[:, :whole].reshape(len(weights), -1, BLOCK).sum(-1)] if whole else []
    if whole < weights.shape[1]:
        parts.append(weights[:, whole:].sum(-1, keepdim=True))
    return torch.cat(parts, dim=1).double()


def _search(weights: Tensor, sums: Tensor, running: Tensor, uniform: Tensor) -> Tensor:
    """[N, V], block sums and their running sum, [N, 1] -> [N, 1]: the first token whose running sum exceeds the target."""
    target = uniform * BELOW_ONE * running[:, -1:]
    # The bounds are for logits that are not numbers: their log-probability says so, to whoever reads it.
    block = torch.searchsorted(running, target, right=True).clamp_(max=running.shape[1] - 1)
    mass = sums.gather(-1, block)
    into = 1 - (running.gather(-1, block) - target) / mass
    vocabulary = weights.shape[1]
    places = block * BLOCK + torch.arange(min(BLOCK, vocabulary), device=weights.device)
    inside = weights.gather(-1, places.clamp(max=vocabulary - 1)).double()
    if vocabulary % BLOCK:
        inside.masked_fill_(places >= vocabulary, 0.0)
    inside = inside.cumsum(-1)
    # The block's own running sum is rounded otherwise than its float32 sum, so the target is taken as a share of it.
    found = torch.searchsorted(inside, into.clamp(min=0) * BELOW_ONE * inside[:, -1:], right=True)
    return places.gather(-1, found.clamp_(max=places.shape[1] - 1)).clamp_(max=vocabulary - 1)
