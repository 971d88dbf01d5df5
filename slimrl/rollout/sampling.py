"""Draws of tokens by an exponential race: a token is a function of the distribution and of one given uniform number.

The token with the largest p_i / E_i, where the E_i are independent standard exponentials, is distributed as p (the
Gumbel-max trick; Maddison, Tarlow and Minka, arXiv:1411.0030). The winner changes only where two candidates are within
rounding of each other, so two computations of the same logits draw the same token except with a probability of about
the total variation between their distributions. An inverse CDF does worse on a large vocabulary: its running sum moves
all later boundaries, and some boundary is always near.

Two races take the place of one over the vocabulary, first among blocks of tokens and then inside the winning block, so a
draw needs V / BLOCK + BLOCK exponentials instead of V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimrl.kernels.native import takes
from slimrl.kernels.vocabulary import exponentiate

GREEDY = -1.0
"""Stands for the uniform number where no token is drawn but the most probable one taken."""
BLOCK = 128
"""Tokens of a block. Sums over the vocabulary are accumulated in float64 from the sums of blocks."""

# splitmix64 (Steele, Lea and Flood, OOPSLA 2014), its constants as signed 64-bit integers
_GOLDEN, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_MANTISSA = 53


@torch.no_grad()
def sample_tokens(logits: Tensor, uniform: Tensor, *, temperature: float, greedy: bool) -> tuple[Tensor, Tensor]:
    """float32 logits [N, V], uniform [N] float64 in [0, 1) -> token ids [N] and their log-probabilities [N] in nats.

    `greedy` says that some of `uniform` may be GREEDY. The log-probability is under softmax(logits / temperature), also for
    greedy choices. Overwrites `logits`.
    """
    best = logits.argmax(-1, keepdim=True) if greedy else None
    weights, sums = _weights(logits, temperature)
    token = _race(weights, sums, uniform)
    token = token if best is None else torch.where(uniform[:, None] < 0, best, token)
    share = weights.gather(-1, token) / sums.sum(-1, keepdim=True)
    return token.squeeze(-1), share.log().float().squeeze(-1)


@torch.library.custom_op("slimrl::exponentials", mutates_args=())
def exponentials(uniform: Tensor, count: int) -> Tensor:
    """uniform [N] float64 in [0, 1) -> [N, count] float64: independent standard exponentials, a pure function of it.

    The 53 bits of the uniform number seed a splitmix64 stream. An operator of its own, since what torch.compile makes of
    64-bit integers on a CPU writes beyond its buffers (torch 2.13).
    """
    bits = (uniform * 2.0**_MANTISSA).long()[:, None]
    bits = bits + torch.arange(1, count + 1, device=uniform.device) * _GOLDEN
    bits ^= _shifted(bits, 30)
    bits *= _FIRST
    bits ^= _shifted(bits, 27)
    bits *= _SECOND
    bits ^= _shifted(bits, 31)
    # in the middle of its interval, so that neither 0 nor 1 occurs and every logarithm is finite and negative
    return _shifted(bits, 64 - _MANTISSA).double().add_(0.5).mul_(2.0**-_MANTISSA).log_().neg_()


@exponentials.register_fake
def _(uniform: Tensor, count: int) -> Tensor:
    return uniform.new_empty((uniform.shape[0], count))


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A logical shift to the right; torch's own keeps the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _weights(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """[N, V] in place: numbers in proportion to the probabilities, and the sums of their blocks."""
    if takes(logits) and logits.is_contiguous():
        return logits, exponentiate(logits, temperature, BLOCK)
    if temperature != 1.0:
        logits /= temperature
    logits -= logits.amax(-1, keepdim=True)
    weights = logits.exp_()
    return weights, _block_sums(weights)


def _block_sums(weights: Tensor) -> Tensor:
    """[N, V] -> [N, ceil(V / BLOCK)] float64."""
    whole = weights.shape[1] // BLOCK * BLOCK
    parts = [weights[:, :whole].reshape(len(weights), -1, BLOCK).sum(-1)] if whole else []
    if whole < weights.shape[1]:
        parts.append(weights[:, whole:].sum(-1, keepdim=True))
    return torch.cat(parts, dim=1).double()


def _race(weights: Tensor, sums: Tensor, uniform: Tensor) -> Tensor:
    """[N, V], block sums and [N] -> [N, 1]: the winner of the winning block.

    Logits that are not numbers win, so that the log-probability of the draw shows them.
    """
    vocabulary, blocks = weights.shape[1], sums.shape[1]
    width = min(BLOCK, vocabulary)
    waits: Tensor = exponentials(uniform, blocks + width)
    block = (sums / waits[:, :blocks]).argmax(-1, keepdim=True)
    places = block * BLOCK + torch.arange(width, device=weights.device)
    inside = weights.gather(-1, places.clamp(max=vocabulary - 1)).double()
    if vocabulary % BLOCK:
        inside.masked_fill_(places >= vocabulary, 0.0)
    return places.gather(-1, (inside / waits[:, blocks:]).argmax(-1, keepdim=True))
