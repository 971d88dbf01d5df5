"""Per-token estimators of KL(policy || reference) from log-probabilities of sampled tokens (Schulman 2020).

As a loss term what counts is the gradient, and it is not that of the value: see docs/techniques.md. Divergences over
the whole vocabulary are made with the logits, in slimrl/algorithm/divergences.py.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from slimrl.terms import SampledKl

SAMPLED: tuple[SampledKl, ...] = get_args(SampledKl)


def kl_penalty(estimator: SampledKl, logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """[B, L] nats each -> [B, L]; x = log policy - log reference of the sampled token.

    k1 = x: unbiased value, expected gradient 0. k2 = x^2 / 2: biased value, gradient of KL(policy || reference).
    k3 = exp(-x) - 1 + x: unbiased, never negative, gradient of KL(reference || policy) (GRPO's choice).
    k3_k2: the value of k3 with the gradient of k2.
    """
    x = logprobs - reference_logprobs
    match estimator:
        case "k1":
            return x
        case "k2":
            return x.square() / 2
        case "k3":
            return (-x).exp() - 1 + x
        case "k3_k2":
            square = x.square() / 2
            with torch.no_grad():
                value = (-x).exp() - 1 + x
            return value + square - square.detach()
