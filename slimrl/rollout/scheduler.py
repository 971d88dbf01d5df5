"""The scheduler: samples that wait, samples that occupy slots, and prompts that are stored, in plain numbers, without a model.

The samples of all requests are numbered in order, and enter in order. The occupied slots are always the first ones: where
rows leave, the rows at the end move into their slots. The store of prompts is kept contiguous in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
PATIENCE = 16
"""Finished rows leave when they are a 1/PATIENCE of the batch: closing their slots costs more than a few idle rows do."""


@dataclass(frozen=True)
class Moves:
    """Entries from the end of a list that replace entries that leave."""

    kept: int
    """Entries that remain."""
    target: Indices
    """Holes among the first `kept` entries."""
    source: Indices
    """The entries behind them that fill the holes, one for one."""

    def apply(self, entries: Indices) -> Indices:
        """The entries that remain, in their new order; overwrites `entries`."""
        entries[self.target] = entries[self.source]
        return entries[: self.kept]


class Scheduler:
    """The bookkeeping of one call of `generate`."""

    def __init__(self, samples: Sequence[int]) -> None:
        """`samples` is the number of completions of each request."""
        self.request_of = np.repeat(np.arange(len(samples)), samples)
        self.first_of = np.concatenate([[0], np.cumsum(samples)])
        self.unfinished = np.array(samples)
        self.entered = 0
        """Samples that have entered; they enter in order, so this number also says which wait."""
        self.rows: Indices = np.zeros(0, dtype=np.int64)
        """[active] sample in each slot."""
        self.entered_at: Indices = np.zeros(0, dtype=np.int64)
        """[active] time at which it entered."""
        self.stored: Indices = np.zeros(0, dtype=np.int64)
        """Request whose prompt is at each place of the prompt store."""
        self.time = 0
        """Decode steps since the slots were last empty."""

    @property
    def active(self) -> int:
        return len(self.rows)

    @property
    def fresh(self) -> int:
        """Samples that have not entered."""
        return len(self.request_of) - self.entered

    @property
    def first_waiting(self) -> int:
        """The first request with waiting samples; the number of requests where no sample waits."""
        return int(self.request_of[self.entered]) if self.entered < len(self.request_of) else len(self.unfinished)

    def enter(self, slots: int, *, restart: bool = True) -> Indices:
        """The waiting samples that take the free ones of `slots`. Where all slots were empty, the clock may `restart`."""
        if not self.active and restart:
            self.time = 0
        samples = np.arange(self.entered, min(self.entered + slots - self.active, len(self.request_of)))
        self.rows = np.concatenate([self.rows, samples])
        self.entered_at = np.concatenate([self.entered_at, np.full(len(samples), self.time)])
        self.entered += len(samples)
        return samples

    def begin(self, tokens: int) -> int:
        """The time at which a row with so many tokens would have entered, of which the last one is fed next."""
        return self.time - (tokens - 1)

    def come_back(self, samples: Sequence[int], tokens: Sequence[int]) -> None:
        """Give free slots to samples that have entered before and left, with so many tokens each.

        The clock must have run on since, so that it has shown as many steps as a sample has tokens that were fed.
        """
        self.rows = np.concatenate([self.rows, np.array(samples, dtype=np.int64)])
        begins = [self.begin(count) for count in tokens]
        self.entered_at = np.concatenate([self.entered_at, np.array(begins, dtype=np.int64)])

    def worth_closing(self, done: NDArray[np.bool_]) -> bool:
        """True where enough of the rows [active] are done."""
        finished = int(done.sum())
        return finished == self.active or finished >= max(1, self.active // PATIENCE)

    def finish(self, sample: int) -> range:
        """Count a sample as finished: all samples of its request where this was the last of them, else none."""
        request = self.request_of[sample]
        self.unfinished[request] -= 1
        first, end = self.first_of[request], self.first_of[request + 1]
        return range(0) if self.unfinished[request] else range(first, end)

    def close_slots(self, done: NDArray[np.bool_]) -> Moves:
        """Let the rows leave that are done [active]."""
        moves = _close(done)
        self.rows, self.entered_at = moves.apply(self.rows), moves.apply(self.entered_at)
        return moves

    def close_prompts(self, leaving: NDArray[np.bool_] | None = None) -> Moves:
        """Let these of the stored prompts leave; by default those all of whose samples are finished."""
        moves = _close(self.unfinished[self.stored] == 0 if leaving is None else leaving)
        self.stored = moves.apply(self.stored)
        return moves

    def idle_prompts(self, count: int) -> NDArray[np.bool_]:
        """Of the stored prompts, the first `count` of which no sample has a slot."""
        idle = ~np.isin(self.stored, self.request_of[self.rows])
        return idle & (idle.cumsum() <= count)

    def seats(self) -> tuple[Indices, Indices]:
        """[active] each: the place of a row's prompt in the store, and the row's number among those that share it."""
        place_of = np.zeros(len(self.unfinished), dtype=np.int64)
        place_of[self.stored] = np.arange(len(self.stored))
        place = place_of[self.request_of[self.rows]]
        order = np.argsort(place, kind="stable")
        counts = np.bincount(place, minlength=len(self.stored))
        starts = np.cumsum(counts) - counts
        seat = np.empty(self.active, dtype=np.int64)
        seat[order] = np.arange(self.active) - starts[place[order]]
        return place, seat


def _close(leaving: NDArray[np.bool_]) -> Moves:
    kept = int((~leaving).sum())
    return Moves(kept, leaving[:kept].nonzero()[0], (~leaving[kept:]).nonzero()[0] + kept)
