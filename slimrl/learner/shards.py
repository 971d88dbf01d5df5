"""The division of an optimizer's state among the ranks of a run, as ZeRO's first stage has it (arXiv:1910.02054).

All weights lie on one axis, of which each rank keeps the masters and moments of an equal part. Every rank holds the whole
weights and the whole gradients, so the division changes no number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from slimrl.machine.ranks import Ranks

GRAIN = 64
"""Numbers of a weight that stay together, so that kernels meet every number at the same place of a vector."""


class Shards:
    """Pieces of weights by number: flat and consecutive, one of each rank, and some of them empty.

    Args:
        weights: all that are divided, in the order that all ranks have; contiguous.
        ranks: those that share the state; of a single one the only piece is the weight, in its shape.
    """

    def __init__(self, weights: Sequence[Tensor], ranks: Ranks) -> None:
        self.ranks = ranks
        self.shapes = [weight.shape for weight in weights]
        ends = list(accumulate(weight.numel() for weight in weights))
        total = ends[-1] if ends else 0
        self._begins = [end - weight.numel() for weight, end in zip(weights, ends, strict=True)]
        self._sizes = [weight.numel() for weight in weights]
        self._cuts = [total * rank // ranks.size for rank in range(ranks.size + 1)]

    @property
    def divided(self) -> bool:
        return self.ranks.size > 1

    def part(self, number: int, whole: Tensor, rank: int | None = None) -> Tensor:
        """The piece of a rank, by default this one: a view of a tensor that has the shape of the weight."""
        if not self.divided:
            return whole
        rank = self.ranks.rank if rank is None else rank
        start, end = (self._within(number, cut) for cut in self._cuts[rank : rank + 2])
        return whole.view(-1)[start:end]

    def spread(self, numbers: Iterable[int], weights: Sequence[Tensor]) -> None:
        """Give all ranks every rank's pieces of the numbered weights."""
        if self.divided:
            self.ranks.copy_from(
                (self.part(number, weights[number].detach(), rank), rank)
                for number in numbers
                for rank in range(self.ranks.size)
            )

    def whole(self, number: int, piece: Tensor | None) -> Tensor:
        """The tensor whose pieces the ranks have (None: an empty one), in the leader's host memory; on the others an empty one.

        With a single rank the piece itself.
        """
        ranks = self.ranks
        if not self.divided:
            assert piece is not None
            return piece.detach()
        if not ranks.leads:
            if piece is not None:
                ranks.send(piece)
            return torch.empty(0)
        found = torch.empty(self.shapes[number])
        for rank in range(ranks.size):
            part = self.part(number, found, rank)
            if rank == ranks.rank and piece is not None:
                part.copy_(piece)
            elif rank != ranks.rank and part.numel():
                ranks.receive(part, rank)
        return found

    def deal(self, number: int, whole: Tensor | None) -> Tensor | None:
        """This rank's piece, in host memory, of a tensor that only the leader has; None where it has none of it."""
        ranks = self.ranks
        if not ranks.leads:
            piece = self.part(number, torch.empty(self.shapes[number]))
            if not piece.numel():
                return None
            ranks.receive(own := torch.empty_like(piece), 0)
            return own
        assert whole is not None
        for rank in range(1, ranks.size):
            if (part := self.part(number, whole, rank)).numel():
                ranks.send(part, rank)
        own = self.part(number, whole)
        return own if own.numel() else None

    def _within(self, number: int, cut: int) -> int:
        """The place in a weight at which the axis is cut, on a multiple of GRAIN."""
        place = (cut - self._begins[number]) // GRAIN * GRAIN
        if cut >= self._begins[number] + self._sizes[number]:
            return self._sizes[number]
        return max(0, place)
