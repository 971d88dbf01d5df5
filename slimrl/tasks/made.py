"""Problems that are made when they are asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from slimrl.records import Problem


class Made(Sequence[Problem]):
    """A lazy sequence of `size` problems: an item is made at each access, and none is stored."""

    size: int

    @abstractmethod
    def make(self, index: int) -> Problem:
        """The problem at a place, a pure function of it."""

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        positions = range(self.size)[index]
        return [self.make(i) for i in positions] if isinstance(positions, range) else self.make(positions)
