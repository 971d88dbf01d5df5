"""Per-token log-probability and entropy from hidden states, in row chunks, never a [rows, tokens, vocabulary] tensor.

Logits of a chunk are recomputed in the backward pass, so the peak is a few chunks whatever the number of tokens.
Everything after the head is float32: log-probabilities are of softmax(logits / temperature), what was sampled from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**24
"""Logits held at once: 64 MiB in float32, about four times that at the peak of a backward pass."""


@dataclass(frozen=True)
class Head:
    """Hidden states to logits: the output embedding and, where the config names one, the soft cap of final logits."""

    projection: nn.Module
    softcap: float = 0.0
    """logits become softcap * tanh(logits / softcap); 0 for none."""

    @property
    def vocabulary(self) -> int:
        weight = self.projection.weight
        assert isinstance(weight, Tensor)
        return weight.shape[0]

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

    def rows(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(head(h) / temperature, dim=-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, t[:, None]).squeeze(-1), entropy

    size = max(1, chunk_elements // head.vocabulary)
    parts = [
        checkpoint(rows, h, t, use_reentrant=False, preserve_rng_state=False) if torch.is_grad_enabled() else rows(h, t)
        for h, t in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    ]
    if not parts:
        return hidden.sum(-1).float(), hidden.detach().sum(-1).float()
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
