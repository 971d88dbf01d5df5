"""AdamW in one pass against torch's own, over vectors and what is left behind them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from slimrl.kernels.native import lanes
from slimrl.kernels.optimizer import AdamW, adamw, gradient_norm

pytestmark = [
    pytest.mark.skipif(not lanes(), reason="no compiler, or no AVX2"),
    pytest.mark.usefixtures("_threads"),
]
COUNTS = [1, 15, 16, 700, 40_003]
"""The last is shared by threads."""


def normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", COUNTS)
def test_norm(count: int, dtype: torch.dtype) -> None:
    gradients = [normal(count, 0).to(dtype), normal(3, 1).to(dtype)]
    exact = math.hypot(*(float(g.double().norm()) for g in gradients))
    assert gradient_norm(gradients) == pytest.approx(exact, rel=1e-6)
    for bad in (math.nan, math.inf):
        gradients[0][count // 2] = bad
        assert not math.isfinite(gradient_norm(gradients))


@pytest.mark.parametrize("narrow_gradient", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_updates_are_torchs(count: int, narrow_gradient: bool, dtype: torch.dtype) -> None:
    if narrow_gradient and dtype == torch.float32:
        pytest.skip("a float32 weight has a float32 gradient")
    settings = AdamW(0.01, 0.9, 0.98, 1e-6, factor=0.5)
    theirs = torch.nn.Parameter(normal(count, 0))
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.3)
    master = theirs.detach().clone()
    weight = master if dtype == torch.float32 else master.to(dtype)
    state = {"step": torch.zeros(()), "exp_avg": torch.zeros(count), "exp_avg_sq": torch.zeros(count)}
    for update in range(3):
        gradient = normal(count, 1 + update).to(dtype if narrow_gradient else torch.float32)
        assert adamw(weight, master, gradient, state, settings, 0.3) == 0
        theirs.grad = 0.5 * gradient.float()
        optimizer.step()
    torch.testing.assert_close(master, theirs.detach(), atol=1e-6, rtol=1e-6)
    for name, found in state.items():
        torch.testing.assert_close(found, optimizer.state[theirs][name], atol=1e-6, rtol=1e-5)
    assert torch.equal(weight, master.to(dtype))


def test_a_decay_below_the_last_digit_of_one_acts(dtype: torch.dtype) -> None:
    """1 - 2e-8 is 1 in float32; what a weight loses in a step that moves it is rounded once, with the step."""
    count = 100_000
    master, mean = torch.full((count,), 1.0), normal(count, 0) * 1e-2
    kept = master.clone()
    for weight, decay in ((master, 2e-2), (kept, 0.0)):
        state = {"step": torch.full((), 1e6), "exp_avg": mean.clone(), "exp_avg_sq": torch.full((count,), 1e-4)}
        narrow = weight if dtype == torch.float32 else weight.to(dtype)
        adamw(narrow, weight, torch.zeros(count), state, AdamW(1e-6, 0.9, 0.98, 1e-8, 1.0), decay)
    assert float((kept - master).double().mean()) == pytest.approx(2e-8, rel=0.1)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_counted(count: int, bad: float, dtype: torch.dtype) -> None:
    master = normal(count, 0)
    master[[0, -1]] = bad
    weight = master if dtype == torch.float32 else master.to(dtype)
    state = {"step": torch.zeros(()), "exp_avg": torch.zeros(count), "exp_avg_sq": torch.zeros(count)}
    found = adamw(weight, master, torch.zeros(count), state, AdamW(0.01, 0.9, 0.98, 1e-6, 1.0), 0.0)
    assert found == min(count, 2)
