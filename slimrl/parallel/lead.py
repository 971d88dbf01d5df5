"""The leader's part: what it tells the others, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from slimrl.learner.learner import Learner, UpdateResult
from slimrl.machine.ranks import Ranks
from slimrl.parallel.follow import share_state
from slimrl.parallel.orders import Begin, End, Take, Update
from slimrl.parallel.sampler import DividedSampler
from slimrl.preflight.setup import TrainSetup
from slimrl.records import Group


@contextmanager
def leading(ranks: Ranks) -> Iterator[None]:
    """Let the others go when the run is over; where it ends by an error, they end with the connection."""
    yield
    ranks.tell(End())


def begin(training: TrainSetup, ranks: Ranks) -> TrainSetup:
    """The same preparation with an engine that all ranks sample for."""
    if ranks.size == 1:
        return training
    setup = training.setup
    weights = {reward.name: reward.weight for reward in training.rewards}
    ranks.tell(Begin(setup.config, setup.memory.plan, weights))
    return replace(training, setup=replace(setup, engine=DividedSampler(setup.engine, ranks)))


def share(training: TrainSetup, learner: Learner) -> None:
    """Give the other ranks the state of this one, when a run begins, is resumed, or goes back to a checkpoint."""
    ranks = learner.microbatcher.ranks
    if ranks.size > 1:
        ranks.tell(Take(training.setup.engine.slots, learner.plan.microbatch_tokens))
        share_state(ranks, learner)


def update(learner: Learner, groups: Sequence[Group], step: int) -> UpdateResult:
    """`Learner.update` by all ranks."""
    learner.microbatcher.ranks.tell(Update(tuple(groups), step))
    return learner.update(groups, step)
