"""The policy loss: one value per token, one weight per token.

    loss = sum(weights * (gradient_mask * importance * surrogate + kl_coef * kl - entropy_coef * entropy))

The weights are computed once per optimizer update over all its rows, before these are split into micro-batches, so no
split and no order of rows changes the gradient (`microbatch_token_mean` is the exception). A surrogate is a function of
log-probabilities and advantages, [B, L] each, to values [B, L], without a gradient where the advantage is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrl.terms import Aggregation, Correction, ImportanceLevel

FLOAT_NOISE = 1e-4
"""Nats by which the same policy, computed twice in float32, may differ."""


@dataclass(frozen=True)
class Options:
    """Numbers that surrogates take, named as in the settings' section `algorithm`; each surrogate reads its own."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    sapo_up: float = 1.0
    sapo_down: float = 1.05


def surrogate(
    name: str, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, options: Options
) -> Tensor:
    """The surrogate of that name; mask [B, L] bool marks the tokens that a sequence's own ratio is made of."""
    low, high = options.clip_low, options.clip_high
    match name:
        case "clip":
            return clipped_surrogate(
                logprobs, old_logprobs, advantages, clip_low=low, clip_high=high, dual_clip=options.dual_clip
            )
        case "reinforce" | "gpg":
            return reinforce(logprobs, advantages)
        case "cispo":
            return cispo(logprobs, old_logprobs, advantages, clip_low=low, clip_high=high)
        case "gspo" | "gspo_token":
            ratio = sequence_ratio(logprobs, old_logprobs, mask, per_token=name == "gspo_token")
            return clipped(ratio, advantages, clip_low=low, clip_high=high)
        case "sapo":
            return sapo(logprobs, old_logprobs, advantages, up=options.sapo_up, down=options.sapo_down)
    raise ValueError(f"there is no surrogate {name}")


def clipped_ratio(name: str, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[B, L] the ratio that a surrogate clips."""
    if name in ("gspo", "gspo_token"):
        return sequence_ratio(logprobs, old_logprobs, mask, per_token=False)
    return (logprobs - old_logprobs).exp()


def is_clipped(name: str, ratio: Tensor, advantages: Tensor, options: Options) -> Tensor:
    """[B, L] bool: the tokens on which a surrogate's clip acts: their gradient is 0, or under CISPO their weight is bounded."""
    below, above = ratio < 1 - options.clip_low, ratio > 1 + options.clip_high
    if name == "cispo":
        return below | above
    found = (below & (advantages < 0)) | (above & (advantages > 0))
    if name == "clip" and options.dual_clip:
        found = found | ((ratio > options.dual_clip) & (advantages < 0))
    return found


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
) -> Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r the importance ratio of a token.

    PPO (arXiv:1707.06347, eq. 7); clip_high > clip_low is DAPO's clip-higher (arXiv:2503.14476, eq. 10). A dual clip
    c > 1 bounds what a token with A < 0 can cost: max(min(...), c A) there (arXiv:1912.09729).
    """
    ratio = (logprobs - old_logprobs).exp()
    value = clipped(ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    if dual_clip:
        value = torch.where(advantages < 0, torch.minimum(value, -dual_clip * advantages), value)
    return value


def clipped(ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """-min(ratio A, clip(ratio) A), whatever the ratio is one of."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def reinforce(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A log p (Williams 1992): no ratio, so right only for what the present policy sampled.

    GPG (arXiv:2504.02546) is this with advantages that `group_advantages` leaves undivided and `gpg_alpha` scales.
    """
    return -advantages * logprobs


def cispo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """-sg[clip(r)] A log p (MiniMax-M1, arXiv:2506.13585): the ratio is clipped as a weight, so no token falls silent.

    The paper leaves the lower bound open, which is clip_low = 1.
    """
    ratio = (logprobs.detach() - old_logprobs).exp()
    return -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages * logprobs


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, per_token: bool) -> Tensor:
    """[B, L]: the geometric mean of a row's ratios at each of its tokens (GSPO, arXiv:2507.18071).

    `per_token` lets each token carry the gradient of its own log-probability alone (GSPO-token): the same value,
    and the same gradient where a row's advantage is one number.
    """
    count = mask.sum(1, keepdim=True).clamp(min=1)
    mean = ((logprobs - old_logprobs) * mask).sum(1, keepdim=True) / count
    if per_token:
        return (mean.detach() + logprobs - logprobs.detach()).exp()
    return mean.exp().expand_as(logprobs)


def sapo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, up: float, down: float) -> Tensor:
    """-(4 / tau) sigmoid(tau (r - 1)) A, tau = `up` where A > 0 and `down` elsewhere (SAPO, arXiv:2511.20347).

    A smooth gate in place of the clip: slope A at r = 1, less the farther r is from it.
    """
    ratio = (logprobs - old_logprobs).exp()
    tau = torch.where(advantages > 0, up, down).to(logprobs.dtype)
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages


def importance_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    level: ImportanceLevel,
    correction: Correction,
    cap: float,
) -> Tensor:
    """[B, L] factors for a sampler whose log-probabilities differ from the trainer's; no gradient.

    rho = exp(trainer - sampler) of a token, or the product over a row's tokens; `truncate` takes min(rho, cap)
    (TIS), `mask` takes rho and leaves out what is not within [1 / cap, cap] (MIS, IcePop). Differences below FLOAT_NOISE
    nats, the float noise of one policy computed twice, count as none, so the factor is exactly 1 where the samplers agree.
    """
    gap = ((old_logprobs - sampler_logprobs) * mask).detach()
    gap = gap.where(gap.abs() > FLOAT_NOISE, torch.zeros_like(gap))
    if level == "sequence":
        gap = gap.sum(1, keepdim=True).expand_as(gap)
    rho = gap.exp()
    if correction == "truncate":
        return rho.clamp(max=cap)
    return rho.where((rho <= cap) & (rho >= 1 / cap), torch.zeros_like(rho))


def top_entropy_mask(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """[B, L] bool: the tokens of `mask` whose entropy is among the highest `share` of all of them (arXiv:2506.01939).

    Ties at the threshold are all in. The whole optimizer step is meant, not a micro-batch.
    """
    if share >= 1 or not mask.any():
        return mask
    found = entropy[mask]
    # torch.quantile takes no more than 2^24 numbers. The small difference keeps 0.7 * 10 from being rounded up to 8.
    below = math.ceil((1 - share) * (len(found) - 1) - 1e-9)
    return mask & (entropy >= found.kthvalue(below + 1).values)


def token_weights(
    loss_mask: Tensor, completion_mask: Tensor, groups: Tensor, aggregation: Aggregation, *, max_new_tokens: int
) -> Tensor:
    """The weight of each token in the loss of one optimizer update: [B, L] float32.

    loss_mask and completion_mask [B, L] bool, groups [B] long. Denominators count every completion, also those that
    carry no loss (overlong filtering), so a step with half its rows masked is half a step.
    """
    rows, mask, counted = len(loss_mask), loss_mask.float(), completion_mask.float()
    lengths = counted.sum(1)
    match aggregation:
        case "sequence_mean":  # GRPO: completions count equally, so the tokens of long ones count less
            return mask / lengths.clamp(min=1)[:, None] / rows
        case "token_mean" | "microbatch_token_mean":  # DAPO as implemented everywhere: tokens count equally
            return mask / lengths.sum().clamp(min=1)
        case "prompt_token_mean":  # DAPO's equation 8 to the letter: tokens within a prompt, then prompts equally
            present, index = torch.unique(groups, return_inverse=True)
            tokens = torch.zeros(len(present), device=mask.device).index_add_(0, index, lengths)
            return mask / tokens[index].clamp(min=1)[:, None] / len(present)
        case "fixed_length":  # Dr. GRPO: a constant divisor, so length carries no bias
            return mask / (rows * max_new_tokens)
