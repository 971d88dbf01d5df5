"""The record of a reward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slimrl.terms import CompletionForm


@dataclass(frozen=True)
class Reward:
    """A function of completions with its weight and its bounds."""

    name: str
    function: Callable[..., Any]
    """TRL's signature; returns one float, or None, for each completion."""
    weight: float
    low: float | None
    high: float | None
    """Bounds before the weight; None: unknown."""
    completions: CompletionForm = "text"
    gold: float | None = None
    """The value that a gold answer earns, where it is not the better bound."""
    draws: bool = False
    """Chance decides, from the keyword `draw` (`Sampled.draw`): a gold answer earns what any text may earn."""
    sample: int = 0
    """Gold answers of so many rows are tried; 0: all of them are held to `best`."""

    @property
    def best(self) -> float | None:
        """The value that the gold answer must earn: `high`, or `low` where the weight is negative; None where it is unknown."""
        if self.gold is not None:
            return self.gold
        return self.high if self.weight > 0 else self.low
