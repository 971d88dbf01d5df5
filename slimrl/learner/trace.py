"""Copies of the numbers of tokens, for a run's page: what the loss has computed anyway, without a further pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slimrl.config.sections import LogConfig
from slimrl.machine.ranks import Ranks
from slimrl.records import TRACED, Batch, Traced
from slimrl.terms import TokenLog

TRACED_GROUPS: dict[TokenLog, int] = {"off": 0, "samples": 4, "all": 1 << 30}
"""Groups of a step, the first ones, whose tokens are traced."""


@dataclass(frozen=True)
class Trace:
    """The numbers of the first rows of a step, into which updates write theirs; without rows, nothing is ever copied."""

    numbers: Tensor
    """[len(TRACED), R, L] float16."""
    completion_mask: Tensor
    """[R, L] bool."""
    rows: Tensor
    """[b] long: the rows of the step that `keep` gets the numbers of."""
    scale: float
    """Tokens of the update: a weight of 1 / scale is an equal share for all of them."""

    def update(self, chosen: Tensor, batch: Batch) -> Trace:
        """The trace of one update: of its `batch`, the chosen rows [n] of these."""
        return replace(self, rows=self.rows[chosen], scale=float(batch.completion_mask.sum()))

    def part(self, chosen: Tensor) -> Trace:
        """The trace of the chosen rows [n] of these, a micro-batch."""
        return replace(self, rows=self.rows[chosen])

    def keep(self, compute: Callable[[], Tensor]) -> None:
        """Copy what `compute` returns for the rows, [len(TRACED), b, W] on any device, at one transfer for all of them.

        It is not called where none of the rows is wanted.
        """
        wanted = self.rows < self.numbers.shape[1]
        if not wanted.any():
            return
        found = compute()[:, wanted.to("cpu")].cpu()
        self.numbers[:, self.rows[wanted], : found.shape[-1]] = found

    def joined(self, ranks: Ranks) -> Trace:
        """With the numbers of the rows that other ranks have computed, as far as none are known here."""
        numbers = self.numbers
        for other in ranks.exchange(numbers):
            numbers = torch.where(numbers.isnan(), other, numbers)
        return replace(self, numbers=numbers)

    def traced(self) -> Traced | None:
        """The record of what was kept; None where nothing is wanted."""
        return Traced(self.numbers, self.completion_mask) if self.numbers.shape[1] else None


def begin_trace(batch: Batch, log: LogConfig) -> Trace:
    """A trace of as many of the step's first groups as log.tokens says, none of whose numbers but the advantages is known."""
    count = int((batch.groups < (TRACED_GROUPS[log.tokens] if log.rollouts else 0)).sum())
    mask = batch.completion_mask[:count]
    numbers = torch.full((len(TRACED), *mask.shape), torch.nan, dtype=torch.float16)
    numbers[0] = torch.where(mask, batch.advantages[:count], torch.nan).half()
    return Trace(numbers, mask, torch.arange(len(batch.groups)), scale=1.0)
