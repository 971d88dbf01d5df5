"""The policy loss: one value per token, one weight per token.

    loss = sum(weights * (surrogate + kl_coef * kl))

The weights are computed once per optimizer step over all its rows, before these are split into micro-batches, so no
split, row order or number of ranks can change the gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "prompt_token_mean", "fixed_length", "microbatch_token_mean"]


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """[B, L], [B, L], [B, 1] -> [B, L]: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r the importance ratio.

    PPO (arXiv:1707.06347, eq. 7); clip_high > clip_low is DAPO's clip-higher (arXiv:2503.14476, eq. 10).
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def token_weights(
    loss_mask: Tensor, completion_mask: Tensor, groups: Tensor, aggregation: Aggregation, *, max_new_tokens: int
) -> Tensor:
    """How much each token counts towards the loss of one optimizer step: [B, L] float32.

    loss_mask and completion_mask [B, L] bool, groups [B] long. Denominators count every completion, also those that
    carry no loss (overlong filtering), so a step with half its rows masked is half a step.
    """
    rows, mask, counted = len(loss_mask), loss_mask.float(), completion_mask.float()
    lengths = counted.sum(1)
    match aggregation:
        case "sequence_mean":  # GRPO: completions count alike, so the tokens of long ones count less
            return mask / lengths.clamp(min=1)[:, None] / rows
        case "token_mean" | "microbatch_token_mean":  # DAPO as implemented everywhere: tokens count alike
            return mask / lengths.sum().clamp(min=1)
        case "prompt_token_mean":  # DAPO's equation 8 to the letter: tokens within a prompt, then prompts alike
            present, index = torch.unique(groups, return_inverse=True)
            tokens = torch.zeros(len(present), device=mask.device).index_add_(0, index, lengths)
            return mask / tokens[index].clamp(min=1)[:, None] / len(present)
        case "fixed_length":  # Dr. GRPO: a constant divisor, so length carries no bias
            return mask / (rows * max_new_tokens)
