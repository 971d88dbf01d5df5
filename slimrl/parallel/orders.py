"""The orders that the leader gives to the other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slimrl.config.schema import EvalConfig, SftRunConfig, TrainConfig
from slimrl.learner.imitation import Example
from slimrl.records import Group, Plan


@dataclass(frozen=True)
class Begin:
    """Prepare the same run, or the same measurement."""

    config: TrainConfig | SftRunConfig | EvalConfig
    """With the numbers that model and task decided where settings say `auto`."""
    plan: Plan
    reward_weights: Mapping[str, float]
    """By reward name; empty where none trains."""
    threads: int
    """The leader's number: the last bits of sums depend on it, and a resumed run keeps that of its beginning."""
    environment: str = ""
    """Digest of the environment's files, which every rank reads for itself; empty without an environment."""


@dataclass(frozen=True)
class Take:
    """Take up the leader's weights and optimizer, which it sends next."""

    slots: int
    microbatch_tokens: int
    """Of the leader, for which memory may have run out before the run was interrupted."""


@dataclass(frozen=True)
class Give:
    """Send the leader the parts of the optimizer's state that it has not."""


@dataclass(frozen=True)
class Draw:
    """Sample the requests that are dealt next, and send the completions."""

    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class Update:
    """Take the step of these groups together."""

    groups: tuple[Group, ...]
    step: int


@dataclass(frozen=True)
class Imitate:
    """Take a step of imitation of these examples together."""

    examples: tuple[Example, ...]
    rate: float


@dataclass(frozen=True)
class End:
    """Nothing is left to do."""


Order = Begin | Take | Give | Draw | Update | Imitate | End
