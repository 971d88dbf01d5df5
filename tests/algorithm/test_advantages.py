from __future__ import annotations

import torch

from slimrl.algorithm.advantages import group_advantages


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
