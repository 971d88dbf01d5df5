"""The families of transformers' decoder layers that can be fused: what differs between them, and where their weights are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimrl.kernels.linear import AdaptedLinear, Adapter, FewRowsLinear
from slimrl.kernels.native import has_kernels, lanes
from slimrl.kernels.packed import can_attend
from slimrl.model.lora import NAME, adapted_layers


@dataclass(frozen=True)
class Norms:
    """The RMSNorms of a family, by the names that its layer gives them; an empty name stands for none."""

    before_attention: str = "input_layernorm"
    behind_attention: str = ""
    """Before the result is added to the residual stream."""
    before_mlp: str = "post_attention_layernorm"
    behind_mlp: str = ""
    of_queries: bool = False
    """`q_norm` and `k_norm`, as wide as a head or as all heads, before rotary positions."""
    offset: float = 0.0
    """Added to the weights of all norms."""


FAMILIES = {
    "LlamaDecoderLayer": Norms(),
    "MistralDecoderLayer": Norms(),
    "Qwen2DecoderLayer": Norms(),
    "Qwen3DecoderLayer": Norms(of_queries=True),
    "SmolLM3DecoderLayer": Norms(),
    "Olmo2DecoderLayer": Norms(
        before_attention="",
        behind_attention="post_attention_layernorm",
        before_mlp="",
        behind_mlp="post_feedforward_layernorm",
        of_queries=True,
    ),
    "Gemma3DecoderLayer": Norms(
        behind_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        behind_mlp="post_feedforward_layernorm",
        of_queries=True,
        offset=1.0,
    ),
}
"""Layers of attention with grouped keys and a gated MLP. Their sizes, biases, windows, rotary positions and activation are read
from the modules; `probe.fuse_layers` compares what each model gives."""
GELU = {"SiLU": False, "SiLUActivation": False, "GELUTanh": True}
"""Activations of gates, by class: True for the tanh form of gelu."""


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class Weights(NamedTuple):
    """The weights of one layer. A product's bias and its adapter's factors follow it, and norms have the names of `Norms`."""

    query: Tensor
    query_bias: Tensor | None
    query_a: Tensor | None
    query_b: Tensor | None
    key: Tensor
    key_bias: Tensor | None
    key_a: Tensor | None
    key_b: Tensor | None
    value: Tensor
    value_bias: Tensor | None
    value_a: Tensor | None
    value_b: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    out_a: Tensor | None
    out_b: Tensor | None
    gate: Tensor
    gate_bias: Tensor | None
    gate_a: Tensor | None
    gate_b: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    up_a: Tensor | None
    up_b: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    down_a: Tensor | None
    down_b: Tensor | None
    before_attention: Tensor | None
    behind_attention: Tensor | None
    before_mlp: Tensor | None
    behind_mlp: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None

    def linear(self, name: str, lora_scaling: float) -> AdaptedLinear:
        """One of the products; `lora_scaling` is that of its adapter."""
        weight, bias, a, b = (getattr(self, f"{name}{part}") for part in ("", "_bias", "_a", "_b"))
        return AdaptedLinear(weight, bias, None if a is None else Adapter(a, b, lora_scaling))


@dataclass(frozen=True)
class Design:
    """All that a layer's arithmetic depends on beside its weights."""

    norms: Norms
    index: int
    """The layer's number."""
    head_width: int
    scaling: float
    """Factor of attention's scores."""
    epsilon: float
    """Of all norms."""
    rotary: bool
    gelu: bool
    """The activation of the gate is the tanh form of gelu, not silu."""
    window: int = 0
    """Width of a sliding window, 0 for none."""
    lora_scaling: float = 1.0
    """Of all adapters."""


def weights_of(layer: Any, norms: Norms) -> Weights:
    """The weights of a layer of which `norms` are the norms."""
    # Read from the modules' own tables: 30 look-ups by attribute are a part of a small model's decode step that shows.
    own = layer._modules
    attention, mlp = own["self_attn"]._modules, own["mlp"]._modules
    found: list[Tensor | None] = []
    for part in (*(attention[name] for name in ATTENTION), *(mlp[name] for name in MLP)):
        base = part._modules.get("base_layer", part)
        factors = (None, None) if base is part else (part.lora_A[NAME].weight, part.lora_B[NAME].weight)
        found += (base._parameters["weight"], base._parameters["bias"], *factors)
    for name in (norms.before_attention, norms.behind_attention, norms.before_mlp, norms.behind_mlp):
        found.append(own[name]._parameters["weight"] if name else None)
    for name in ("q_norm", "k_norm"):
        found.append(attention[name]._parameters["weight"] if norms.of_queries else None)
    return Weights(*found)  # type: ignore[arg-type]


def fusible(trunk: Any) -> list[nn.Module]:
    """The layers of a model, and the norm behind them, where all of them can be fused; else none."""
    layers, norm = list(getattr(trunk, "layers", [])), getattr(trunk, "norm", None)
    if not layers or norm is None or not all(_fits(layer, norm) for layer in layers):
        return []
    return [*layers, norm]


def design_of(layer: Any, window: int) -> Design:
    """The design of a layer that can be fused."""
    attention, norms = layer.self_attn, FAMILIES[type(layer).__name__]
    adapted = [part for _, part in adapted_layers(layer)]
    return Design(
        norms=norms,
        index=attention.layer_idx,
        head_width=attention.head_dim,
        scaling=attention.scaling,
        epsilon=_epsilon(_norms(layer)[0]),
        rotary=bool(getattr(attention, "use_rope", True)),
        gelu=GELU[type(layer.mlp.act_fn).__name__],
        window=window,
        lora_scaling=adapted[0].scaling[NAME] if adapted else 1.0,
    )


def _is_product(part: Any) -> bool:
    """True for a linear layer, with or without an adapter of two plain factors."""
    return type(getattr(part, "base_layer", part)) in (nn.Linear, FewRowsLinear)


def _adapters_fit(layer: Any) -> bool:
    """True where the adapters of a layer are alike, and the kernels take their rank."""
    adapted = [part for _, part in adapted_layers(layer)]
    alike = {(part.r[NAME], part.scaling[NAME], part.lora_A[NAME].weight.dtype) for part in adapted}
    return not alike or (len(alike) == 1 and all(t == torch.float32 or rank % 2 == 0 for rank, _, t in alike))


def _norms(layer: Any) -> Sequence[Any]:
    """The norms that a layer has."""
    norms, attention = FAMILIES[type(layer).__name__], layer.self_attn
    names = (norms.before_attention, norms.behind_attention, norms.before_mlp, norms.behind_mlp)
    found = [getattr(layer, name) for name in names if name]
    return [*found, attention.q_norm, attention.k_norm] if norms.of_queries else found


def _epsilon(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


def _fits(layer: Any, last: Any) -> bool:
    """True where a layer, before the norm `last`, is made of what the kernels compute."""
    kind = type(layer)
    if kind.__name__ not in FAMILIES or not kind.__module__.startswith("transformers.models."):
        return False
    norms = [*_norms(layer), last]
    if len({type(norm) for norm in norms}) > 1 or len({_epsilon(norm) for norm in norms}) > 1:
        return False
    mlp, attention = layer.mlp, layer.self_attn
    products = [*(getattr(attention, name) for name in ATTENTION), *(getattr(mlp, name) for name in MLP)]
    if type(mlp.act_fn).__name__ not in GELU or not all(map(_is_product, products)) or not _adapters_fit(layer):
        return False
    weight = products[0].weight
    types = {(p.dtype, p.device.type) for p in (*layer.parameters(), last.weight)}
    if types != {(weight.dtype, "cpu")} or not has_kernels(weight.dtype):
        return False
    widths = (*(len(norm.weight) for norm in norms), mlp.gate_proj.out_features, attention.head_dim // 2)
    query, key = (
        weight.new_empty(1, part.out_features).unflatten(1, (-1, attention.head_dim)) for part in products[:2]
    )
    return all(width % lanes() == 0 for width in widths) and can_attend(query, key, key)
