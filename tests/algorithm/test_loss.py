"""Losses by hand, by law, and against an independent NumPy implementation on 1,000 random cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from slimrl.algorithm.advantages import group_advantages
from slimrl.algorithm.kl import kl_penalty
from slimrl.algorithm.loss import clipped_surrogate, token_weights
from tests.algorithm import oracle

AGGREGATIONS = ("sequence_mean", "token_mean", "prompt_token_mean", "fixed_length")


def test_clipped_surrogate_by_hand() -> None:
    ratios = torch.tensor([[0.5, 1.0, 1.25, 2.0]])
    zeros = torch.zeros_like(ratios)
    up = clipped_surrogate(ratios.log(), zeros, torch.tensor([[2.0]]), clip_low=0.2, clip_high=0.28)
    # A > 0: min(2r, 2 clip(r, 0.8, 1.28)): the low ratio is not rescued, the high one is cut at 1.28.
    torch.testing.assert_close(up, torch.tensor([[-1.0, -2.0, -2.5, -2.56]]))
    down = clipped_surrogate(ratios.log(), zeros, torch.tensor([[-1.0]]), clip_low=0.2, clip_high=0.28)
    # A < 0: min(-r, -clip(r)): the low ratio is held at 0.8, the high one is not cut.
    torch.testing.assert_close(down, torch.tensor([[0.8, 1.0, 1.25, 2.0]]))


def test_token_weights_by_hand() -> None:
    completion = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    loss = completion.clone()
    loss[0] = False  # an overlong row: its tokens carry nothing, its length still counts
    groups = torch.tensor([0, 0, 1])

    def weights(aggregation: str) -> torch.Tensor:
        return token_weights(loss, completion, groups, aggregation, max_new_tokens=5)  # type: ignore[arg-type]

    torch.testing.assert_close(
        weights("sequence_mean"), torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0]]) / 3
    )
    torch.testing.assert_close(weights("token_mean"), loss / 6)
    expected = torch.tensor([[0, 0, 0, 0], [1 / 4, 0, 0, 0], [1 / 2, 1 / 2, 0, 0]]) / 2
    torch.testing.assert_close(weights("prompt_token_mean"), expected)
    torch.testing.assert_close(weights("fixed_length"), loss / 15)


def test_kl_estimators_by_hand() -> None:
    x = torch.tensor([math.log(2.0)])
    zero = torch.zeros(1)
    assert kl_penalty("k1", x, zero).item() == pytest.approx(math.log(2))
    assert kl_penalty("k2", x, zero).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_penalty("k3", x, zero).item() == pytest.approx(0.5 - 1 + math.log(2))


@pytest.mark.parametrize(("estimator", "forward"), [("k1", None), ("k2", False), ("k3", True)])
def test_expected_gradient_of_kl_in_the_loss(estimator: str, forward: bool | None) -> None:
    """Every token of a small vocabulary enumerated: k1 pushes nowhere, k2 descends the reverse, k3 the forward KL."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64), 0)
    logprobs = torch.log_softmax(logits, 0)
    expected = (logprobs.exp().detach() * kl_penalty(estimator, logprobs, reference)).sum()  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    if forward is None:
        wanted = torch.zeros(5, dtype=torch.float64)
    elif forward:
        (wanted,) = torch.autograd.grad((reference.exp() * (reference - logprobs)).sum(), logits)
    else:
        (wanted,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits)
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=0)


def test_loss_equals_the_oracle_on_1000_random_cases() -> None:
    rng = np.random.default_rng(0)
    for case in range(1000):
        groups_count, size = int(rng.integers(1, 4)), int(rng.integers(2, 5))
        n = groups_count * size
        lengths = rng.integers(1, 7, size=n)
        width, budget = int(lengths.max()), 8
        rewards = rng.choice([0.0, 1.0, 0.5], size=(groups_count, size))
        rewards[rng.random(rewards.shape) < 0.1] = np.nan
        scale = ("group", "batch", "none")[case % 3]
        aggregation = AGGREGATIONS[case % 4]
        estimator = ("k1", "k2", "k3")[case % 3]
        clip_low, clip_high = rng.uniform(0, 0.5), rng.uniform(0, 0.9)
        kl_coef = float(rng.choice([0.0, 0.04, 1.0]))
        new, old, ref = (-rng.exponential(1.0, size=(n, width)) for _ in range(3))
        trained = (rng.random(n) < 0.8) & ~np.isnan(rewards).flatten()
        group = np.repeat(np.arange(groups_count), size)

        scorable = torch.tensor(~np.isnan(rewards))
        advantages = group_advantages(torch.tensor(np.nan_to_num(rewards)), scorable, scale)  # type: ignore[arg-type]
        expected_advantages = oracle.advantages(rewards, scale)
        np.testing.assert_allclose(advantages.numpy(), expected_advantages, atol=1e-9)

        completion = torch.tensor(np.arange(width)[None] < lengths[:, None])
        mask = completion & torch.tensor(trained)[:, None]
        weights = token_weights(mask, completion, torch.tensor(group), aggregation, max_new_tokens=budget)  # type: ignore[arg-type]
        value = clipped_surrogate(
            torch.tensor(new), torch.tensor(old), advantages.flatten()[:, None], clip_low=clip_low, clip_high=clip_high
        ) + kl_coef * kl_penalty(estimator, torch.tensor(new), torch.tensor(ref))  # type: ignore[arg-type]
        ours = (weights.double() * value).sum().item()
        theirs = oracle.loss(
            *([list(row[:t]) for row, t in zip(a, lengths, strict=True)] for a in (new, old, ref)),
            advantage=expected_advantages.flatten().tolist(),
            trained=trained.tolist(),
            groups=group.tolist(),
            aggregation=aggregation,
            clip_low=clip_low,
            clip_high=clip_high,
            kl_coef=kl_coef,
            estimator=estimator,
            max_new_tokens=budget,
        )
        assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-6), f"case {case}"


def test_surrogate_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantage = torch.tensor([[1.7]])
    value = clipped_surrogate(logprobs, logprobs.detach(), advantage, clip_low=0.2, clip_high=0.2)
    (gradient,) = torch.autograd.grad(value.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.full((1, 2), -1.7))
