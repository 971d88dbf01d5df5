"""All layers of a decode step in one call; see `slimrl.model.layer` for what a layer computes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrl.kernels.native import address, call

WEIGHTS = (
    *(
        f"{name}{part}"
        for name in ("query", "key", "value", "out", "gate", "up", "down")
        for part in ("", "_bias", "_a", "_b")
    ),
    "before_attention", "behind_attention", "before_mlp", "behind_mlp", "query_norm", "key_norm",
)  # fmt: skip
"""Of a layer, in the order in which stack.cpp has them; see `slimrl.model.families.Weights`."""
STORES = ("keys", "values", "prompt_keys", "prompt_values")
Stores = tuple[Mapping[int, Tensor], Mapping[int, Tensor], Mapping[int, Tensor], Mapping[int, Tensor]]
"""The cache by layer, as `decode_attention` takes it: keys and values of drawn tokens, keys and values of prompts."""


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*WEIGHTS, *STORES)),
        *((name, ctypes.c_int64) for name in ("window", "turn", "gelu")),
        *((name, ctypes.c_float) for name in ("epsilon", "offset", "scaling", "lora_scaling")),
    )


class _Sizes(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "rows", "hidden", "heads", "key_heads", "width", "intermediate", "columns", "prompt_width", "query_norm",
            "key_norm", "rank", "time",
        )
    )  # fmt: skip


class _Places(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("prompt", "lengths", "ages"))


class _Turn(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("cosine", "sine"))


@dataclass(frozen=True)
class DecodeLayer:
    """One layer: its weights and constants."""

    weights: Mapping[str, Tensor | None]
    """By the names of WEIGHTS; None for what it does not have."""
    window: int
    """Width of a sliding window, 0 for none."""
    turn: int
    """The place of its rotary table among those of a step; -1 for none."""
    gelu: bool
    """The activation of the gate is the tanh form of gelu, not silu."""
    epsilon: float
    """Of all norms."""
    offset: float
    """Added to the weights of all norms."""
    scaling: float
    """Factor of attention's scores."""
    lora_scaling: float
    """Factor of all its adapters."""

    @property
    def shapes(self) -> tuple[torch.Size | None, ...]:
        """Of the weights."""
        return tuple(None if weight is None else weight.shape for weight in self.weights.values())


class DecodeTable:
    """The addresses that a decode step of all layers reads and writes; valid while weights and stores stay where they are."""

    def __init__(self, layers: Mapping[int, DecodeLayer], norm: Tensor, stores: Stores) -> None:
        """`layers` by their number, in the order in which they follow each other; `norm` [D] is the last one's weight."""
        self.norm = norm
        self.held = tuple(layers.values())
        """So that no weight is freed while its address is kept."""
        first = next(iter(layers.values())).weights
        outputs = {name: 0 if weight is None else len(weight) for name, weight in first.items()}
        _, key_heads, columns, width = next(iter(stores[0].values())).shape
        prompt_width = next(iter(stores[3].values())).shape[2]
        assert outputs["key"] == key_heads * width
        ranks = {len(w) for name, w in first.items() if name.endswith("_a") and w is not None}
        assert len({layer.shapes for layer in self.held}) == 1, "layers differ in size"
        assert len(ranks) <= 1, "adapters differ in rank"
        assert all(part.dtype == norm.dtype for store in stores for part in store.values())
        self.width = width
        self.sizes = (
            len(norm), outputs["query"] // width, key_heads, width, outputs["gate"], columns, prompt_width,
            outputs["query_norm"], outputs["key_norm"], max(ranks, default=0),
        )  # fmt: skip
        """Of a `_Sizes`, between rows and time."""
        self.layers = (_Layer * len(layers))(
            *(
                _Layer(
                    *(address(layer.weights[name]) for name in WEIGHTS),
                    *(address(store[index]) for store in stores),
                    *(int(constant) for constant in (layer.window, layer.turn, layer.gelu)),
                    *(layer.epsilon, layer.offset, layer.scaling, layer.lora_scaling),
                )
                for index, layer in layers.items()
            )
        )


@dataclass(frozen=True)
class CachedRows:
    """The rows of one decode step, as `decode_attention` takes them, and the stores of all layers."""

    stores: Stores
    prompt: Tensor
    """[n] long; likewise `lengths` and `ages`."""
    lengths: Tensor
    ages: Tensor
    time: int
    tables: dict[object, DecodeTable]
    """By trunk: made at its first step, and kept as long as the stores."""


def decode_layers(x: Tensor, rotary: Sequence[tuple[Tensor, Tensor]], table: DecodeTable, rows: CachedRows) -> Tensor:
    """x [n, D] float32, tables of cosine and sine [n, d] in the weights' type or float32 -> [n, D] in the weights' type, behind
    the last norm.

    Computes bit for bit what the layers compute one after another with the other kernels, and overwrites x. All tensors are
    contiguous and on the CPU.
    """
    assert all(part.shape == (len(x), table.width) for pair in rotary for part in pair)
    dtype = table.norm.dtype
    sizes = _Sizes(len(x), *table.sizes, rows.time)
    prompt, lengths, ages = (part.contiguous() for part in (rows.prompt, rows.lengths, rows.ages))
    places = _Places(prompt.data_ptr(), lengths.data_ptr(), ages.data_ptr())
    turns = (_Turn * len(rotary))(*(_Turn(*map(address, pair)) for pair in rotary))
    wide, out = int(rotary[0][0].dtype != dtype), torch.empty_like(x, dtype=dtype)
    call("decode_layers", dtype, table.layers, len(table.layers), sizes, places, x, turns, wide, table.norm, out)
    return out
