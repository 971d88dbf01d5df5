from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from slimrl.config.sections import OptimizerConfig
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.schedule import learning_rate


def rates(schedule: str, *, warmup: int, total: int) -> list[float]:
    return [learning_rate(i, peak=1.0, schedule=schedule, warmup=warmup, total=total) for i in range(total)]  # type: ignore[arg-type]


def test_schedules_by_hand() -> None:
    assert rates("constant", warmup=2, total=4) == [0.5, 1.0, 1.0, 1.0]
    assert rates("linear", warmup=2, total=6) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    cosine = [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert rates("cosine", warmup=0, total=4) == pytest.approx(cosine)


def test_adamw_equals_torchs_own_and_decays_matrices_only() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer = MasterAdamW(
        dict(ours.named_parameters()),
        OptimizerConfig(beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3, max_grad_norm=0.5),
    )
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.3}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.01, betas=(0.8, 0.9), eps=1e-6,
    )  # fmt: skip
    x = torch.randn(5, 3)
    for _ in range(4):
        optimizer.backward((ours(x) ** 2).sum())
        metrics = optimizer.step(0.01, optimizer.gradient_norm())
        theirs.zero_grad()
        (theirs(x) ** 2).sum().backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
        assert metrics["grad_norm"] == pytest.approx(norm.item())
        assert metrics["update/clipped"] == 1.0
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_applied_fraction_counts_weights_with_a_gradient() -> None:
    layer = nn.Linear(4, 4, bias=False)
    optimizer = MasterAdamW(dict(layer.named_parameters()), OptimizerConfig())
    optimizer.backward(layer.weight[:2].sum())
    assert optimizer.step(1e-2, optimizer.gradient_norm())["update/applied_fraction"] == 1.0
    optimizer.backward(layer.weight.sum())
    assert optimizer.step(0.0, optimizer.gradient_norm())["update/applied_fraction"] == 0.0
