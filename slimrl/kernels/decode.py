"""The parts of a decode step that torch's CPU libraries are slow at.

There a decode step reads much memory for little arithmetic: the weights, for a few rows, and each row's own keys and
values. Two Sapphire Rapids cores that read 30 GB/s, float32: the library behind torch reads the weights of 16 rows at 8
GB/s (896 x 4,864), `few_rows` at 24; the operations of one row's attention take turns over memory where
`decode_attention` is one pass. In bfloat16 there is half as much to read, and torch's library compiles a kernel of its own
for every number of rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slimrl.kernels.native import address, call, lanes


class _Part(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "y")), ("outputs", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("factor", "low")), ("rank", ctypes.c_int64),
    )  # fmt: skip


class Product(NamedTuple):
    """One of the products of the same rows."""

    weight: Tensor
    """[outputs, inputs]."""
    bias: Tensor | None = None
    """[outputs]."""
    factor: Tensor | None = None
    """[outputs, rank], and with it `low` [rows, rank]: low factor^T is added."""
    low: Tensor | None = None


def products(x: Tensor, linear: Sequence[Product], *, widen: bool = False) -> list[Tensor]:
    """x [rows, inputs] -> x W^T + b + low factor^T [rows, outputs] for each product, all of one type on the CPU.

    Results are of the same type, or float32 if asked to `widen`. In bfloat16 the number of inputs, and a rank, are even.
    """
    x = x.contiguous()
    rows, inputs = x.shape
    narrow = x.dtype == torch.bfloat16
    dense = [Product(product.weight.contiguous(), *map(_dense, product[1:])) for product in linear]
    ranks = [0 if product.low is None else product.low.shape[1] for product in dense]
    assert not narrow or all(number % 2 == 0 for number in (inputs, *ranks))
    found = [x.new_empty(rows, len(w), dtype=torch.float32 if widen else x.dtype) for w, *_ in dense]
    parts = (_Part * len(dense))(
        *(
            _Part(*map(address, (w, b, y)), len(w), *map(address, (factor, low)), rank)
            for (w, b, factor, low), y, rank in zip(dense, found, ranks, strict=True)
        )
    )
    call("products_widened" if widen and narrow else "products", x.dtype, parts, len(dense), x, inputs, rows)
    return found


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def few_rows(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """weight [outputs, inputs], x [rows, inputs], bias [outputs] -> x W^T + b [rows, outputs]; see `products`."""
    return products(x, [Product(weight, bias)])[0]


recorded_few_rows = torch.library.custom_op("slimrl::product", mutates_args=())(few_rows)
"""The same as an operator that torch.compile knows, which costs more to call."""


@recorded_few_rows.register_fake
def _(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return x.new_empty(x.shape[0], weight.shape[0])


def block_shape(keys: Tensor) -> tuple[int, ...]:
    """The shape of the `key_blocks` of keys [n, K, P, d]."""
    n, heads, length, width = keys.shape
    return n, heads, -(-length // lanes()), width * lanes()


def key_blocks(keys: Tensor) -> Tensor:
    """keys [n, K, P, d] -> [n, K, P / lanes, d * lanes]: blocks of as many keys as a vector has lanes, P rounded up, each block
    transposed so that one number (in bfloat16 two) of all its keys is a vector. Blocks are filled up with 0.
    """
    n, heads, length, width = keys.shape
    shape, pair = block_shape(keys), 4 // keys.element_size()
    filled = keys.new_zeros(n, heads, shape[2] * lanes(), width)
    filled[:, :, :length] = keys
    return filled.view(n, heads, shape[2], lanes(), width // pair, pair).transpose(3, 4).reshape(shape)


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    prompt_keys: Tensor,
    prompt_values: Tensor,
    prompt: Tensor,
    lengths: Tensor,
    ages: Tensor,
    time: int,
    window: int,
    scaling: float,
) -> Tensor:
    """One step of n rows: writes key and value [n, K, 1, d] into column time mod C of keys and values [slots, K, C, d], then
    lets each query [n, H, 1, d] see its prompt and the columns of its age and younger -> [n, H, 1, d].

    Row i's prompt is the first lengths[i] places of the keys in prompt_keys[prompt[i]], which are `key_blocks`, and of
    prompt_values[prompt[i]] [prompts, K, P, d], and it fed ages[i] tokens before; `prompt`, `lengths`, `ages` [n] are long.
    `window` is a sliding window's width, 0 for none. All floats are of one type that the kernels take, and d is a multiple of
    `lanes()`. Scores and sums are float32. Rows of one prompt and length are computed together, each as it would be alone.
    """
    rows, heads, _, width = query.shape
    key_heads, columns = keys.shape[1:3]
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    prompt, lengths, ages = prompt.contiguous(), lengths.contiguous(), ages.contiguous()
    assert keys.shape == values.shape == (len(keys), key_heads, columns, width)
    assert key.shape == value.shape == (rows, key_heads, 1, width)
    places = prompt_values.shape[2]
    assert prompt_values.shape == (len(prompt_values), key_heads, places, width)
    assert prompt_keys.shape == block_shape(prompt_values)
    assert all(store.is_contiguous() for store in (keys, values, prompt_keys, prompt_values))
    out = torch.empty_like(query)
    call(
        "decode_attention", query.dtype,
        query, key, value, keys, values, prompt_keys, prompt_values, prompt, lengths, ages, out,
        rows, key_heads, columns, places, width, time, window, heads // key_heads, float(scaling),
    )  # fmt: skip
    return out


recorded_decode_attention = torch.library.custom_op("slimrl::decode_attention", mutates_args=("keys", "values"))(
    decode_attention
)
"""Likewise."""


@recorded_decode_attention.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)
