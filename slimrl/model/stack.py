"""The decode steps of fused layers in one call for all of them, on a CPU.

A trunk of transformers makes masks and calls its layers one by one, each of which calls some ten kernels. For a few rows of
a small model these calls take longer than the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimrl.kernels.linear import quick_rows
from slimrl.kernels.native import takes
from slimrl.kernels.stack import CachedRows, DecodeLayer, DecodeTable, decode_layers
from slimrl.model.families import Design, weights_of
from slimrl.model.layer import FusedLayer, in_front

TRUNKS = (
    "Gemma3TextModel", "LlamaModel", "MistralModel", "Olmo2Model", "Qwen2Model", "Qwen3Model", "SmolLM3Model",
)  # fmt: skip
"""transformers' trunks that are embedding, layers and norm, with nothing between."""
TURNS_BY_KIND = ("Gemma3TextModel",)
"""Those whose layers of different kinds (`layer_types`) have rotary tables of their own."""


class FusedTrunk(nn.Module):
    """The forward pass of a trunk for decode steps, in front of its own class, which serves everything else."""

    def forward(self, input_ids: Tensor | None = None, position_ids: Tensor | None = None, **others: Any) -> Any:
        """[N, T] ids and positions -> hidden states [N, T, D] behind the last norm."""
        rows = getattr(others.get("plan"), "cached_rows", None)
        if (
            isinstance(rows, CachedRows)
            and input_ids is not None
            and position_ids is not None
            and self._is_quick(input_ids)
        ):
            return _Output(self._decoded(input_ids, position_ids, rows))
        return super().forward(input_ids=input_ids, position_ids=position_ids, **others)

    def _is_quick(self, input_ids: Tensor) -> bool:
        trunk: Any = self
        weight = trunk.norm.weight
        fused = isinstance(trunk.layers[0], FusedLayer) and not torch.is_grad_enabled()
        return fused and takes(weight) and len(input_ids) in quick_rows(weight.dtype)

    def _decoded(self, input_ids: Tensor, position_ids: Tensor, rows: CachedRows) -> Tensor:
        trunk: Any = self
        embedded = trunk.embed_tokens(input_ids)
        if self not in rows.tables:
            kinds = _kinds(trunk)
            layers = {layer.design.index: _decode_layer(layer, kinds) for layer in trunk.layers}
            rows.tables[self] = DecodeTable(layers, trunk.norm.weight, rows.stores)
        turns = (trunk.rotary_emb(embedded, position_ids, *kind) for kind in dict.fromkeys(_kinds(trunk)))
        rotary = [tuple(part.flatten(0, 1).contiguous() for part in turn) for turn in turns]
        x = embedded.flatten(0, 1).to(torch.float32, copy=True)  # the residual stream, which is overwritten
        return decode_layers(x, rotary, rows.tables[self], rows).view(embedded.shape)


def _kinds(trunk: Any) -> list[tuple[str, ...]]:
    """By layer: the further arguments of the trunk's rotary embedding."""
    if type(trunk).__name__ in TURNS_BY_KIND:
        return [(kind,) for kind in trunk.config.layer_types]
    return [()] * len(trunk.layers)


class _Output(NamedTuple):
    """The part of a trunk's output that is read; transformers' own record takes longer than a kernel to make."""

    last_hidden_state: Tensor


def _decode_layer(layer: Any, kinds: Sequence[tuple[str, ...]]) -> DecodeLayer:
    design: Design = layer.design
    turn = list(dict.fromkeys(kinds)).index(kinds[design.index])
    return DecodeLayer(
        weights_of(layer, design.norms)._asdict(),
        window=design.window,
        turn=turn if design.rotary else -1,
        gelu=design.gelu,
        epsilon=design.epsilon,
        offset=design.norms.offset,
        scaling=design.scaling,
        lora_scaling=design.lora_scaling,
    )


def unstack(trunk: nn.Module) -> None:
    """Undo `stack`; other trunks are left alone."""
    if isinstance(trunk, FusedTrunk):
        trunk.__class__ = type(trunk).__mro__[2]  # behind the mixed class and the fused one


def stack(trunk: nn.Module) -> None:
    """Let a trunk whose layers are fused decode in one call, if it is of a known family and all of a head is rotated."""
    if type(trunk).__name__ not in TRUNKS or not type(trunk).__module__.startswith("transformers.models."):
        return
    parts: Any = trunk
    x, position = torch.zeros(1, 1, len(parts.norm.weight)), torch.zeros(1, 1, dtype=torch.long)
    widths = {parts.rotary_emb(x, position, *kind)[0].shape[-1] for kind in _kinds(parts)}
    # Adapters may be in some layers only.
    sizes = {tuple(p.shape for p in layer.parameters()) for layer in parts.layers}
    if widths == {parts.layers[0].self_attn.head_dim} and len(sizes) == 1:
        trunk.__class__ = in_front(FusedTrunk, type(trunk))
