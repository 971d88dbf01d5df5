"""From rewards to advantages: a baseline, then a scale, each its own switch; or a critic's, token by token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slimrl.terms import GroupBaseline, Scale

SCALE_EPSILON = 1e-4
"""Added to a standard deviation before dividing, as TRL does; verl takes 1e-6."""


def group_advantages(rewards: Tensor, scorable: Tensor, scale: Scale, baseline: GroupBaseline = "group_mean") -> Tensor:
    """rewards [..., G], scorable [..., G] bool -> advantages [..., G]: less a baseline, divided by a spread, both of the G
    completions of a problem: of their rewards [P, G], or of their returns at each turn [P, T, G] (`returns_of`).

    Baselines: the group's mean (GRPO); the mean of the group's other rewards (RLOO, arXiv:2402.14740), which is G / (G - 1)
    times as far away; or nothing.
    Scales: the group's standard deviation, divisor G - 1 (GRPO, arXiv:2402.03300); that of all rewards; nothing (Dr. GRPO,
    arXiv:2503.20783); or the group's mean (MaxRL, arXiv:2602.02710; groups whose mean is not positive get 0).
    Unscorable rows are in no mean and no spread; their advantage is 0.
    """
    if not scorable.any():
        return torch.zeros_like(rewards)
    present = scorable.to(rewards.dtype)
    count = present.sum(-1, keepdim=True)
    mean = (rewards * present).sum(-1, keepdim=True) / count.clamp(min=1)
    centred = (rewards - mean) * present
    match baseline:
        case "group_mean":
            advantages = centred
        case "leave_one_out":  # of a group of one nothing is left to compare with
            advantages = centred * count / (count - 1).clamp(min=1)
        case "none":
            advantages = rewards * present
    match scale:
        case "group":
            variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
            return advantages / (variance.sqrt() + SCALE_EPSILON)
        case "batch":
            valid = rewards[scorable]
            spread = valid.std() if len(valid) > 1 else valid.new_zeros(())
            return advantages / (spread + SCALE_EPSILON)
        case "mean":
            return torch.where(mean > SCALE_EPSILON, advantages / mean.clamp(min=SCALE_EPSILON), 0.0)
        case "none":
            return advantages


def component_advantages(
    components: Mapping[str, Tensor],
    weights: Mapping[str, float],
    scorable: Tensor,
    baseline: GroupBaseline = "group_mean",
) -> Tensor:
    """Every reward component [P, G] normalised within its groups, the weighted sum normalised over the batch (GDPO,
    arXiv:2601.05242): components of different spread then count by their weights. NaN where one does not apply.
    """
    total = torch.zeros_like(scorable, dtype=torch.float64)
    for name, rewards in components.items():
        if not weights[name]:
            continue
        applies = scorable & ~rewards.isnan()
        total += weights[name] * group_advantages(rewards.nan_to_num(), applies, "group", baseline)
    valid = total[scorable]
    if len(valid) < 2:
        return total
    return torch.where(scorable, (total - valid.mean()) / (valid.std() + SCALE_EPSILON), 0.0)


def gpg_alpha(rewards: Tensor, scorable: Tensor, *, tolerance: float) -> float:
    """B / (B - M): groups of a batch over those whose rewards [P, G], or returns at some turn [P, T, G], differ (GPG,
    arXiv:2504.02546); 1 where none does.

    Constant groups add nothing to the sum of a gradient and yet count in its divisor; this takes them out of it.
    """
    low = torch.where(scorable, rewards, torch.inf).amin(-1)
    high = torch.where(scorable, rewards, -torch.inf).amax(-1)
    varied = int(((high - low) > tolerance).reshape(len(rewards), -1).any(1).sum())
    return len(rewards) / varied if varied else 1.0


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Per-token rewards and values [B, L], mask [B, L] bool of sampled tokens -> advantages and returns [B, L].

    Generalized advantage estimation (arXiv:1506.02438): delta_t = r_t + discount V_{t+1} - V_t, advantages are the deltas
    summed with powers of discount x gae_lambda; a return is an advantage plus its value. After a row's last token the value is 0.
    Tokens of an environment between two turns are left out: the value behind a turn is that of the next turn's first token.
    """
    values = values * mask
    advantages = torch.zeros_like(values)
    ahead = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(ahead)
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + discount * following - values[:, t]
        ahead = torch.where(here, delta + discount * gae_lambda * ahead, ahead)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = ahead
    advantages *= mask
    return advantages, (advantages + values) * mask


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """[B, L] each -> [B, L]: half the larger of the squared errors of V and of V kept within `clip` of the old V (PPO)."""
    kept = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (kept - returns).square()) / 2
