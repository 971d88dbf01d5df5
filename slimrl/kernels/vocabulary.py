"""Logits to weights for sampling, to log-probabilities and entropies, and to their own gradient, in one pass over each row."""

from __future__ import annotations

import torch
from torch import Tensor

from slimrl.kernels.native import call, lanes


def exponentiate(logits: Tensor, temperature: float, block: int) -> Tensor:
    """logits [N, V] float32 on the CPU, which become exp((logit - the row's largest) / temperature), 0 below e^-87.

    Returns the sums of their blocks of `block` numbers, a multiple of `lanes()`: [N, ceil(V / block)] float64.
    """
    assert block % lanes() == 0
    rows, vocabulary = logits.shape
    sums = torch.empty(rows, -(-vocabulary // block), dtype=torch.float64)
    call("exponentiate", logits.dtype, logits, sums, rows, vocabulary, block, float(temperature))
    return sums


def summarize(logits: Tensor, targets: Tensor, temperature: float, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """logits [n, V] float32 on the CPU, targets [n] long -> log-probability and entropy [n] in nats under
    softmax(logits / temperature), and a normalizer [n] for the gradient.

    To `keep` turns the logits, in place, into numbers in proportion to the probabilities.
    """
    logprobs, entropies, normalizers = logits.new_empty(3, len(logits)).unbind()
    tensors = (logits, targets.contiguous(), logprobs, entropies, normalizers)
    call("summarize", logits.dtype, *tensors, *logits.shape, float(temperature), keep)
    return logprobs, entropies, normalizers


def logit_gradient(
    logits: Tensor, targets: Tensor, normalizers: Tensor, gradient: Tensor, out: Tensor, temperature: float
) -> None:
    """Writes to `out` [n, V] the gradient of the logits under `gradient` [n], that of the log-probabilities over the temperature.

    `logits` are those given to `summarize`; `out` may be the same tensor.
    """
    _gradient((logits, targets, normalizers, gradient, out), float(temperature), kept=False)


def kept_gradient(weights: Tensor, targets: Tensor, normalizers: Tensor, gradient: Tensor, out: Tensor) -> None:
    """`logit_gradient` from what `summarize` has kept."""
    _gradient((weights, targets, normalizers, gradient, out), 1.0, kept=True)


def _gradient(tensors: tuple[Tensor, ...], temperature: float, *, kept: bool) -> None:
    rows_and_out = (*(tensor.contiguous() for tensor in tensors[:-1]), tensors[-1])
    call("slope", tensors[-1].dtype, *rows_and_out, *tensors[0].shape, temperature, kept)
