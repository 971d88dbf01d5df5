"""Attention through transformers' own interface into plans that we own.

A model's layers compute queries, keys and values as they always do; `attend` then hands them to the plan that was
passed to the forward call as `plan=`. A plan stores the keys and decides which of them a query may see. So the sampler
(keys in a preallocated cache) and the trainer (plain causal rows) call one module with one set of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from slimrl.kernels.packed import PackedAttention, SpanAttention, Spans, can_attend

HOOK = "slimrl"
HARMLESS = frozenset(
    {
        "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "dropout", "max_length_k", "max_length_q",
        "num_items_in_batch", "output_attentions", "output_hidden_states", "output_router_logits", "position_ids",
        "return_dict", "seq_idx", "use_cache",
    }
)  # fmt: skip
"""Keywords of the interface that change nothing here: they choose reports, describe packed rows (which the plan knows), or
act in training mode alone, which the module never enters."""


class UnsupportedAttentionError(Exception):
    """A layer asks for more than softmax attention over keys and values; the text continues after the model's name."""


class AttentionPlan(Protocol):
    """Stores keys and values, and decides which of them a query sees, for one forward call."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int) -> Tensor:
        """query [N, H, T, d], key and value [N, K, T, d] with K dividing H -> [N, H, T, d].

        `window` is the width of a sliding-window layer (a query sees itself and window - 1 keys before), 0 in other layers.
        """
        ...


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 the interface passes it; masks are the plan's
    *,
    plan: AttentionPlan | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function registered with transformers.

    Raises UnsupportedAttentionError for every keyword that is set and not known to be harmless (a soft cap, attention sinks, a
    position bias), since leaving it out would compute another model.
    """
    for name, setting in others.items():
        if setting is not None and name not in HARMLESS:
            shown = f"={setting}" if isinstance(setting, bool | int | float | str) else ""
            raise UnsupportedAttentionError(f"passes {name}{shown} to attention, which SlimRL does not compute")
    if is_causal is not None and not is_causal:
        raise UnsupportedAttentionError("attends to later tokens (is_causal=False), and SlimRL's attention is causal")
    layer = getattr(module, "layer_idx", None)
    if plan is None or not isinstance(layer, int):
        raise UnsupportedAttentionError(
            "does not hand the keywords of its forward call and the number of the layer on to attention"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = plan.attend(layer, query, key, value, scaling=scaling, window=sliding_window or 0)
    return out.transpose(1, 2), None


AttentionInterface.register(HOOK, attend)


class CausalRows:
    """Rows padded on the right, each attending causally to itself; padding needs no mask, as no real query sees it."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int) -> Tensor:
        del layer
        length = query.shape[2]
        gqa = query.shape[1] != key.shape[1]
        if not window or length <= window:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=gqa)
        distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
        seen = (distance >= 0) & (distance < window)
        return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=gqa)


@dataclass(frozen=True)
class Block:
    """Rows of similar length, attended to together; entries are places on the packed axis."""

    queries: Tensor
    """[R, Q] long."""
    keys: Tensor
    """[R, T] long: the row from its start."""
    first: Tensor | None
    """[R] long: where the first query stands in its row; None where queries and keys are the same whole rows."""


@dataclass(frozen=True)
class Blocks:
    """All queries of packed tokens, in blocks of rows."""

    blocks: Sequence[Block]
    outputs: Tensor
    """[N]: the place of each token's query among the queries of all blocks."""
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """By block and window width."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int) -> Tensor:
        """[N, heads, d] each -> [N, H, d]."""
        found = [self._rows(i, query, key, value, scaling=scaling, window=window) for i in range(len(self.blocks))]
        return torch.cat(found).index_select(0, self.outputs)

    def _rows(self, index: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int) -> Tensor:
        """Queries of one block: [N, heads, d] each -> [R * Q, H, d]."""
        block = self.blocks[index]
        q, k, v = (
            tensor.index_select(0, places.flatten()).view(*places.shape, *tensor.shape[1:]).transpose(1, 2)
            for tensor, places in ((query, block.queries), (key, block.keys), (value, block.keys))
        )
        whole = block.first is None and (not window or k.shape[2] <= window)
        out = scaled_dot_product_attention(
            q, k, v,
            attn_mask=None if whole else self._mask(index, window, q.dtype),
            is_causal=whole,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        return out.transpose(1, 2).flatten(0, 1)

    def _mask(self, index: int, window: int, dtype: torch.dtype) -> Tensor:
        """[R, 1, Q, T]: 0 where a query sees a key, else minus infinity; made once per window width."""
        if (index, window) not in self.masks:
            block = self.blocks[index]
            count, width = block.keys.shape
            first = block.keys.new_zeros(count) if block.first is None else block.first
            place = first[:, None] + torch.arange(block.queries.shape[1], device=first.device)
            # Queries that only fill a block stay inside it, for a row that sees no key would be NaN.
            place = place.clamp(max=width - 1)[:, :, None]
            key = torch.arange(width, device=first.device)
            hidden = (key > place) | (key <= place - window) if window else key > place
            mask = torch.zeros(hidden.shape, dtype=dtype, device=first.device).masked_fill(hidden, float("-inf"))
            self.masks[index, window] = mask[:, None]
        return self.masks[index, window]


@dataclass(frozen=True)
class PackedRows:
    """Rows on one axis of N tokens; see `packing`."""

    spans: Spans
    """Read by the compiled attention."""
    make_blocks: Callable[[], Blocks]

    @cached_property
    def blocks(self) -> Blocks:
        """Read by torch's own operations; made at their first use."""
        return self.make_blocks()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int) -> Tensor:
        """[1, heads, N, d] each; see `AttentionPlan`."""
        del layer
        by_token = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        if can_attend(*by_token):
            found: Tensor = PackedAttention.apply(*by_token, SpanAttention(self.spans, scaling, window))  # type: ignore[no-untyped-call]
        else:
            found = self.blocks.attend(*by_token, scaling=scaling, window=window)
        return found.transpose(0, 1)[None]


@dataclass(frozen=True)
class Prefill:
    """Packed rows whose keys and values are kept, [K, N, d] a layer, to be copied into a cache."""

    rows: PackedRows
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int) -> Tensor:
        self.keys[layer], self.values[layer] = key[0], value[0]
        return self.rows.attend(layer, query, key, value, scaling=scaling, window=window)
