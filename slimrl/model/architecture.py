"""Which architectures can be sampled and trained, decided from the module itself when it is loaded.

SlimRL runs a model through an attention function and a cache of its own, so it must know all that attention does and
all that passes from token to token. What it cannot carry is refused by what a model is made of and by what it passes to
attention; comparing logits, in float32, is the last check and the weakest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from slimrl.errors import SettingsError
from slimrl.machine.limits import is_out_of_memory
from slimrl.model.attention import HOOK, AttentionPlan, CausalRows, UnsupportedAttentionError
from slimrl.model.head import Head
from slimrl.model.precision import in_float32

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest logit, that two ways of computing the same float32 logits may show."""
PROBE_TOKENS = 12
STATE_PARAMETERS = ("A_log", "dt_bias", "time_decay")
"""What state-space and linear-attention layers call their parameters."""
PLAIN_LAYERS = ("full_attention", "sliding_attention")
PLAIN_CACHES = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
"""transformers' caches of keys and values alone; a dummy belongs to a layer that reads another layer's."""

Forward = Callable[[Tensor, Tensor, AttentionPlan], Tensor]
"""[N, T] ids, [N, T] positions and a plan -> [N, T, D] hidden states after the final norm."""


@dataclass(frozen=True)
class LayerAttention:
    """What one layer hands to attention."""

    heads: int
    kv_heads: int
    key_width: int
    value_width: int
    window: int | None
    """Tokens that a sliding-window layer sees, itself included; None where it sees all."""


class _Recorder:
    """Plain causal rows, and a note of what each layer handed over."""

    def __init__(self) -> None:
        self.rows = CausalRows()
        self.layers: dict[int, LayerAttention] = {}
        self.calls = 0

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> Tensor:
        self.calls += 1
        self.layers[layer] = LayerAttention(query.shape[1], key.shape[1], key.shape[-1], value.shape[-1], window)
        return self.rows.attend(layer, query, key, value, scaling=scaling, window=window)


def probe_tokens(vocabulary: int, context: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and positions [1, T] of a short row."""
    positions = torch.arange(min(PROBE_TOKENS, context), device=device)[None]
    return positions * 7 % vocabulary, positions


@torch.no_grad()
def install_hook(model: PreTrainedModel, head: Head, forward: Forward, context: int) -> tuple[LayerAttention, ...]:
    """Switch the model to SlimRL's attention and demand that it computes what the model's own attention does.

    Raises SettingsError with what the model has that cannot be carried: the sentence goes on after the model's name.
    """
    kind, half = type(model).__name__, model.dtype == torch.float16
    refuse_states(model)
    ids, positions = probe_tokens(head.vocabulary, context, model.device)
    with in_float32(model):
        own = _tried(lambda: model(input_ids=ids, use_cache=False).logits.float(), f"{kind} cannot be run")
        if not torch.isfinite(own).all():
            beyond = " (float16 has no number beyond 65,504)" if half else ""
            raise SettingsError(
                f"{kind} gives logits that are not finite, so its weights hold numbers that are not{beyond}"
            )
        own_attention = model.config._attn_implementation
        model.set_attn_implementation(HOOK)
        plan = _Recorder()
        hidden = _tried(
            lambda: forward(ids, positions, plan),
            f"{kind} does not hand attention over through transformers' interface",
        )
        layers = _demand_plain_layers(model, plan)
        ours = head(hidden)
        gap = relative_gap(ours, own)
        if not gap <= TOLERANCE:
            model.set_attn_implementation(own_attention)
            before = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.float()
            where = (
                "attends in a way that SlimRL's attention does not compute: its hidden states differ"
                if relative_gap(hidden.float(), before) > TOLERANCE
                else "computes its logits with more than the output embedding (a scale, a cap or a further layer), which "
                "SlimRL's head does not: they differ"
            )
            raise SettingsError(f"{kind} {where} (by {gap:.1e} of the largest logit, in float32)")
    if half and not torch.isfinite(head(forward(ids, positions, CausalRows()))).all():
        raise SettingsError(
            f"{kind} overflows in float16, whose largest number is 65,504; set model.dtype=bfloat16 or float32"
        )
    return layers


def refuse_states(model: PreTrainedModel) -> None:
    """Raises SettingsError for layers that carry more than keys and values from token to token, or attend otherwise."""
    kind, config = type(model).__name__, model.config.get_text_config()
    carried = "which SlimRL's sampler, whose cache holds keys and values, does not carry from token to token"
    for name, module in _decoder(model).named_modules():
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


def _decoder(model: PreTrainedModel) -> nn.Module:
    """The part that reads tokens, without towers for images or sound."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return decoder if isinstance(decoder, nn.Module) else model.base_model


def _caches(model: PreTrainedModel) -> list[Any]:
    """The cache layers that transformers would make; none where it cannot tell."""
    try:
        return list(DynamicCache(config=model.config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _demand_plain_layers(model: PreTrainedModel, plan: _Recorder) -> tuple[LayerAttention, ...]:
    """Every layer once, with equally many key heads and with the window that its configuration has."""
    kind, count = type(model).__name__, model.config.get_text_config().num_hidden_layers
    missing = sorted(set(range(count)) - set(plan.layers))
    if missing:
        raise SettingsError(
            f"{kind} computes attention by itself in {len(missing)} of {count} layers (layer {missing[0]} first), not through "
            "transformers' attention interface, so SlimRL cannot reach it"
        )
    if plan.calls != count or len(plan.layers) != count:
        raise SettingsError(
            f"{kind} calls attention {plan.calls} times for its {count} layers, and SlimRL keeps keys and values once a layer"
        )
    layers = tuple(plan.layers[layer] for layer in range(count))
    if len({layer.kv_heads for layer in layers}) > 1:
        raise SettingsError(
            f"{kind} has {layers[0].kv_heads} key heads in some layers and other numbers in others, and SlimRL's cache "
            "has one number for all"
        )
    for number, (layer, cache) in enumerate(zip(layers, _caches(model), strict=False)):
        window = getattr(cache, "sliding_window", None)
        if type(cache).__name__ != "DummyLayer" and window != layer.window:
            raise SettingsError(
                f"{kind} has an attention window of {window} tokens in layer {number} but hands {layer.window} to attention, so "
                "SlimRL cannot apply it"
            )
    return layers


def _tried(run: Callable[[], Tensor], what: str) -> Tensor:
    """The result of `run`; raises SettingsError that opens with `what` or with the reason that attention gave."""
    try:
        return run()
    except UnsupportedAttentionError as error:
        raise SettingsError(f"{what.split()[0]} {error}") from None
    except Exception as error:  # foreign code, which raises whatever it likes
        if is_out_of_memory(error):
            raise
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise SettingsError(f"{what} ({type(error).__name__}: {first[:200]})") from error


def relative_gap(ours: Tensor, own: Tensor) -> float:
    """Largest difference as a share of the largest number; not a number where one of them is not."""
    return float((ours - own).abs().max() / own.abs().max().clamp(min=1e-6))


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
    original = [
        int(kind.get("original_max_position_embeddings") or named)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    if min(original, default=named) >= named:
        return named, ""
    return min(original), (
        f"the context is {min(original):,} tokens, not {named:,}: LongRoPE changes its factors there for all rows that are "
        "computed together"
    )
