"""The decode steps of fused layers in one call for all of them, on a CPU.

A trunk of transformers makes masks and calls its layers one by one, each of which calls some ten kernels. For a few rows of
a small model these calls take longer than the kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimrl.kernels.linear import quick_rows
from slimrl.kernels.native import takes
from slimrl.kernels.stack import CachedRows, DecodeLayer, DecodeTable, decode_layers
from slimrl.model.layer import FusedLayer, in_front, layer_weights

FAMILY = ("LlamaModel", "MistralModel", "Qwen2Model")
"""transformers' trunks that are embedding, layers and norm, with nothing between."""


class FusedTrunk(nn.Module):
    """The forward pass of a trunk for decode steps, in front of its own class, which serves everything else."""

    def forward(self, input_ids: Tensor, position_ids: Tensor, **others: Any) -> Any:
        """[N, T] ids and positions -> hidden states [N, T, D] behind the last norm."""
        rows = getattr(others.get("plan"), "cached_rows", None)
        if isinstance(rows, CachedRows) and not torch.is_grad_enabled() and self._is_quick(input_ids):
            return _Output(self._decoded(input_ids, position_ids, rows))
        return super().forward(input_ids=input_ids, position_ids=position_ids, **others)

    def _is_quick(self, input_ids: Tensor) -> bool:
        trunk: Any = self
        weight = trunk.norm.weight
        fused = isinstance(trunk.layers[0], FusedLayer)
        return fused and takes(weight) and len(input_ids) in quick_rows(weight.dtype)

    def _decoded(self, input_ids: Tensor, position_ids: Tensor, rows: CachedRows) -> Tensor:
        trunk: Any = self
        embedded = trunk.embed_tokens(input_ids)
        cosine, sine = (part.flatten(0, 1).contiguous() for part in trunk.rotary_emb(embedded, position_ids))
        if self not in rows.tables:
            layers = {layer.self_attn.layer_idx: _decode_layer(layer) for layer in trunk.layers}
            rows.tables[self] = DecodeTable(
                layers, (trunk.norm.weight, float(trunk.norm.variance_epsilon)), rows.stores
            )
        x = embedded.flatten(0, 1).to(torch.float32, copy=True)  # the residual stream, which is overwritten
        return decode_layers(x, (cosine, sine), rows.tables[self], rows).view(embedded.shape)


class _Output(NamedTuple):
    """The part of a trunk's output that is read; transformers' own record takes longer than a kernel to make."""

    last_hidden_state: Tensor


def _decode_layer(layer: Any) -> DecodeLayer:
    epsilons = (layer.input_layernorm.variance_epsilon, layer.post_attention_layernorm.variance_epsilon)
    return DecodeLayer(layer_weights(layer), epsilons, layer.self_attn.scaling, layer.window)


def stack(trunk: nn.Module) -> None:
    """Let a trunk whose layers are fused decode in one call, if it is of a known family and all of a head is rotated."""
    known = type(trunk).__name__ in FAMILY and type(trunk).__module__.startswith("transformers.models.")
    parts: Any = trunk
    if known and 2 * len(parts.rotary_emb.inv_freq) == parts.layers[0].self_attn.head_dim:
        trunk.__class__ = in_front(FusedTrunk, type(trunk))
