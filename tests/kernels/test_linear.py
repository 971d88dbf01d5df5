"""The quick linear layer is a linear layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from slimrl.kernels import linear, native
from slimrl.kernels.decode import Product, few_rows, products
from slimrl.kernels.linear import (
    AdaptedLinear,
    Adapter,
    FewRowsLinear,
    lowered,
    quick_rows,
    speed_up_linear,
    together,
    wide_product,
)
from slimrl.kernels.native import has_kernels, lanes, paused
from tests.tiny import tiny_model

narrow = pytest.mark.skipif(not has_kernels(torch.bfloat16), reason="the processor does not multiply bfloat16")


@pytest.fixture(params=["compiled", "without a compiler"])
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Every matrix is large enough; whether the product is compiled."""
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 1)
    compiled = request.param == "compiled"
    if compiled and not lanes():
        pytest.skip("no compiler, or no AVX2")
    if not compiled:
        native._library.cache_clear()
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert lanes() == 0
    yield compiled
    monkeypatch.undo()
    native._library.cache_clear()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 1), (3, 1), (8, 1), (17, 1), (3, 16), (49, 1), (96,), (97, 1), (12,)])
def test_the_products_are_equal(bias: bool, shape: tuple[int, ...], quick: bool) -> None:
    # 43 outputs and 24 inputs fill neither the blocks of outputs nor the lines of inputs
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Linear(24, 43, bias=bias)
        x = torch.randn(*shape, 24)
    with torch.no_grad():
        expected = module(x)
        speed_up_linear(nn.Sequential(module))
        assert type(module) is FewRowsLinear
        assert bool(module.quick_rows) == quick
        torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=1e-5)
        assert module(x).is_contiguous()


def test_every_row_is_of_its_own() -> None:
    """No row's product depends, even in its last bit, on the company that it is in, as long as the way stays the same."""
    if not lanes():
        pytest.skip("no compiler, or no AVX2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight, x = torch.randn(50, 70), torch.randn(40, 70)
    whole = few_rows(weight, x, None)
    for rows in (1, 5, 16, 33):
        assert torch.equal(few_rows(weight, x[:rows], None), whole[:rows])
    assert torch.equal(few_rows(weight, x.flip(0), None), whole.flip(0))


def test_rows_that_lie_apart(quick: bool) -> None:
    del quick
    module = nn.Linear(10, 9)
    speed_up_linear(nn.Sequential(module))
    with torch.no_grad():
        x = torch.arange(20.0 * 12).view(12, 20)
        torch.testing.assert_close(module(x[:, ::2]), module(x[:, ::2].contiguous()))
        torch.testing.assert_close(module(x[:, ::2]), x[:, ::2] @ module.weight.T + module.bias, atol=1e-3, rtol=1e-5)


def test_gradients_take_the_usual_way(quick: bool) -> None:
    del quick
    module = nn.Linear(6, 5)
    speed_up_linear(nn.Sequential(module))
    module(torch.ones(9, 6)).sum().backward()
    assert module.weight.grad is not None
    torch.testing.assert_close(module.weight.grad, torch.full((5, 6), 9.0))


def test_what_is_saved_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 1)
    model = tiny_model("qwen2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    speed_up_linear(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any(isinstance(module, FewRowsLinear) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_taken_where_kernels_know_them(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 1)
    model = nn.Sequential(nn.Linear(24, 5, dtype=dtype), nn.Linear(25, 5, dtype=dtype))
    speed_up_linear(model)
    # bfloat16 is multiplied in pairs, so inputs are even
    assert [type(module) is FewRowsLinear for module in model] == [has_kernels(dtype), False]
    x = torch.ones(9, 24, dtype=dtype)
    with torch.no_grad():
        assert model[0](x).dtype == dtype


@narrow
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [2, 24, 70, 256])
@pytest.mark.parametrize("rows", [1, 3, 17, 48, 49, 100])
def test_products_of_bfloat16_are_rounded_once(rows: int, inputs: int, bias: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight, x = torch.randn(43, inputs).bfloat16(), torch.randn(rows, inputs).bfloat16()
        offset = torch.randn(43).bfloat16() if bias else None
    exact = x.double() @ weight.double().T + (offset.double() if offset is not None else 0)
    (wide,) = products(x, [Product(weight, offset)], widen=True)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), exact, atol=1e-5, rtol=1e-5)
    found = few_rows(weight, x, offset)
    assert torch.equal(found, wide.bfloat16())
    assert torch.equal(few_rows(weight, x.flip(0), offset), found.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [25, 64])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_wide_product_is_float32(
    dtype: torch.dtype, inputs: int, unit: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every processor; where the compiled product makes it of bfloat16, its sums are not rounded to that."""
    monkeypatch.setattr(linear, "has_matrix_unit", lambda: unit)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight, x = torch.randn(43, inputs).to(dtype), torch.randn(9, inputs).to(dtype)
        offset = torch.randn(43).to(dtype) if bias else None
    exact = x.double() @ weight.double().T + (offset.double() if offset is not None else 0)
    found = wide_product(x, weight, offset)
    assert found.dtype == torch.float32
    rounded = dtype == torch.bfloat16 and (unit or inputs % 2 == 1 or not has_kernels(dtype))
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=2**-8 if rounded else 1e-5)
    with paused():
        torch.testing.assert_close(wide_product(x, weight, offset), found, atol=1e-5, rtol=2**-7)


@pytest.mark.parametrize("rows", [2, 3, 30, 10_000])
def test_the_head_of_a_decode_step_takes_the_product_of_few_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def counted(x: Tensor, layers: Sequence[Product], *, widen: bool = False) -> list[Tensor]:
        taken.append(len(x))
        return products(x, layers, widen=widen)

    monkeypatch.setattr(linear, "products", counted)
    weight, x = torch.randn(43, 64), torch.randn(rows, 64)
    torch.testing.assert_close(wide_product(x, weight, None), x @ weight.T, atol=1e-5, rtol=1e-5)
    assert taken == ([rows] if rows in quick_rows(torch.float32) else [])


def test_rows_up_to_which_the_compiled_product_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "has_matrix_unit", lambda: True)
    assert quick_rows(torch.float32) == (range(3, 257) if lanes() else range(0))
    assert quick_rows(torch.bfloat16) == (range(1, 33) if has_kernels(torch.bfloat16) else range(0))
    assert not quick_rows(torch.float16)
    monkeypatch.setattr(linear, "has_matrix_unit", lambda: False)
    assert (100_000 in quick_rows(torch.bfloat16)) == has_kernels(torch.bfloat16)


def test_small_matrices_are_left_alone() -> None:
    model = tiny_model("qwen2")
    speed_up_linear(model)
    assert not any(isinstance(module, FewRowsLinear) for module in model.modules())


@pytest.mark.parametrize("rows", [1, 5, 70, 400])
def test_layers_together_give_what_each_gives(rows: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(70, 50), nn.Linear(70, 9, bias=False), nn.Linear(70, 16)]
        x = torch.randn(rows, 70)
    with torch.no_grad():
        for found, layer in zip(
            together(x, [AdaptedLinear(m.weight, m.bias, None) for m in layers]), layers, strict=True
        ):
            torch.testing.assert_close(found, layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 2, 6, 16, 64])
@pytest.mark.parametrize("rows", [1, 17, 49, 300])
def test_an_adapter_adds_the_product_of_its_factors(rows: int, rank: int, dtype: torch.dtype) -> None:
    """Beside others and on every processor; where the product is compiled, it is rounded once."""
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws).to(dtype)

    x, weight, bias, a, b = drawn(rows, 130), drawn(43, 130), drawn(43), drawn(rank, 130), drawn(43, rank)
    if dtype == torch.bfloat16 and rank % 2:
        return  # such layers are not fused
    layers = [
        AdaptedLinear(weight, bias, Adapter(a, b, 0.5)),
        AdaptedLinear(weight, None, None),
        AdaptedLinear(weight, None, Adapter(2 * a, b, 4.0)),
    ]
    for turned_off in (False, True):
        with paused() if turned_off else contextlib.nullcontext():
            lows = [low.double() for low in lowered(x, [Adapter(a, b, 0.5), Adapter(2 * a, b, 4.0)])]
            found = together(x, layers)
        for low, scaling, factor in zip(lows, (0.5, 4.0), (1, 2), strict=True):
            close = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 2**-6}
            torch.testing.assert_close(low, scaling * x.double() @ (factor * a).double().T, **close)
        plain, up = x.double() @ weight.double().T, b.double().T
        for y, exact in zip(found, (plain + bias.double() + lows[0] @ up, plain, plain + lows[1] @ up), strict=True):
            once = has_kernels(dtype) and not turned_off
            tolerance = 1e-5 if dtype == torch.float32 else 2**-8 if once else 2**-5
            torch.testing.assert_close(y.double(), exact, atol=tolerance * float(exact.abs().max()), rtol=tolerance)
