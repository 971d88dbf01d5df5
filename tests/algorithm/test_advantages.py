from __future__ import annotations

import numpy as np
import pytest
import torch

from slimrl.algorithm.advantages import (
    component_advantages,
    generalized_advantages,
    gpg_alpha,
    group_advantages,
    value_loss,
)
from tests.algorithm import oracle


def test_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    scorable = torch.ones(2, 3, dtype=torch.bool)
    third = 1 / 3
    spread = (third / 1) ** 0.5  # variance of (0, 1, 1) with divisor G - 1: 1/3
    expected = torch.tensor([[-2 * third, third, third], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(group_advantages(rewards, scorable, "none"), expected)
    torch.testing.assert_close(group_advantages(rewards, scorable, "group"), expected / (spread + 1e-4))
    torch.testing.assert_close(group_advantages(rewards, scorable, "batch"), expected / (rewards.std() + 1e-4))


def test_unscorable_rows_are_in_no_baseline() -> None:
    rewards = torch.tensor([[0.0, 1.0, 100.0]])
    scorable = torch.tensor([[True, True, False]])
    torch.testing.assert_close(group_advantages(rewards, scorable, "none"), torch.tensor([[-0.5, 0.5, 0.0]]))
    assert not group_advantages(rewards, torch.zeros(1, 3, dtype=torch.bool), "group").any()
    lone = group_advantages(rewards, torch.tensor([[True, False, False]]), "group")
    torch.testing.assert_close(lone, torch.zeros(1, 3))


def test_two_completions_always_differ_by_the_same_amount_when_scaled() -> None:
    """With G = 2 group scaling leaves only the sign: +-1 / sqrt(2)."""
    for gap in (0.1, 1.0, 50.0):
        a = group_advantages(torch.tensor([[0.0, gap]]), torch.ones(1, 2, dtype=torch.bool), "group")
        torch.testing.assert_close(a, torch.tensor([[-1.0, 1.0]]) / 2**0.5, atol=2e-3, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_leaving_one_out_is_the_group_mean_times_g_over_g_less_one(size: int) -> None:
    rewards = torch.rand(5, size, dtype=torch.float64)
    whole = torch.ones(5, size, dtype=torch.bool)
    for scale in ("none", "group", "batch", "mean"):
        mean = group_advantages(rewards, whole, scale)
        torch.testing.assert_close(group_advantages(rewards, whole, scale, "leave_one_out"), mean * size / (size - 1))


def test_for_right_or_wrong_rewards_the_spread_weighs_hard_and_easy_problems_most() -> None:
    """Divided by the standard deviation, the right ones of p get sqrt((1 - p) / p), up to the divisor G - 1."""
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    found = group_advantages(rewards, torch.ones(3, 4, dtype=torch.bool), "group")[:, 0]
    p = torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(found, ((1 - p) / p).sqrt() * (3 / 4) ** 0.5, atol=1e-3, rtol=0)


def test_the_mean_as_scale_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])
    found = group_advantages(rewards, torch.ones(3, 4, dtype=torch.bool), "mean")
    assert found[0].tolist() == [3.0, -1.0, -1.0, -1.0]
    assert not found[1:].any(), "a mean that is not positive scales nothing"


def test_components_equal_the_oracle_and_count_by_their_weights() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        shape = (int(rng.integers(1, 4)), int(rng.integers(2, 6)))
        scorable = rng.random(shape) < 0.9
        components = {"correct": rng.choice([0.0, 1.0], size=shape), "length": rng.normal(scale=50, size=shape)}
        components["length"][rng.random(shape) < 0.2] = np.nan
        weights = {"correct": 1.0, "length": 0.3}
        found = component_advantages(
            {name: torch.tensor(values) for name, values in components.items()}, weights, torch.tensor(scorable)
        )
        np.testing.assert_allclose(found.numpy(), oracle.gdpo(components, weights, scorable), atol=1e-9)
    stretched = {"correct": torch.tensor([[0.0, 1.0, 0.0, 1.0]]), "length": torch.tensor([[0.0, 0.0, 1000.0, 1000.0]])}
    whole = torch.ones(1, 4, dtype=torch.bool)
    alike = component_advantages(stretched, {"correct": 1.0, "length": 1.0}, whole)
    assert alike[0, 1].item() == pytest.approx(alike[0, 2].item(), abs=1e-3), "a wider reward does not count more"


def test_gpgs_alpha_counts_the_groups_that_differ() -> None:
    rewards = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.3, 0.1 + 0.2]])
    whole = torch.ones(4, 2, dtype=torch.bool)
    assert gpg_alpha(rewards, whole, tolerance=1e-6) == 4.0
    assert gpg_alpha(rewards[1:3], whole[1:3], tolerance=1e-6) == 1.0
    hidden = whole.clone()
    hidden[0, 0] = False
    assert gpg_alpha(rewards[:2], hidden[:2], tolerance=1e-6) == 1.0, "what could not be scored makes no difference"


def test_generalized_advantages_equal_the_oracle() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        lengths = rng.integers(1, 7, size=3)
        first = rng.integers(0, 3, size=3)
        width = int((lengths + first).max())
        mask = torch.zeros(3, width, dtype=torch.bool)
        rewards, values = (torch.tensor(rng.normal(size=(3, width))) for _ in range(2))
        for row in range(3):
            mask[row, first[row] : first[row] + lengths[row]] = True
        mask &= torch.tensor(rng.random((3, width)) < 0.8) | (mask.cumsum(1) == 1)  # gaps, as between turns
        rewards *= mask
        discount, lam = rng.uniform(0.5, 1), rng.uniform(0, 1)
        found, returns = generalized_advantages(rewards, values, mask, discount=discount, gae_lambda=lam)
        for row in range(3):
            wanted = oracle.gae(rewards[row][mask[row]].tolist(), values[row][mask[row]].tolist(), discount, lam)
            assert found[row][mask[row]].tolist() == pytest.approx(wanted)
            assert returns[row][mask[row]].tolist() == pytest.approx(
                [a + v for a, v in zip(wanted, values[row][mask[row]].tolist(), strict=True)]
            )
        assert not found[~mask].any()


def test_a_value_that_strays_pays_for_the_worse_of_the_two() -> None:
    values, old = torch.tensor([[0.5, 0.1, -1.0]]), torch.zeros(1, 3)
    # V = 0.5 is kept at 0.2 and the return is 1: 0.8 squared is the larger; V = 0.1 is within; V = -1 strays from 0
    found = value_loss(values, old, torch.tensor([[1.0, 1.0, 0.0]]), clip=0.2)
    torch.testing.assert_close(found, torch.tensor([[0.64, 0.81, 1.0]]) / 2)
