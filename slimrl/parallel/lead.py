"""The leader's part: what it tells the others, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

import torch

from slimrl.config.schema import EvalConfig, RootConfig, SftRunConfig, TrainConfig
from slimrl.errors import SettingsError
from slimrl.learner.divided import divides
from slimrl.learner.learner import Learner
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.state import tensors_of
from slimrl.machine.ranks import Ranks
from slimrl.machine.tensors import Tensors
from slimrl.model.policy import Policy
from slimrl.parallel.follow import drain, share_all
from slimrl.parallel.orders import Begin, End, Give, Take, Update
from slimrl.parallel.sampler import DividedSampler
from slimrl.preflight.environment import environment_digest
from slimrl.preflight.setup import Setup
from slimrl.records import Group

Config = TypeVar("Config", TrainConfig, SftRunConfig, EvalConfig)
NONE: Mapping[str, float] = MappingProxyType({})


@contextmanager
def leading(ranks: Ranks) -> Iterator[None]:
    """Let the others go when the work is over; where it ends by an error, they end with the connection."""
    yield
    ranks.tell(End())


def begin(setup: Setup[Config], ranks: Ranks, reward_weights: Mapping[str, float] = NONE) -> Setup[Config]:
    """Let the others prepare the same run or measurement; returns the setup with an engine that all ranks sample for.

    Raises the error of a rank that cannot prepare it, and SettingsError as `demand_turns` does.
    """
    if not isinstance(setup.config, EvalConfig):
        setup = replace(setup, notes=(*setup.notes, *division_notes(setup.config, setup.policy, ranks)))
        divides(setup.config, setup.policy, ranks)  # raises before there is a run where layers cannot be divided
    if ranks.size == 1:
        return setup
    demand_turns(setup, ranks)
    files = environment_digest(setup.config.environment)
    ranks.tell(Begin(setup.config, setup.memory.plan, dict(reward_weights), torch.get_num_threads(), files))
    with ranks.together():
        pass  # until they have
    return replace(setup, engine=DividedSampler(setup.engine, ranks))


def demand_turns(setup: Setup[Config], ranks: Ranks) -> None:
    """Raises SettingsError for a reward that reads environments, most of which are in other processes."""
    reading = [reward.name for reward in setup.rewards if reward.reads_environments]
    if setup.shown and reading:
        raise SettingsError(
            f"reward {reading[0]} reads environments, and of {ranks.size} processes each keeps those that it plays; set "
            "devices=1, or let it read turns and environment_score"
        )


def division_notes(config: RootConfig, policy: Policy, ranks: Ranks) -> list[str]:
    """A sentence for each setting of this run that divides nothing."""
    told = {"optimizer.sharded=true": config.optimizer.sharded, "parallel=fsdp": config.parallel == "fsdp"}
    alone = [f"{setting} has no effect on one device" for setting, on in told.items() if on and ranks.size == 1]
    if config.parallel == "fsdp" and ranks.size > 1 and policy.lora is not None:
        return ["parallel=fsdp has no effect with an adapter: only its own weights, which are few, have gradients"]
    return alone


def share(
    setup: Setup[Config], optimizers: Sequence[MasterAdamW], ranks: Ranks, microbatch_tokens: int | None = None
) -> None:
    """Give the others the state of this rank, when a run begins, is resumed, or goes back to a checkpoint."""
    if ranks.size > 1:
        ranks.tell(Take(setup.engine.slots, microbatch_tokens or setup.memory.plan.microbatch_tokens))
        share_all(ranks, setup.policy, optimizers)


def share_learner(setup: Setup[TrainConfig], learner: Learner) -> None:
    """`share` of a learner's state."""
    share(setup, learner.optimizers, learner.microbatcher.ranks, learner.plan.microbatch_tokens)


@contextmanager
def announced(learner: Learner, groups: Sequence[Group], step: int) -> Iterator[None]:
    """Let the others take part in the `Learner.update` within the block."""
    ranks = learner.microbatcher.ranks
    ranks.tell(Update(tuple(groups), step))
    with ranks.activity.of(computes=True):
        yield


@contextmanager
def whole_state(optimizers: Sequence[MasterAdamW], ranks: Ranks) -> Iterator[list[Tensors]]:
    """Masters and moments of each optimizer, for the block; those that other ranks keep are to be read in this order.

    What the block does not read is read when it ends, since the others send it. Raises RankLostError where one is gone.
    """
    if any(optimizer.shards.divided for optimizer in optimizers):
        ranks.tell(Give())
    tables = [tensors_of(optimizer) for optimizer in optimizers]
    try:
        yield tables
    finally:
        drain(tables)
