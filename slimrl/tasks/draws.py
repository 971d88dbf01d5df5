"""Integers decided by a key alone; a hash rather than a library's generator, so that they never change."""

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A sequence of integers that follows from its key."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self._block = 0
        self._words: list[int] = []

    def below(self, bound: int) -> int:
        """The next integer of 0 .. bound - 1."""
        if not self._words:
            digest = hashlib.blake2b(self._key + b"/%d" % self._block).digest()
            self._block += 1
            self._words = [*struct.unpack("<8Q", digest)]
        return self._words.pop() % bound

    def pick(self, items: Sequence[T]) -> T:
        """The next item of a sequence that is not empty."""
        return items[self.below(len(items))]
