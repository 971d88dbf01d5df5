"""All layers of a decode step in one call; see `slimrl.model.layer` for what a layer computes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from slimrl.kernels.native import call

STORES = ("keys", "values", "prompt_keys", "prompt_values")
Stores = tuple[Mapping[int, Tensor], Mapping[int, Tensor], Mapping[int, Tensor], Mapping[int, Tensor]]
"""The cache by layer: keys and values of drawn tokens [slots, K, C, d], keys and values of prompts [prompts, K, P, d]."""


class LayerWeights(NamedTuple):
    """Of one layer: norms [D], matrices [outputs, inputs], biases [outputs]."""

    norm: Tensor
    query: Tensor
    query_bias: Tensor | None
    key: Tensor
    key_bias: Tensor | None
    value: Tensor
    value_bias: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    gate_norm: Tensor
    gate: Tensor
    gate_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*LayerWeights._fields, *STORES)),
        ("window", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("epsilon", "gate_epsilon", "scaling")),
    )


class _Sizes(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "rows", "hidden", "heads", "key_heads", "width", "intermediate", "columns", "prompt_width", "time",
        )
    )  # fmt: skip


class _Places(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("prompt", "lengths", "ages"))


@dataclass(frozen=True)
class DecodeLayer:
    """One layer: its weights and constants."""

    weights: LayerWeights
    epsilons: tuple[float, float]
    """Of the norm before attention and of that before the gate."""
    scaling: float
    window: int
    """Width of a sliding window, 0 for none."""


class DecodeTable:
    """The addresses that a decode step of all layers reads and writes; valid while weights and stores stay where they are."""

    def __init__(self, layers: Mapping[int, DecodeLayer], norm: tuple[Tensor, float], stores: Stores) -> None:
        """`layers` by their number, in the order in which they follow each other; `norm`: the last one's weight and epsilon."""
        self.norm, self.epsilon = norm
        first = next(iter(layers.values())).weights
        _, self.key_heads, self.columns, self.width = next(iter(stores[0].values())).shape
        self.prompt_width = next(iter(stores[2].values())).shape[2]
        self.heads, self.intermediate = len(first.query) // self.width, len(first.gate)
        assert len(first.key) == self.key_heads * self.width
        self.layers = (_Layer * len(layers))(
            *(
                _Layer(
                    *map(_address, layer.weights),
                    *(_address(store[index]) for store in stores),
                    layer.window,
                    *layer.epsilons,
                    layer.scaling,
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


def decode_layers(x: Tensor, rotary: tuple[Tensor, Tensor], table: DecodeTable, rows: CachedRows) -> Tensor:
    """x [n, D] float32, cosine and sine [n, d] in the weights' type -> [n, D] in that type, behind the last norm.

    Computes bit for bit what the layers compute one after another with the other kernels, and overwrites x. All tensors are
    contiguous and on the CPU.
    """
    assert rotary[0].shape == rotary[1].shape == (len(x), table.width)
    sizes = _Sizes(
        *x.shape,
        table.heads,
        table.key_heads,
        table.width,
        table.intermediate,
        table.columns,
        table.prompt_width,
        rows.time,
    )
    prompt, lengths, ages = (part.contiguous() for part in (rows.prompt, rows.lengths, rows.ages))
    places = _Places(prompt.data_ptr(), lengths.data_ptr(), ages.data_ptr())
    out = torch.empty_like(x, dtype=table.norm.dtype)
    call(
        "decode_layers", table.norm.dtype,
        table.layers, len(table.layers), sizes, places, x, *rotary, table.norm, table.epsilon, out,
    )  # fmt: skip
    return out


def _address(tensor: Tensor | None) -> int | None:
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()
