"""The record of a reward."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slimrl.terms import CompletionForm

FURTHER = ("trainer_state", "log_extra", "log_metric")
"""TRL's arguments beside the columns, which a function gets if it can take them."""
_LIST = "(?:list|sequence|iterable|tuple)"
_MESSAGES = re.compile(rf"{_LIST}\[{_LIST}\[(?:dict|mapping|\w*message)", re.IGNORECASE)
"""A type of completions as chat messages, without the names of modules."""


@dataclass(frozen=True)
class Reward:
    """A function of completions with its weight, 0 where it is measured and not paid, and its bounds."""

    name: str
    function: Callable[..., Any]
    """TRL's signature; returns one float, or None, for each completion."""
    weight: float
    low: float | None
    high: float | None
    """Bounds before the weight; None: unknown."""
    completions: CompletionForm = "auto"
    gold: float | None = None
    """The value that a gold answer earns, where it is not the better bound."""
    draws: bool = False
    """Chance decides, from the keyword `draw` (`Sampled.draw`): a gold answer earns what any text may earn."""
    sample: int = 0
    """Gold answers of so many rows are tried; 0: all of them are held to `best`."""
    custom: bool = False
    """A function of the user's."""
    pays_turns: bool = False
    """Its value includes the sum of what the environment paid for each turn."""

    @property
    def best(self) -> float | None:
        """The value that the gold answer must earn: `high`, or `low` where the weight is negative; None where it is unknown, or
        nothing is paid.
        """
        if not self.weight:
            return None
        if self.gold is not None:
            return self.gold
        return self.high if self.weight > 0 else self.low

    @cached_property
    def takes_messages(self) -> bool:
        """True if a completion is a list of messages and not a text."""
        if self.completions != "auto":
            return self.completions == "messages"
        try:
            parameter = inspect.signature(self.function).parameters.get("completions")
        except (TypeError, ValueError):
            return False
        annotation = "" if parameter is None else parameter.annotation
        shape = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        return bool(_MESSAGES.match(re.sub(r"\w+\.|\s", "", shape)))

    @cached_property
    def reads_environments(self) -> bool:
        """True for a function with a parameter `environments`, which has nothing to read beside a gold answer."""
        return "environments" in self._parameters

    @cached_property
    def takes_environments(self) -> bool:
        """True for one that can be called with `environments`."""
        every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters.values())
        return every or self.reads_environments

    @cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        try:
            return inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            return {}

    @cached_property
    def further(self) -> tuple[str, ...]:
        """Those of FURTHER that the function can take; one that tells nothing of itself gets none.

        It is asked once, since that takes longer than a call of a short function.
        """
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):
            return ()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return FURTHER
        named = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
        return tuple(name for name in FURTHER if name in named)
