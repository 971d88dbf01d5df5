"""The quick linear layer is a linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimrl.model import linear
from slimrl.model.linear import FewRowsLinear, speed_up_linear
from tests.tiny import tiny_model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 1), (8, 1), (16, 1), (3, 16), (49, 1), (12,)])
def test_the_products_are_equal(bias: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Linear(24, 40, bias=bias)
        x = torch.randn(*shape, 24)
    with torch.no_grad():
        expected = module(x)
        speed_up_linear(module)
        assert type(module) is FewRowsLinear
        torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=1e-5)
        assert module(x).is_contiguous()


def test_gradients_take_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 1)
    module = nn.Linear(6, 5)
    speed_up_linear(module)
    module(torch.ones(9, 6)).sum().backward()
    assert module.weight.grad is not None
    torch.testing.assert_close(module.weight.grad, torch.full((5, 6), 9.0))


def test_what_is_saved_does_not_change() -> None:
    model = tiny_model("qwen2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    speed_up_linear(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    narrow = tiny_model("qwen2").to(torch.bfloat16)
    speed_up_linear(narrow)
    assert not any(isinstance(module, FewRowsLinear) for module in narrow.modules())
