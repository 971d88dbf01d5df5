"""The quick linear layer is a linear layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from slimrl.kernels import linear, native
from slimrl.kernels.decode import few_rows
from slimrl.kernels.linear import FewRowsLinear, speed_up_linear
from slimrl.kernels.native import lanes
from tests.tiny import tiny_model


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
        assert bool(module.most_rows) == quick
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
    narrow = tiny_model("qwen2").to(torch.bfloat16)
    speed_up_linear(narrow)
    assert not any(isinstance(module, FewRowsLinear) for module in narrow.modules())


def test_small_matrices_are_left_alone() -> None:
    model = tiny_model("qwen2")
    speed_up_linear(model)
    assert not any(isinstance(module, FewRowsLinear) for module in model.modules())
