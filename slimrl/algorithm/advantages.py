"""From the rewards of groups to advantages."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

SCALE_EPSILON = 1e-4
"""Added to a standard deviation before dividing, as TRL does; verl takes 1e-6."""

Scale = Literal["group", "batch", "none"]


def group_advantages(rewards: Tensor, scorable: Tensor, scale: Scale) -> Tensor:
    """rewards [P, G], scorable [P, G] bool -> advantages [P, G]: centred on the group's mean, divided by a spread.

    GRPO (arXiv:2402.03300) divides by the group's standard deviation (divisor G - 1), "batch" by that of all rewards,
    "none" (Dr. GRPO, arXiv:2503.20783) by nothing. Unscorable rows are in no mean and no spread; their advantage is 0.
    """
    if not scorable.any():
        return torch.zeros_like(rewards)
    present = scorable.to(rewards.dtype)
    mean = (rewards * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    centred = (rewards - mean) * present
    match scale:
        case "group":
            variance = centred.square().sum(1, keepdim=True) / (present.sum(1, keepdim=True) - 1).clamp(min=1)
            return centred / (variance.sqrt() + SCALE_EPSILON)
        case "batch":
            valid = rewards[scorable]
            spread = valid.std() if len(valid) > 1 else valid.new_zeros(())
            return centred / (spread + SCALE_EPSILON)
        case "none":
            return centred
