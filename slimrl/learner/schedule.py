"""The course of the learning rate."""

from __future__ import annotations

import math

from slimrl.terms import Schedule


def learning_rate(update: int, *, peak: float, schedule: Schedule, warmup: int, total: int) -> float:
    """The rate of update number `update` (0-based) of `total`: linear warm-up from 0, then the schedule down to 0."""
    if update < warmup:
        return peak * (update + 1) / warmup
    if schedule == "constant":
        return peak
    done = (update - warmup) / max(1, total - warmup)
    return peak * (1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)
