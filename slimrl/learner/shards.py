"""The division of weights and of an optimizer's state among the ranks of a run.

As in ZeRO's first stage (arXiv:1910.02054) weights lie on one axis, of which each rank keeps the masters and moments of an equal
part. Every rank holds those weights and their gradients whole, so the division changes no number. Weights that FSDP divides are
cut as it cuts them: each by rows of its first axis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
        by_rows: numbers of the weights that are cut by rows.
    """

    def __init__(self, weights: Sequence[Tensor], ranks: Ranks, by_rows: Collection[int] = ()) -> None:
        self.ranks = ranks
        self.shapes = [weight.shape for weight in weights]
        on_axis = [0 if number in by_rows else weight.numel() for number, weight in enumerate(weights)]
        begins = [0, *accumulate(on_axis)]
        shares = [begins[-1] * rank // ranks.size for rank in range(ranks.size + 1)]
        self._cuts = [
            _row_cuts(weight, ranks.size)
            if number in by_rows
            else [_within(weight.numel(), share - begins[number]) for share in shares]
            for number, weight in enumerate(weights)
        ]
        """By number: the places in a weight between which the ranks' pieces lie."""

    @property
    def divided(self) -> bool:
        return self.ranks.size > 1

    def part(self, number: int, whole: Tensor, rank: int | None = None) -> Tensor:
        """The piece of a rank, by default this one: a view of a tensor that has the shape of the weight."""
        if not self.divided:
            return whole
        rank = self.ranks.rank if rank is None else rank
        start, end = self._cuts[number][rank : rank + 2]
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


def _row_cuts(weight: Tensor, count: int) -> list[int]:
    """The cuts of torch.chunk along the first axis, behind whose last part others are empty."""
    rows = len(weight)
    return [min(rank * -(-rows // count), rows) * (weight.numel() // rows) for rank in range(count + 1)]


def _within(size: int, place: int) -> int:
    """A place relative to a weight's beginning as one within the weight, on a multiple of GRAIN or at its end."""
    return size if place >= size else max(0, place // GRAIN * GRAIN)
