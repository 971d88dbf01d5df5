"""The architectures that can be sampled and trained, decided from the module itself when it is loaded.

SlimRL runs a model through an attention function and a cache of its own, so it must know all that attention does and
all that passes from token to token. What it cannot carry is refused here, by what a model is made of and by what it passes
to attention; the comparison of logits in `probe` is the last check and the weakest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from slimrl.errors import SettingsError

STATE_PARAMETERS = ("A_log", "dt_bias", "time_decay")
"""Names of parameters in state-space and linear-attention layers."""
PLAIN_LAYERS = ("full_attention", "sliding_attention")
PLAIN_CACHES = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
"""transformers' caches of keys and values alone; a dummy belongs to a layer that reads another layer's."""


@dataclass(frozen=True)
class LayerAttention:
    """Sizes of the tensors that one layer hands to attention."""

    heads: int
    kv_heads: int
    key_width: int
    value_width: int
    window: int
    """Tokens that a sliding-window layer sees, itself included; 0 where it sees all."""


def text_decoder(model: PreTrainedModel) -> nn.Module:
    """The module from ids to hidden states: the model without its head, and without towers for images or sound."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return decoder if isinstance(decoder, nn.Module) else model.base_model


def freeze_towers(model: PreTrainedModel) -> int:
    """Take all that text does not pass through, such as a tower for images, out of what is trained; returns how many weights."""
    read = {id(p) for part in (text_decoder(model), model.get_output_embeddings()) for p in part.parameters()}
    towers = [p.requires_grad_(False) for p in model.parameters() if id(p) not in read]
    return sum(p.numel() for p in towers)


def refuse_states(model: PreTrainedModel) -> None:
    """Raises SettingsError for layers that carry more than keys and values from token to token, or attend otherwise."""
    kind, config = type(model).__name__, model.config.get_text_config()
    carried = "which SlimRL's sampler, whose cache holds keys and values, does not carry from token to token"
    for name, module in text_decoder(model).named_modules():
        if isinstance(module, nn.Conv1d):
            raise SettingsError(f"{kind} has convolutions over tokens ({name}), {carried}")
        for parameter, _ in module.named_parameters(recurse=False):
            if parameter in STATE_PARAMETERS:
                raise SettingsError(f"{kind} has a recurrent state ({name}.{parameter}), {carried}")
    for layer, what in enumerate(getattr(config, "layer_types", None) or ()):
        if what not in PLAIN_LAYERS:
            raise SettingsError(
                f"{kind} has layers of the kind {what} (layer {layer}), and SlimRL computes full and sliding-window attention"
            )
    for layer, cache in enumerate(_caches(model)):
        if type(cache).__name__ not in PLAIN_CACHES:
            raise SettingsError(f"{kind} keeps a {type(cache).__name__} in layer {layer}, {carried}")


def _caches(model: PreTrainedModel) -> list[Any]:
    """The cache layers that transformers would make; none where it cannot tell."""
    try:
        return list(DynamicCache(config=model.config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def demand_plain_layers(
    model: PreTrainedModel, recorded: Mapping[int, LayerAttention], calls: int
) -> tuple[LayerAttention, ...]:
    """The layers in order, from what a forward pass with this many calls of attention has recorded of them.

    Raises SettingsError unless every layer called it once, with equally many key heads and with the window that its
    configuration has.
    """
    kind, count = type(model).__name__, model.config.get_text_config().num_hidden_layers
    missing = sorted(set(range(count)) - set(recorded))
    if missing:
        raise SettingsError(
            f"{kind} computes attention by itself in {len(missing)} of {count} layers (layer {missing[0]} first), not through "
            "transformers' attention interface, so SlimRL cannot reach it"
        )
    if calls != count or len(recorded) != count:
        raise SettingsError(
            f"{kind} calls attention {calls} times for its {count} layers, and SlimRL keeps keys and values once a layer"
        )
    layers = tuple(recorded[layer] for layer in range(count))
    if len({layer.kv_heads for layer in layers}) > 1:
        raise SettingsError(
            f"{kind} has {layers[0].kv_heads} key heads in some layers and other numbers in others, and SlimRL's cache "
            "has one number for all"
        )
    for number, (layer, cache) in enumerate(zip(layers, _caches(model), strict=False)):
        window = getattr(cache, "sliding_window", None) or 0
        if type(cache).__name__ != "DummyLayer" and window != layer.window:
            raise SettingsError(
                f"{kind} has an attention window of {window} tokens in layer {number} but hands {layer.window} to attention, so "
                "SlimRL cannot apply it"
            )
    return layers


def context_of(config: Any) -> tuple[int, str]:
    """The longest prompt plus completion that a text configuration allows, in tokens, and a note where that is less than it
    names.

    LongRoPE takes other rotary factors for a whole forward call as soon as one row of it is longer than
    `original_max_position_embeddings`, so what a row gives would depend on its company.
    """
    named = int(getattr(config, "max_position_embeddings", None) or 0)
    named = named if named > 0 else 2**31  # some families name no bound, or a negative number
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    limits = [
        kind.get("original_max_position_embeddings") or named for kind in kinds if kind.get("rope_type") == "longrope"
    ]
    context = min(map(int, limits), default=named)
    if context >= named:
        return named, ""
    return context, (
        f"the context is {context:,} tokens, not {named:,}: LongRoPE changes its factors there for all rows that are computed "
        "together"
    )
