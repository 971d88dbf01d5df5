"""The problems of each step: a pure function of (seed, step), so a resumed run needs only an integer."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from slimrl.randomness import generator
from slimrl.records import Problem

ENDLESS = 2**24
"""Sequences at least this long are made on demand, already in random order: they are read straight through."""


def problems_for_step(problems: Sequence[Problem], *, seed: int, step: int, count: int) -> Iterator[Problem]:
    """The `count` problems of this step, then spares (for dynamic sampling), none twice.

    A finite set is shuffled anew for every pass through it; spares come from a permutation of their own.
    """
    seen: set[int] = set()
    for index in _indices(len(problems), seed, step, count):
        if index not in seen:
            seen.add(index)
            yield problems[index]


def _indices(size: int, seed: int, step: int, count: int) -> Iterator[int]:
    start = step * count
    spares = generator(seed, "spares", step)
    if size >= ENDLESS:
        yield from ((start + i) % (size // 2) for i in range(count))
        while True:
            yield size // 2 + int(spares.integers(size // 2))
    for position in range(start, start + count):
        epoch, offset = divmod(position, size)
        yield int(permutation(size, seed, epoch)[offset])
    yield from spares.permutation(size).tolist()


@lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one pass."""
    return generator(seed, "order", epoch).permutation(size)
