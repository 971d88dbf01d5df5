"""Faster ways to compute what torch computes as well. Without it everything works and is slower, and
`model.dtype=auto` is float32 on a CPU.

It knows modules and tensors, and nothing of policies, caches or losses.
"""

from __future__ import annotations

from torch import nn

from slimrl.kernels.embedding import use_summed_embeddings
from slimrl.kernels.linear import speed_up_linear


def speed_up(model: nn.Module) -> None:
    """Let a model on a CPU use the room's layers; weights, names and what is saved stay as they are."""
    speed_up_linear(model)
    use_summed_embeddings(model)
