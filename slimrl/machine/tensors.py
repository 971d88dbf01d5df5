"""Tables of tensors by name: in memory, or of which one tensor at a time is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorStream:
    """Tensors that are put together one at a time.

    Example: TensorStream({"a": torch.empty(3, device="meta")}, iter([torch.zeros(3)]), finite=True)
    """

    outline: Mapping[str, Tensor]
    """Their shapes and types: tensors of the meta device."""
    contents: Iterator[Tensor]
    """The tensors, in the order of the outline; they can be read once."""
    finite: bool

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, in order; none is kept here once it is taken."""
        for name in self.outline:
            yield name, next(self.contents)

    def drain(self) -> None:
        """Read what has not been read."""
        deque(self.contents, maxlen=0)  # which keeps none


Tensors = Mapping[str, Tensor] | TensorStream


def outline_of(tensors: Tensors) -> Mapping[str, Tensor]:
    """Tensors with the names, shapes and types of `tensors`, of which nothing is read."""
    return tensors.outline if isinstance(tensors, TensorStream) else tensors


def holds_finite(tensors: Tensors) -> bool:
    """True where all numbers are finite; of a stream nothing is read."""
    return tensors.finite if isinstance(tensors, TensorStream) else are_finite(tensors.values())


def are_finite(tensors: Iterable[Tensor]) -> bool:
    return all(_is_finite(tensor) for tensor in tensors)


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return bool(torch.isfinite(tensor).all())
    ends = torch.aminmax(tensor.detach())  # one pass that makes no tensor of its size; NaN is both ends
    return bool(torch.isfinite(ends.min) & torch.isfinite(ends.max))
