"""The losses once more, written from the papers in NumPy loops, with nothing shared with the package."""

from __future__ import annotations

import math

import numpy as np


def advantages(rewards: np.ndarray, scale: str) -> np.ndarray:
    """[P][G] rewards, NaN where unscorable."""
    out = np.zeros_like(rewards)
    flat = [r for row in rewards for r in row if not math.isnan(r)]
    for p, row in enumerate(rewards):
        present = [r for r in row if not math.isnan(r)]
        if not present:
            continue
        mean = sum(present) / len(present)
        for g, r in enumerate(row):
            if math.isnan(r):
                continue
            a = r - mean
            if scale == "group":
                std = math.sqrt(sum((x - mean) ** 2 for x in present) / max(1, len(present) - 1))
                a /= std + 1e-4
            elif scale == "batch":
                centre = sum(flat) / len(flat)
                std = math.sqrt(sum((x - centre) ** 2 for x in flat) / (len(flat) - 1)) if len(flat) > 1 else 0.0
                a /= std + 1e-4
            out[p, g] = a
    return out


def loss(
    logprobs: list[list[float]],
    old: list[list[float]],
    reference: list[list[float]],
    advantage: list[float],
    trained: list[bool],
    groups: list[int],
    *,
    aggregation: str,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    estimator: str,
    max_new_tokens: int,
) -> float:
    """Rows are completions' tokens only; a row that is not trained on counts in denominators alone."""
    per_row = []
    for row, a, keep in zip(range(len(logprobs)), advantage, trained, strict=True):
        values = []
        for new, was, ref in zip(logprobs[row], old[row], reference[row], strict=True):
            ratio = math.exp(new - was)
            clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
            value = -min(ratio * a, clipped * a)
            x = new - ref
            kl = {"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[estimator]
            values.append((value + kl_coef * kl) if keep else 0.0)
        per_row.append(values)
    n = len(per_row)
    lengths = [len(row) for row in logprobs]
    if aggregation == "sequence_mean":
        return sum(sum(v) / t for v, t in zip(per_row, lengths, strict=True)) / n
    if aggregation == "token_mean":
        return sum(map(sum, per_row)) / sum(lengths)
    if aggregation == "fixed_length":
        return sum(map(sum, per_row)) / (n * max_new_tokens)
    prompts = sorted(set(groups))
    total = 0.0
    for prompt in prompts:
        rows = [i for i in range(n) if groups[i] == prompt]
        total += sum(sum(per_row[i]) for i in rows) / sum(lengths[i] for i in rows)
    return total / len(prompts)
