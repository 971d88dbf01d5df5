"""Attention of packed rows, whose tokens stand one after another on one axis, a group's prompt once.

One pass over the keys of a span for the queries of all heads that share them, forward and backward. Arithmetic is float32.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimrl.kernels.native import call, lanes, takes

MOST_SHARED = 16
"""Query heads that may share a key head."""


@dataclass(frozen=True)
class Spans:
    """The rows of N packed tokens. A span sees its prefix, and itself causally; each token is in one span."""

    table: Tensor
    """[spans, 4] long: start and length of the span, start and length of its prefix."""
    groups: Tensor
    """[groups + 1] long: where each group's spans begin in the table. Spans of a group that have a prefix have the same, and
    the prefix itself comes first among them."""


@dataclass(frozen=True)
class SpanAttention:
    """The way in which the queries of packed tokens attend."""

    spans: Spans
    scaling: float
    """Factor of the scores."""
    window: int
    """Width of a sliding window, 0 for none."""


class _Sizes(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "key_heads", "width", "window", "query", "key", "value", "out")),
        ("scaling", ctypes.c_float),
    )


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """True where the kernels take these: [N, H, d], [N, K, d] twice."""
    (_, heads, width), key_heads = query.shape, key.shape[1]
    fits = key.shape == value.shape and key.shape[-1] == width
    fits = fits and heads % key_heads == 0 and heads // key_heads <= MOST_SHARED
    return fits and takes(query, key, value) and width % lanes() == 0


def packed_attention(query: Tensor, key: Tensor, value: Tensor, how: SpanAttention) -> tuple[Tensor, Tensor]:
    """query [N, H, d], key and value [N, K, d] -> attention [N, H, d] and log-normalizers [N, H] float32.

    Tensors are dense in their last two dimensions.
    """
    out = query.new_empty(query.shape)
    normalizers = query.new_empty(query.shape[:2], dtype=torch.float32)
    table, groups = how.spans.table, how.spans.groups
    sizes = _sizes(query, key, value, out, how)
    call("packed_forward", query.dtype, query, key, value, out, normalizers, table, groups, len(groups) - 1, sizes)
    return out, normalizers


def packed_attention_backward(
    slope: Tensor, saved: tuple[Tensor, ...], how: SpanAttention
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value under `slope` [N, H, d]; `saved` is these three and the two results, in order."""
    query, key, value, out, normalizers = saved
    of_query, of_key, of_value = (tensor.new_empty(tensor.shape) for tensor in (query, key, value))
    table, groups = how.spans.table, how.spans.groups
    call(
        "packed_backward", query.dtype,
        query, key, value, out, slope.contiguous(), normalizers, of_query, of_key, of_value,
        table, groups, len(groups) - 1, _sizes(query, key, value, out, how),
    )  # fmt: skip
    return of_query, of_key, of_value


class PackedAttention(torch.autograd.Function):
    """`packed_attention` with its gradient, for layers that are not fused."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, how: SpanAttention) -> Tensor:
        query, key, value = (_dense(tensor) for tensor in (query, key, value))
        out, normalizers = packed_attention(query, key, value, how)
        ctx.save_for_backward(query, key, value, out, normalizers)
        ctx.how = how
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return (*packed_attention_backward(slope, ctx.saved_tensors, ctx.how), None)


def _dense(tensor: Tensor) -> Tensor:
    """The same with heads and widths next to each other."""
    return tensor if tensor.stride()[1:] == (tensor.shape[2], 1) else tensor.contiguous()


def _sizes(query: Tensor, key: Tensor, value: Tensor, out: Tensor, how: SpanAttention) -> _Sizes:
    (_, heads, width), key_heads = query.shape, key.shape[1]
    strides = (tensor.stride(0) for tensor in (query, key, value, out))
    return _Sizes(heads, key_heads, width, how.window, *strides, how.scaling)
