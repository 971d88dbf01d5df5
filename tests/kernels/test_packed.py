"""Attention over packed spans against a dense masked softmax in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from slimrl.kernels.native import has_kernels, lanes, paused
from slimrl.kernels.packed import (
    PackedAttention,
    SpanAttention,
    Spans,
    can_attend,
    packed_attention,
    packed_attention_backward,
)

pytestmark = pytest.mark.skipif(not lanes(), reason="no compiler, or no AVX2")
GROUPS = ((9, (30, 2, 1, 53)), (0, (5, 17)), (33, ()), (1, (1,)), (16, (16, 3)), (70, (20, 64)))
"""Length of each group's prompt, and of the rows behind it."""


def packed_spans() -> tuple[Spans, Tensor, Tensor]:
    """The spans of `GROUPS`; tokens by keys that a token sees without a window, and how far each key lies behind it."""
    tokens = sum(prompt + sum(rows) for prompt, rows in GROUPS)
    seen, distance = torch.zeros(tokens, tokens, dtype=torch.bool), torch.zeros(tokens, tokens, dtype=torch.long)
    table, begins, end = [], [0], 0
    for prompt, rows in GROUPS:
        start = end
        for count, prefix in ((prompt, 0), *((row, prompt) for row in rows)):
            if count:
                table.append([end, count, start, prefix])
            row = torch.cat([torch.arange(start, start + prefix), torch.arange(end, end + count)])
            place = torch.arange(len(row))
            apart = place[prefix:, None] - place
            seen[row[prefix:, None], row], distance[row[prefix:, None], row] = apart >= 0, apart
            end += count
        begins.append(len(table))
    return Spans(torch.tensor(table), torch.tensor(begins)), seen, distance


def dense(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """[N, H, d], [N, K, d] twice and [N, N] -> [N, H, d]."""
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scaling
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), value)


def tensors(heads: int, key_heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value, and the slope of the result."""
    generator = torch.Generator().manual_seed(heads + width)
    n = sum(prompt + sum(rows) for prompt, rows in GROUPS)
    return [torch.randn(n, h, width, generator=generator).to(dtype) for h in (heads, key_heads, key_heads, heads)]


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def demand_close(found: Tensor, wanted: Tensor, *, direct: bool) -> None:
    """Equal up to sums in float32 and to rounding; a narrow gradient also has the rounding of the narrow result in it."""
    if found.dtype == torch.float32:
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    elif direct:
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=torch.finfo(found.dtype).eps / 2 + 1e-5)
    else:
        assert (found - wanted).norm() <= torch.finfo(found.dtype).eps * wanted.norm()


def demand_attention(
    heads: int, key_heads: int, width: int, window: int, dtype: torch.dtype, scaling: float = 0.3
) -> None:
    spans, seen, distance = packed_spans()
    seen &= distance < (window or len(seen))
    query, key, value, slope = tensors(heads, key_heads, width, dtype)
    exact = [tensor.double().requires_grad_() for tensor in (query, key, value)]
    wanted = dense(*exact, seen, scaling)
    wanted.backward(slope.double())
    how = SpanAttention(spans, scaling, window)
    assert can_attend(query, key, value)
    found, normalizers = packed_attention(query, key, value, how)
    demand_close(found, wanted.detach(), direct=True)
    gradients = packed_attention_backward(slope, (query, key, value, found, normalizers), how)
    for gradient, tensor in zip(gradients, exact, strict=True):
        assert tensor.grad is not None
        assert gradient.dtype == dtype
        demand_close(gradient, tensor.grad, direct=False)


@pytest.mark.parametrize("window", [0, 1, 5, 40, 500])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (6, 2), (16, 1), (20, 2), (7, 1)])
def test_each_token_sees_its_row(heads: int, key_heads: int, window: int) -> None:
    demand_attention(heads, key_heads, 2 * lanes(), window, torch.float32)


@pytest.mark.parametrize("width", [8, 16, 32, 48, 64, 80, 112, 128, 256])
def test_every_width_of_heads(width: int) -> None:
    if width % lanes():
        pytest.skip("not a multiple of the processor's vectors")
    demand_attention(6, 2, width, 0, torch.float32, width**-0.5)


@pytest.mark.skipif(not has_kernels(torch.bfloat16), reason="the processor does not multiply bfloat16")
@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("width", [16, 64, 80])
def test_in_bfloat16(width: int, window: int) -> None:
    demand_attention(6, 2, width, window, torch.bfloat16, width**-0.5)


@pytest.mark.usefixtures("_two_threads")
def test_the_bits_depend_neither_on_threads_nor_on_the_call() -> None:
    spans, _, _ = packed_spans()
    how = SpanAttention(spans, 0.3, 0)
    query, key, value, slope = tensors(6, 2, 2 * lanes(), torch.float32)

    def results() -> list[Tensor]:
        found = packed_attention(query, key, value, how)
        return [*found, *packed_attention_backward(slope, (query, key, value, *found), how)]

    first = results()
    for threads in (2, 1):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(first, results(), strict=True))


def test_a_row_has_the_same_bits_in_every_company() -> None:
    """A group's rows are computed one after another, each as if it were the only one."""
    spans, _, _ = packed_spans()
    query, key, value, _ = tensors(6, 2, 2 * lanes(), torch.float32)
    whole, _ = packed_attention(query, key, value, SpanAttention(spans, 0.3, 0))
    first = Spans(spans.table[[0, 4]], torch.tensor([0, 2]))
    alone, _ = packed_attention(query, key, value, SpanAttention(first, 0.3, 0))
    for start, count in spans.table[[0, 4], :2].tolist():
        assert torch.equal(alone[start : start + count], whole[start : start + count])


@pytest.mark.parametrize("layout", ["by head", "one tensor", "apart"])
def test_tensors_that_do_not_lie_close_together(layout: str) -> None:
    """As `nn.Module`s hand them over: heads before tokens, or slices of what one product gave, or every second number."""
    spans, seen, _ = packed_spans()
    query, key, value, slope = tensors(6, 2, 2 * lanes(), torch.float32)
    exact = [tensor.double().requires_grad_() for tensor in (query, key, value)]
    wanted = dense(*exact, seen, 0.3)
    wanted.backward(slope.double())
    if layout == "by head":
        given = [tensor.transpose(0, 1).contiguous().requires_grad_() for tensor in (query, key, value)]
        laid = [tensor.transpose(0, 1) for tensor in given]
    elif layout == "one tensor":
        joined = torch.cat([query, key, value], dim=1).requires_grad_()
        given, laid = [joined], list(joined.split([6, 2, 2], dim=1))
    else:
        given = [tensor.repeat_interleave(2, -1).requires_grad_() for tensor in (query, key, value)]
        laid = [tensor[..., ::2] for tensor in given]
    found = PackedAttention.apply(*laid, SpanAttention(spans, 0.3, 0))
    torch.testing.assert_close(found.double(), wanted.detach(), atol=1e-5, rtol=1e-5)
    found.backward(slope)
    gradients = [tensor.grad for tensor in given if tensor.grad is not None]
    theirs = [tensor.grad for tensor in exact if tensor.grad is not None]
    if layout == "by head":
        gradients = [gradient.transpose(0, 1) for gradient in gradients]
    elif layout == "one tensor":
        theirs = [torch.cat(theirs, dim=1)]
    else:
        assert not any(gradient[..., 1::2].any() for gradient in gradients)
        gradients = [gradient[..., ::2] for gradient in gradients]
    for mine, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other, atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    """A key that outweighs all others by hundreds of nats gets all of the weight, and gradients stay numbers."""
    width = lanes()
    query, key, value = (torch.zeros(3, 1, width) for _ in range(3))
    query[..., 0], key[:, 0, 0], value[:, 0, 0] = 1.0, torch.tensor([500.0, -500.0, 0.0]), torch.tensor([1.0, 2.0, 3.0])
    how = SpanAttention(Spans(torch.tensor([[0, 3, 0, 0]]), torch.tensor([0, 1])), 1.0, 0)
    found, normalizers = packed_attention(query, key, value, how)
    assert found[:, 0, 0].tolist() == [1.0, 1.0, 1.0]
    assert normalizers[:, 0].tolist() == [500.0, 500.0, 500.0]
    slope = torch.ones_like(query)
    of_query, of_key, of_value = packed_attention_backward(slope, (query, key, value, found, normalizers), how)
    assert max(of_query.abs().max(), of_key.abs().max()) < 1e-30
    assert of_value[:, 0, 0].tolist() == pytest.approx([3, 0, 0], abs=1e-30)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_other_defaults_of_torch_do_not_matter(default: torch.dtype) -> None:
    spans, _, _ = packed_spans()
    query, key, value, _ = tensors(2, 2, lanes(), torch.float32)
    wanted = packed_attention(query, key, value, SpanAttention(spans, 0.3, 0))
    torch.set_default_dtype(default)
    try:
        found = packed_attention(query, key, value, SpanAttention(spans, 0.3, 0))
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, other in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, other)


def test_what_the_kernels_do_not_take() -> None:
    def takes(heads: int, key_heads: int, width: int, value_width: int, dtype: torch.dtype = torch.float32) -> bool:
        sizes = ((heads, width), (key_heads, width), (key_heads, value_width))
        return can_attend(*(torch.zeros(4, h, d, dtype=dtype) for h, d in sizes))

    width = lanes()
    assert takes(16, 1, width, width)
    assert not takes(17, 1, width, width)
    assert not takes(3, 2, width, width)
    assert not takes(2, 2, width, 2 * width)
    assert not takes(2, 2, width + 1, width + 1)
    assert not takes(2, 2, width, width, torch.float64)
    with paused():
        assert not takes(16, 1, width, width)
    assert takes(16, 1, width, width)


@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if has_kernels(torch.bfloat16) else [])])
def test_a_hidden_key_has_no_weight_at_all(dtype: torch.dtype) -> None:
    """Deep models make of 1e-38 what they like, where a token has nothing else."""
    spans, seen, _ = packed_spans()
    query, key, value, _ = tensors(4, 2, 32, dtype)
    first = seen.sum(1) == 1
    value = torch.where(first[:, None, None], 0.0, 1e30).to(dtype).expand_as(value).contiguous()
    out, _ = packed_attention(query, key, value, SpanAttention(spans, 0.2, 0))
    assert first.any()
    assert not out[first].any()
