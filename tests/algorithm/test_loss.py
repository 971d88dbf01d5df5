"""Losses by hand, by law, and against an independent NumPy implementation on 1,000 random cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrl.algorithm.advantages import group_advantages
from slimrl.algorithm.batch import at_tokens
from slimrl.algorithm.kl import kl_penalty
from slimrl.algorithm.loss import (
    Options,
    clipped_ratio,
    clipped_surrogate,
    importance_weights,
    is_clipped,
    surrogate,
    token_weights,
    top_entropy_mask,
)
from slimrl.config.algorithm import CLIPPING
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


SURROGATES = ("clip", "reinforce", "gpg", "cispo", "gspo", "gspo_token", "sapo")


def random_case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows of some groups: lengths, log-probabilities, rewards with NaN for what could not be scored."""
    groups_count, size = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    n = groups_count * size
    lengths = rng.integers(1, 7, size=n)
    rewards = rng.choice([0.0, 1.0, 0.5], size=(groups_count, size))
    rewards[rng.random(rewards.shape) < 0.1] = np.nan
    new, old, ref = (-rng.exponential(1.0, size=(n, int(lengths.max()))) for _ in range(3))
    trained = (rng.random(n) < 0.8) & ~np.isnan(rewards).flatten()
    groups = np.repeat(np.arange(groups_count), size)
    return {
        "lengths": lengths,
        "rewards": rewards,
        "new": new,
        "old": old,
        "ref": ref,
        "trained": trained,
        "groups": groups,
    }


def rows(values: np.ndarray, lengths: np.ndarray) -> list[list[float]]:
    return [list(row[:t]) for row, t in zip(values, lengths, strict=True)]


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_loss_equals_the_oracle_on_1000_random_cases(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = random_case(rng)
    width, budget = c["new"].shape[1], 8
    scale = rng.choice(["group", "batch", "none", "mean"])
    baseline = rng.choice(["group_mean", "leave_one_out", "none"])
    aggregation = rng.choice(AGGREGATIONS)
    name = rng.choice(SURROGATES)
    estimator = rng.choice(["k1", "k2", "k3", "k3_k2"])
    bounds = {
        "clip_low": rng.uniform(0, 0.5), "clip_high": rng.uniform(0, 0.9), "dual_clip": float(rng.choice([0.0, 1.5])),
    }  # fmt: skip
    kl_coef = float(rng.choice([0.0, 0.04, 1.0]))

    scorable = torch.tensor(~np.isnan(c["rewards"]))
    rewards = torch.tensor(np.nan_to_num(c["rewards"]))
    advantages = group_advantages(rewards, scorable, scale, baseline)  # type: ignore[arg-type]
    expected_advantages = oracle.advantages(c["rewards"], scale, baseline)
    np.testing.assert_allclose(advantages.numpy(), expected_advantages, atol=1e-9)

    completion = torch.tensor(np.arange(width)[None] < c["lengths"][:, None])
    mask = completion & torch.tensor(c["trained"])[:, None]
    weights = token_weights(mask, completion, torch.tensor(c["groups"]), aggregation, max_new_tokens=budget)  # type: ignore[arg-type]
    value = surrogate(
        name,
        torch.tensor(c["new"]),
        torch.tensor(c["old"]),
        at_tokens(advantages, completion).double(),
        mask,
        Options(**bounds),
    ) + kl_coef * kl_penalty(estimator, torch.tensor(c["new"]), torch.tensor(c["ref"]))  # type: ignore[arg-type]
    ours = (weights.double() * value).sum().item()
    theirs = oracle.loss(
        *(rows(c[key], c["lengths"]) for key in ("new", "old", "ref")),
        advantage=expected_advantages.astype(np.float32).astype(float).flatten().tolist(),
        trained=c["trained"].tolist(),
        groups=c["groups"].tolist(),
        name=name,
        aggregation=aggregation,
        kl_coef=kl_coef,
        estimator=estimator,
        max_new_tokens=budget,
        **bounds,
    )
    assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-6), f"{name}, {aggregation}, {scale}, {baseline}, {estimator}"


def differentiable(
    name: str,
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    ratio: torch.Tensor | None,
    bounds: dict[str, float],
) -> torch.Tensor:
    """The function whose derivative a surrogate's gradient is: with `ratio` where CISPO holds one fixed."""
    if name == "cispo":
        return (-ratio.clamp(0.8, 1.25) * advantages * logprobs * mask).sum()
    kind = "gspo" if name == "gspo_token" else name
    return (surrogate(kind, logprobs, old, advantages, mask, Options(**bounds)) * mask).sum()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SURROGATES)
def test_gradients_are_finite_differences_away_from_the_kinks(name: str) -> None:
    """In float64. What a surrogate holds fixed (CISPO's weight, GSPO-token's ratio) is held fixed here too."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        old = torch.tensor(-rng.exponential(1.0, size=(2, 4)))
        start = (old + torch.tensor(rng.normal(0, 0.3, size=(2, 4)))).requires_grad_()
        advantages = torch.tensor(rng.normal(size=(2, 1))).expand(2, 4)
        mask = torch.tensor([[True] * 4, [True, True, False, False]])
        bounds = {"clip_low": 0.2, "clip_high": 0.25, "dual_clip": 1.5 if name == "clip" else 0.0}
        ratio = clipped_ratio(name, start.detach(), old, mask)
        if name in CLIPPING and min((ratio - edge).abs().min() for edge in (0.8, 1.25, 1.5)) < 1e-3:
            continue

        ours = surrogate(name, start, old, advantages, mask, Options(**bounds))  # type: ignore[arg-type]
        (found,) = torch.autograd.grad((ours * mask).sum(), start)
        for row in range(2):
            for t in range(4):
                nudge = torch.zeros(2, 4, dtype=torch.float64)
                nudge[row, t] = 1e-6
                up, down = (
                    differentiable(name, start.detach() + sign * nudge, old, advantages, mask, ratio, bounds)
                    for sign in (1, -1)
                )
                slope = (up - down) / 2e-6
                assert found[row, t].item() == pytest.approx(slope.item(), abs=1e-7)


def test_a_dual_clip_bounds_what_a_bad_token_costs_and_touches_no_other() -> None:
    logprobs, old = torch.tensor([[1.6, 0.1, 1.6]]).log(), torch.ones(1, 3).log()
    big = torch.tensor([[8.0, 0.1, 8.0]]).log()
    advantages = torch.tensor([[-1.0, -1.0, 1.0]])
    plain = clipped_surrogate(big, old, advantages, clip_low=0.2, clip_high=0.2)
    bounded = clipped_surrogate(big, old, advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    torch.testing.assert_close(plain, torch.tensor([[8.0, 0.8, -1.2]]))
    torch.testing.assert_close(bounded, torch.tensor([[3.0, 0.8, -1.2]]))
    assert torch.equal(
        clipped_surrogate(logprobs, old, advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0),
        clipped_surrogate(logprobs, old, advantages, clip_low=0.2, clip_high=0.2),
    )


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("correction", ["truncate", "mask"])
def test_importance_weights_equal_the_oracle_and_are_exactly_one_where_samplers_agree(
    level: str, correction: str
) -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        c = random_case(rng)
        sampler = c["old"] + rng.choice([0.0, 5e-5, 0.4, -0.9], size=c["old"].shape)
        mask = torch.tensor(np.arange(c["old"].shape[1])[None] < c["lengths"][:, None])
        found = importance_weights(
            torch.tensor(c["old"]),
            torch.tensor(sampler),
            mask,
            level=level,
            correction=correction,
            cap=2.0,  # type: ignore[arg-type]
        )
        for row, old, other in zip(found, rows(c["old"], c["lengths"]), rows(sampler, c["lengths"]), strict=True):
            assert row[: len(old)].tolist() == pytest.approx(oracle.importance(old, other, level, correction, 2.0))
        noise = torch.tensor(c["old"]) + torch.tensor(rng.uniform(-9e-5, 9e-5, size=c["old"].shape))
        exact = importance_weights(torch.tensor(c["old"]), noise, mask, level=level, correction=correction, cap=2.0)  # type: ignore[arg-type]
        assert (exact == 1).all()


def test_the_top_entropy_tokens_are_a_share_of_all_that_carry_loss() -> None:
    entropy = torch.tensor([[0.1, 0.9, 0.5, 7.0], [0.3, 0.2, 0.8, 0.4]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert top_entropy_mask(entropy, mask, 2 / 7).nonzero().tolist() == [[0, 1], [1, 2]]
    assert torch.equal(top_entropy_mask(entropy, mask, 1.0), mask)
    nothing = torch.zeros_like(mask)
    assert torch.equal(top_entropy_mask(entropy, nothing, 0.2), nothing)
    assert top_entropy_mask(torch.zeros(2, 4), mask, 0.2).sum() == 7, "ties are all in"


def test_the_entropy_threshold_is_the_quantile() -> None:
    """For shares whose place in the order is whole but for rounding (0.3 of 11: 1 - 0.3 times 10 is 7) and others."""
    draws = torch.rand(1, 101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for count in (2, 11, 21, 101):
        for share in (0.01, 0.1, 0.2, 0.3, 0.35, 0.6, 0.7, 0.9, 0.99):
            entropy = draws[:, :count]
            place = torch.quantile(entropy, 1 - share) - 1e-12
            mask = torch.ones(1, count, dtype=torch.bool)
            assert torch.equal(top_entropy_mask(entropy, mask, share), entropy >= place), (count, share)


def test_entropy_share_takes_updates_of_more_than_2_to_the_24_tokens() -> None:
    mask = torch.ones(1, 2**24 + 1, dtype=torch.bool)
    entropy = torch.arange(2**24 + 1)[None].float()
    assert top_entropy_mask(entropy, mask, 0.1).float().mean().item() == pytest.approx(0.1, abs=1e-3)


def test_surrogate_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantage = torch.tensor([[1.7]])
    value = clipped_surrogate(logprobs, logprobs.detach(), advantage, clip_low=0.2, clip_high=0.2)
    (gradient,) = torch.autograd.grad(value.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.full((1, 2), -1.7))


@pytest.mark.parametrize("name", CLIPPING)
@pytest.mark.parametrize("dual_clip", [0.0, 1.5])
def test_tokens_on_which_the_clip_acts_are_those_whose_gradient_it_changes(name: str, dual_clip: float) -> None:
    generator = torch.Generator().manual_seed(0)
    old, moved, advantages = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    logprobs = (old + 0.5 * moved).requires_grad_()
    mask = torch.ones(12, 5, dtype=torch.bool)
    if name == "gspo":  # whose clip is a row's
        advantages = advantages[:, :1].expand(12, 5)
    options = Options(dual_clip=dual_clip)
    values = surrogate(name, logprobs, old, advantages, mask, options)
    (gradient,) = torch.autograd.grad(values.sum(), logprobs)
    ratio = clipped_ratio(name, logprobs, old, mask).detach()
    acts = is_clipped(name, ratio, advantages, options)
    assert acts.any()
    assert not acts.all()
    if name == "cispo":
        assert torch.equal(acts, ~torch.isclose(gradient, -ratio * advantages))
    else:
        assert torch.equal(acts, gradient == 0)
