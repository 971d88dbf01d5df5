"""Logits to log-probabilities and entropies, and to their own gradient, in one pass over each row."""

from __future__ import annotations

from torch import Tensor

from slimrl.kernels.native import call


def summarize(logits: Tensor, targets: Tensor, temperature: float, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """logits [n, V] float32 on the CPU, targets [n] long -> log-probability and entropy [n] in nats under
    softmax(logits / temperature), and a normalizer [n] for `logit_gradient`.

    To `keep` turns the logits, in place, into numbers in proportion to the probabilities.
    """
    rows, vocabulary = logits.shape
    logprobs, entropies, normalizers = (logits.new_empty(rows) for _ in range(3))
    targets = targets.contiguous()
    call(
        "summarize",
        logits.dtype,
        logits,
        targets,
        logprobs,
        entropies,
        normalizers,
        rows,
        vocabulary,
        temperature,
        keep,
    )
    return logprobs, entropies, normalizers


def logit_gradient(
    logits: Tensor, targets: Tensor, normalizers: Tensor, gradient: Tensor, out: Tensor, temperature: float
) -> None:
    """Writes to `out` [n, V] the gradient of the logits under `gradient` [n] of the log-probabilities times the temperature.

    `logits` are those given to `summarize`, or what it kept of them if `temperature` is 0; `out` may be the same tensor.
    """
    kept = temperature == 0
    tensors = (logits, targets.contiguous(), normalizers.contiguous(), gradient.contiguous(), out)
    call("slope", out.dtype, *tensors, *logits.shape, temperature, kept)
