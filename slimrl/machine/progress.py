"""The words by which a long piece of work says how far it has come."""

from collections.abc import Callable

Progress = Callable[[int, int], object]
"""Receives the number of pieces that are done, 0 at the beginning, and that of all. It decides nothing."""


def silent(_done: int, _total: int) -> None:
    """The `Progress` of a caller that shows none."""
