"""The results of rewards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Unscored:
    """A completion for which a reward has no score."""

    reason: str
    """Continues a sentence that begins with the reward's name."""
    where: str = ""
    """Innermost lines of the function that failed."""
    excused: bool = False
    """No fault of the function: a checker found no verdict in time."""
    remedy: str = ""
    """The way out, where it is another than to correct the function."""


Outcome = float | Unscored | None  # the result of one reward for one completion; None: the reward does not apply


@dataclass(frozen=True)
class Scored:
    """The result of one reward for the completions of a problem."""

    outcomes: Sequence[Outcome]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """What the function logged with `log_extra`, by column: one plain value a completion."""
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What it logged with `log_metric`, by name."""


def total(values: Sequence[float]) -> float:
    """The sum; nan where it, or one of the values, is no finite number."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return math.nan
