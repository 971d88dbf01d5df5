"""Inverse-CDF draws: the token is a function of the distribution and of one given uniform number."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Probabilities held at once in float64 (128 MiB)."""


@torch.no_grad()
def draw(logits: Tensor, uniform: Tensor, *, temperature: float, greedy: bool) -> tuple[Tensor, Tensor]:
    """float32 logits [N, V], uniform [N] float64 -> token ids [N] and their log-probabilities [N] in nats.

    The log-probability is under softmax(logits / temperature), also for greedy choices. The cumulative sum is float64:
    over a vocabulary of 150,000 a float32 one would drop the tail.
    """
    size = max(1, CHUNK_ELEMENTS // logits.shape[1])
    tokens, chosen = [], []
    for rows, u in zip(torch.split(logits, size), torch.split(uniform, size), strict=True):
        logprobs = torch.log_softmax(rows / temperature, dim=-1)
        if greedy:
            token = rows.argmax(-1)
        else:
            cdf = logprobs.double().exp().cumsum(-1)
            token = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True).squeeze(-1)
            token = token.clamp(max=rows.shape[1] - 1)
        tokens.append(token)
        chosen.append(logprobs.gather(-1, token[:, None]).squeeze(-1))
    return torch.cat(tokens), torch.cat(chosen)
