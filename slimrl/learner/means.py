"""Means over the tokens of an update, summed on the device over its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from slimrl.algorithm.metrics import Metrics
from slimrl.machine.ranks import Ranks


class TokenMeans:
    """Means over tokens that carry their weight across micro-batches; one transfer to the host at the end."""

    def __init__(self, *, first: bool) -> None:
        self.first = first
        """The update is the first of its step, before which the policy is the one that sampled."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.largest: dict[str, Tensor] = {}

    def add(self, key: str, values: Tensor, mask: Tensor) -> None:
        """Mean of `values` [B, L] over `mask` [B, L]."""
        self.sums[key] = self.sums.get(key, torch.zeros((), device=values.device)) + values[mask].float().sum()
        self.counts[key] = self.counts.get(key, torch.zeros((), device=values.device)) + mask.sum()

    def total(self, key: str, value: Tensor) -> None:
        """A sum over micro-batches."""
        self.sums[key] = self.sums.get(key, torch.zeros((), device=value.device)) + value

    def maximum(self, key: str, values: Tensor, mask: Tensor) -> None:
        """Largest of `values` [B, L] over `mask`."""
        if mask.any():
            largest = values[mask].max()
            self.largest[key] = torch.maximum(self.largest[key], largest) if key in self.largest else largest

    def most(self, key: str, value: float) -> None:
        """Largest of numbers that the host knows."""
        self.largest[key] = torch.maximum(self.largest.get(key, torch.tensor(value)), torch.tensor(value))

    def add_up(self, ranks: Ranks) -> None:
        """Take in what the other ranks have added, so that every rank has the means of the whole update."""
        if ranks.size == 1:
            return
        own = [{key: float(x) for key, x in table.items()} for table in (self.sums, self.counts, self.largest)]
        sums, counts, largest = zip(*ranks.exchange(own), strict=True)
        self.sums = _joined(sums, sum)
        self.counts = _joined(counts, sum)
        self.largest = _joined(largest, max)

    def result(self) -> Metrics:
        """Keys in the order in which they were first added; a mean over no token is absent."""
        means = {
            key: float(value / self.counts[key]) if key in self.counts else float(value)
            for key, value in self.sums.items()
            if key not in self.counts or float(self.counts[key]) > 0
        }
        return means | {key: float(value) for key, value in self.largest.items()}


def mean_of_updates(updates: Sequence[Metrics]) -> Metrics:
    """The metrics of a step: each a mean over the updates that have it, and the size of the largest micro-batch."""
    means = {
        key: sum(m[key] for m in updates if key in m) / sum(key in m for m in updates)
        for key in dict.fromkeys(key for metrics in updates for key in metrics)
    }
    largest = "update/microbatch_tokens"
    return means | {largest: max(m.get(largest, 0.0) for m in updates)}


def _joined(tables: Sequence[Mapping[str, float]], join: Callable[[list[float]], float]) -> dict[str, Tensor]:
    keys = dict.fromkeys(key for table in tables for key in table)
    return {
        key: torch.tensor(join([table[key] for table in tables if key in table]), dtype=torch.float64) for key in keys
    }
