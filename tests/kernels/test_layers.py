"""The kernels of a decoder layer against their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu as gelu_of
from torch.nn.functional import silu

from slimrl.kernels.layers import add_norm, gate, gate_backward, norm_again, norm_backward, rotate
from slimrl.kernels.native import lanes

pytestmark = pytest.mark.skipif(not lanes(), reason="no compiler, or no AVX2")
EPSILON = 1e-5


@pytest.fixture
def random() -> Callable[..., Tensor]:
    """Normal numbers of a shape."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def demand_close(found: Tensor, wanted: Tensor) -> None:
    """Equal up to float32 sums of some hundred numbers, and to the rounding of a narrow result: half of its last digit."""
    digit = torch.finfo(found.dtype).eps if found.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(found.double(), wanted.double(), atol=5e-6, rtol=5e-6 + digit / 2)


def norm(x: Tensor, weight: Tensor, offset: float) -> Tensor:
    return (weight.double() + offset) * x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "vectors"), [(1, 1), (7, 3), (0, 2), (64, 20)])
def test_norm(rows: int, vectors: int, offset: float, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    width = vectors * lanes()
    x, delta, weight = 3 * random(rows, width), random(rows, width).to(dtype), random(width).to(dtype)
    before = x.clone()
    total, y, scale = add_norm(x, delta, weight, EPSILON, offset)
    assert torch.equal(x, before)
    assert torch.equal(total, x + delta)
    assert (total.dtype, y.dtype, scale.dtype) == (torch.float32, dtype, torch.float32)
    demand_close(y, norm(total.double(), weight, offset))
    demand_close(scale, (total.double().square().mean(-1) + EPSILON).rsqrt())
    assert torch.equal(norm_again(total, weight, scale, offset), y)
    for same in (x, x.to(dtype)):
        found, y, scale = add_norm(same, None, weight, EPSILON, offset)
        assert found is same
        assert (y.dtype, scale.dtype) == (dtype, torch.float32)
        demand_close(y, norm(same.double(), weight, offset))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("narrow_x", [False, True])
@pytest.mark.parametrize(("rows", "vectors"), [(1, 1), (7, 3), (64, 20)])
def test_gradient_of_norm(
    rows: int, vectors: int, narrow_x: bool, offset: float, dtype: torch.dtype, random: Callable[..., Tensor]
) -> None:
    width = vectors * lanes()
    x, weight, slope = 3 * random(rows, width), random(width).to(dtype), random(rows, width).to(dtype)
    x = x.to(dtype) if narrow_x else x
    given, before = random(rows, width), slope.clone()
    exact, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    norm(exact, exact_weight, offset).backward(slope.double())
    assert exact.grad is not None
    assert exact_weight.grad is not None
    scale = add_norm(x, None, weight, EPSILON, offset)[2]
    total = given.clone()
    narrow, of_weight = norm_backward(slope, x, weight, scale, total, offset)
    alone, same = norm_backward(slope, x, weight, scale, None, offset)
    demand_close(total, given.double() + exact.grad)
    assert torch.equal(narrow, total.to(dtype))
    assert alone.dtype == dtype
    demand_close(alone, exact.grad)
    assert torch.equal(slope, before)
    assert of_weight.dtype == torch.float32
    torch.testing.assert_close(of_weight.double(), exact_weight.grad, atol=2e-5, rtol=1e-5)
    assert torch.equal(same, of_weight)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("vectors", [2, 4, 10])
def test_rotary_positions(vectors: int, wide: bool, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    """Of any angles, the same in both halves or not."""
    width = vectors * lanes()
    x, (cosine, sine) = (
        random(9, 3, width).to(dtype),
        (random(9, width).to(torch.float32 if wide else dtype) for _ in "cs"),
    )

    def formula(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cosine.double()[:, None] + torch.cat([-second, first], -1) * sine.double()[:, None]

    exact = x.double().requires_grad_()
    wanted = formula(exact)
    found = x.clone()
    rotate(found, cosine, sine)
    demand_close(found, wanted.detach())
    wanted.backward(x.double())
    assert exact.grad is not None
    found = x.clone()
    rotate(found, cosine, sine, back=True)
    demand_close(found, exact.grad)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_gate(rows: int, gelu: bool, dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    """Of small and large numbers, up to those whose exponential a float32 does not hold."""
    width = 6 * lanes()
    spread = torch.linspace(-4, 5, width).exp() * random(width).sign()
    gated, up, slope = spread.expand(rows, -1).to(dtype), random(rows, width).to(dtype), random(rows, width).to(dtype)
    gated = gated.contiguous()
    exact, exact_up = gated.double().requires_grad_(), up.double().requires_grad_()
    wanted = (gelu_of(exact, approximate="tanh") if gelu else silu(exact)) * exact_up
    found = gate(gated, up, gelu=gelu)
    demand_close(found, wanted.detach())
    wanted.backward(slope.double())
    assert exact.grad is not None
    assert exact_up.grad is not None
    gate_backward(gated, up, slope, gelu=gelu)
    for mine, theirs in ((gated, exact.grad), (up, exact_up.grad), (slope, found)):
        demand_close(mine, theirs)


def test_what_is_not_a_number_stays_so() -> None:
    width = 2 * lanes()
    bad = torch.zeros(2, width)
    bad[0, 3] = float("nan")
    one = torch.ones(width)
    assert add_norm(bad, None, one, EPSILON)[1].isnan().any(1).tolist() == [True, False]
    assert gate(bad, torch.ones(2, width)).isnan().any(1).tolist() == [True, False]
