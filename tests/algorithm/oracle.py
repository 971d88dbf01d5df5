"""The losses once more, written from the papers in NumPy loops, with nothing shared with the package."""

from __future__ import annotations

import math

import numpy as np


def advantages(rewards: np.ndarray, scale: str, baseline: str = "group_mean") -> np.ndarray:
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
            others = [x for k, x in enumerate(row) if k != g and not math.isnan(x)]
            left_out = sum(others) / len(others) if others else r
            a = r - {"group_mean": mean, "leave_one_out": left_out, "none": 0.0}[baseline]
            if scale == "group":
                std = math.sqrt(sum((x - mean) ** 2 for x in present) / max(1, len(present) - 1))
                a /= std + 1e-4
            elif scale == "batch":
                centre = sum(flat) / len(flat)
                std = math.sqrt(sum((x - centre) ** 2 for x in flat) / (len(flat) - 1)) if len(flat) > 1 else 0.0
                a /= std + 1e-4
            elif scale == "mean":
                a = a / mean if mean > 1e-4 else 0.0
            out[p, g] = a
    return out


def gdpo(components: dict[str, np.ndarray], weights: dict[str, float], scorable: np.ndarray) -> np.ndarray:
    """Components [P][G], NaN where one does not apply."""
    total = np.zeros(scorable.shape)
    for name, rewards in components.items():
        total += weights[name] * advantages(np.where(scorable, rewards, np.nan), "group")
    flat = [x for x, keep in zip(total.flatten(), scorable.flatten(), strict=True) if keep]
    if len(flat) < 2:
        return total
    centre = sum(flat) / len(flat)
    std = math.sqrt(sum((x - centre) ** 2 for x in flat) / (len(flat) - 1))
    return np.where(scorable, (total - centre) / (std + 1e-4), 0.0)


def gae(rewards: list[float], values: list[float], discount: float, lam: float) -> list[float]:
    """One completion: the sum of discounted deltas, written as the double loop of the definition."""
    deltas = [r + discount * (values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t, r in enumerate(rewards)]
    return [sum((discount * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def importance(old: list[float], sampler: list[float], level: str, correction: str, cap: float) -> list[float]:
    """One completion's factors; differences of 1e-4 nats and less are none."""
    gaps = [o - s if abs(o - s) > 1e-4 else 0.0 for o, s in zip(old, sampler, strict=True)]
    ratios = [math.exp(sum(gaps))] * len(gaps) if level == "sequence" else [math.exp(g) for g in gaps]
    if correction == "truncate":
        return [min(r, cap) for r in ratios]
    return [r if 1 / cap <= r <= cap else 0.0 for r in ratios]


def surrogate(
    name: str, new: list[float], old: list[float], a: float, *, clip_low: float, clip_high: float, dual_clip: float
) -> list[float]:
    """One completion's values by token."""
    ratios = [math.exp(n - o) for n, o in zip(new, old, strict=True)]
    if name in ("gspo", "gspo_token"):
        ratios = [math.exp(sum(n - o for n, o in zip(new, old, strict=True)) / len(new))] * len(new)

    def bound(r: float) -> float:
        return min(max(r, 1 - clip_low), 1 + clip_high)

    values = []
    for r, logp in zip(ratios, new, strict=True):
        if name in ("reinforce", "gpg"):
            values.append(-a * logp)
        elif name == "cispo":
            values.append(-bound(r) * a * logp)
        elif name == "sapo":
            tau = 1.0 if a > 0 else 1.05
            values.append(-4 / tau / (1 + math.exp(-tau * (r - 1))) * a)
        else:
            value = min(r * a, bound(r) * a)
            if name == "clip" and dual_clip and a < 0:
                value = max(value, dual_clip * a)
            values.append(-value)
    return values


def loss(
    logprobs: list[list[float]],
    old: list[list[float]],
    reference: list[list[float]],
    advantage: list[float],
    trained: list[bool],
    groups: list[int],
    *,
    name: str,
    aggregation: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    kl_coef: float,
    estimator: str,
    max_new_tokens: int,
) -> float:
    """Rows are completions' tokens only; a row that is not trained on counts in denominators alone."""
    per_row = []
    for row, a, keep in zip(range(len(logprobs)), advantage, trained, strict=True):
        first = surrogate(name, logprobs[row], old[row], a, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
        values = []
        for value, new, ref in zip(first, logprobs[row], reference[row], strict=True):
            x = new - ref
            k3 = math.exp(-x) - 1 + x
            kl = {"k1": x, "k2": x * x / 2, "k3": k3, "k3_k2": k3}[estimator]
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
