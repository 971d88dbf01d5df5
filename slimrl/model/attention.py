"""Attention through transformers' own interface into plans that we own.

A model's layers compute queries, keys and values as they always do; `attend` then hands them to the plan that was
passed to the forward call as `plan=`. A plan knows where keys live and which of them a query may see. So the sampler
(keys in a preallocated cache) and the trainer (plain causal rows) call one module with one set of weights.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

HOOK = "slimrl"


class AttentionPlan(Protocol):
    """Where keys live and who sees them, for one forward call."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> Tensor:
        """query [N, H, T, d], key and value [N, K, T, d] with K dividing H -> [N, H, T, d].

        `window` is the width of a sliding-window layer (a query sees itself and window - 1 keys before), else None.
        """
        ...


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 the interface passes it; masks are the plan's
    *,
    scaling: float,
    plan: AttentionPlan,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function registered with transformers. Keywords that we do not know (a soft cap, attention sinks) change logits,
    so a model that needs them is refused by the probe in `loading`.
    """
    layer = module.layer_idx
    assert isinstance(layer, int)
    out = plan.attend(layer, query, key, value, scaling=scaling, window=sliding_window)
    return out.transpose(1, 2), None


AttentionInterface.register(HOOK, attend)


class CausalRows:
    """Rows padded on the right, each attending causally to itself; padding needs no mask, as no real query sees it."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> Tensor:
        del layer
        length = query.shape[2]
        gqa = query.shape[1] != key.shape[1]
        if window is None or length <= window:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=gqa)
        distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
        seen = (distance >= 0) & (distance < window)
        return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=gqa)


class Prefill(CausalRows):
    """Causal rows that remember the keys and values of every layer, to be copied into cache slots."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> Tensor:
        self.keys[layer], self.values[layer] = key, value
        return super().attend(layer, query, key, value, scaling=scaling, window=window)
