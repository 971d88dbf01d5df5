"""Shuffled gold answers: a control. What a run learns from them, it did not learn from right answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from slimrl.errors import SettingsError
from slimrl.randomness import generator
from slimrl.records import Problem
from slimrl.tasks.curriculum import ENDLESS


@dataclass(frozen=True)
class Shuffled(Sequence[Problem]):
    """Training problems, each with the answer, solution and columns of another one; the answer may happen to be right.

    A lazy sequence as `problems` is. Every answer serves once, so their frequencies stay. The partner follows from the seed: of a
    finite set it is the next one in a random order, of an endless supply the one at a distance.
    """

    problems: Sequence[Problem]
    seed: int

    def __post_init__(self) -> None:
        if len(self.problems) < 2:
            raise SettingsError("task.answers=shuffled needs two training problems; add rows, or remove it")

    def __len__(self) -> int:
        return len(self.problems)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        positions = range(len(self.problems))[index]
        if isinstance(positions, range):
            return [self._at(i) for i in positions]
        return self._at(positions)

    def _at(self, index: int) -> Problem:
        # the columns go along: a reward of the user's may read the answer in one of them
        own, other = self.problems[index], self.problems[self.partner(index)]
        return replace(other, id=own.id, question=own.question, turns=own.turns, difficulty=own.difficulty)

    def partner(self, index: int) -> int:
        """The place of the problem that the answer is of."""
        size = len(self.problems)
        if size >= ENDLESS:
            return (index + _distance(size, self.seed)) % size
        order, places = _round(size, self.seed)
        return int(order[(places[index] + 1) % size])


@lru_cache(maxsize=4)
def _distance(size: int, seed: int) -> int:
    return 1 + int(generator(seed, "shuffled answers").integers(size - 1))


@lru_cache(maxsize=4)
def _round(size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[size] problems in a random order, and [size] the place of each in it."""
    order = generator(seed, "shuffled answers").permutation(size)
    return order, np.argsort(order)
