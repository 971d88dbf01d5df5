"""Inverse-CDF draws: the token is a function of the distribution and of one given uniform number."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512
"""Tokens whose probabilities are summed before the search. Sums of blocks are accumulated in float64: over a vocabulary
of 150,000 a float32 running sum would drop the tail."""


@torch.no_grad()
def draw(logits: Tensor, uniform: Tensor, *, temperature: float, greedy: bool) -> tuple[Tensor, Tensor]:
    """float32 logits [N, V], uniform [N] float64 -> token ids [N] and their log-probabilities [N] in nats.

    The log-probability is under softmax(logits / temperature), also for greedy choices. Overwrites `logits`.
    """
    if temperature != 1.0:
        logits /= temperature
    best = logits.argmax(-1, keepdim=True) if greedy else None
    logits -= logits.amax(-1, keepdim=True)
    weights = logits.exp()
    running = _block_sums(weights).cumsum(-1)
    token = _search(weights, running, uniform[:, None]) if best is None else best
    return token.squeeze(-1), (logits.gather(-1, token) - running[:, -1:].log().float()).squeeze(-1)


def _block_sums(weights: Tensor) -> Tensor:
    """[N, V] -> [N, ceil(V / BLOCK)] float64."""
    whole = weights.shape[1] // BLOCK * BLOCK
    parts = [weights[:, :whole].reshape(len(weights), -1, BLOCK).sum(-1)] if whole else []
    if whole < weights.shape[1]:
        parts.append(weights[:, whole:].sum(-1, keepdim=True))
    return torch.cat(parts, dim=1).double()


def _search(weights: Tensor, running: Tensor, uniform: Tensor) -> Tensor:
    """[N, V], running block sums, [N, 1] in [0, 1) -> [N, 1]: the first token whose running sum exceeds the target."""
    target = _below(uniform * running[:, -1:], running[:, -1:])
    block = torch.searchsorted(running, target, right=True)
    end = running.gather(-1, block)
    before = torch.where(block == 0, 0.0, running.gather(-1, (block - 1).clamp(min=0)))
    vocabulary = weights.shape[1]
    places = block * BLOCK + torch.arange(min(BLOCK, vocabulary), device=weights.device)
    inside = weights.gather(-1, places.clamp(max=vocabulary - 1)).double().masked_fill_(places >= vocabulary, 0.0)
    inside = inside.cumsum(-1)
    # The block's own running sum is rounded otherwise than its float32 sum, so the target is taken as a share of it.
    share = _below((target - before) / (end - before) * inside[:, -1:], inside[:, -1:])
    return places.gather(-1, torch.searchsorted(inside, share, right=True))


def _below(target: Tensor, total: Tensor) -> Tensor:
    """The target, strictly less than the total: what is then found has a probability above 0."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
