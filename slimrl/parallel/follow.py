"""The part of a process that does not lead its run: prepared like the leader's, it does what it is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from slimrl.config.schema import EvalConfig, TrainConfig
from slimrl.errors import SettingsError, SlimError
from slimrl.learner.forward import Microbatcher
from slimrl.learner.imitation import imitating_optimizer, take_imitation_step
from slimrl.learner.learner import Learner
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.state import share_state, tensors_of
from slimrl.machine.limits import is_out_of_memory
from slimrl.machine.ranks import LocalError, Ranks
from slimrl.machine.signals import Stop, Stopped
from slimrl.machine.tensors import Tensors, TensorStream
from slimrl.machine.threads import fix_threads
from slimrl.model.policy import Policy
from slimrl.parallel.orders import Begin, Draw, End, Give, Imitate, Take, Update
from slimrl.parallel.sampler import Share
from slimrl.preflight.environment import environment_digest
from slimrl.preflight.setup import Setup, prepare


def follow(ranks: Ranks, stop: Stop) -> None:
    """Do what the leader says until the work ends, and end the process as it ends; what went wrong is the leader's to
    say, if it can know."""
    try:
        _follow(ranks, stop)
    except SlimError as error:
        if isinstance(error, LocalError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


def _follow(ranks: Ranks, stop: Stop) -> None:
    order: Begin | End = ranks.hear()
    policy, known = None, None
    while isinstance(order, Begin):
        if order.config.model != known:
            policy = None  # makes room for another
        with ranks.together():
            setup = _prepare(order, ranks, stop, policy)
        policy, known = setup.policy, order.config.model
        share = Share(setup.engine, ranks, setup.rules)
        with closing(setup), ranks.activity.of(computes=True):  # but where it waits for orders and for other ranks
            if isinstance(setup.config, TrainConfig):
                order = _follow_training(setup, order, share)
            elif isinstance(setup.config, EvalConfig):
                order = _follow_measuring(share)
            else:
                order = _follow_imitation(setup, order, share)
        del setup, share  # their buffers make room for those of the next measurement


def _prepare(begin: Begin, ranks: Ranks, stop: Stop, model: Policy | None) -> Setup[Any]:
    """The leader's setup, made here, with `model` if it is loaded already. Raises SettingsError where that cannot be."""
    demand_same_environment(begin, ranks)
    fix_threads(begin.threads)
    measuring = isinstance(begin.config, EvalConfig)
    try:
        return prepare(
            begin.config, training=not measuring, kept=begin.plan, stop=stop, model=model, measuring=measuring
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise SettingsError(
            f"memory ran out on rank {ranks.rank} while it loaded the model; free memory there, or take fewer devices"
        ) from None


def demand_same_environment(begin: Begin, ranks: Ranks) -> None:
    """Raises SettingsError where the files of the environment are not those of the leader."""
    if environment_digest(begin.config.environment) != begin.environment:
        raise SettingsError(
            f"environment.name={begin.config.environment.name}: its files differ between rank 0 and rank {ranks.rank}; give "
            "every machine the same"
        )


def _follow_training(setup: Setup[Any], begin: Begin, share: Share) -> End:
    ranks = share.ranks
    learner = Learner(
        setup.policy,
        setup.config,
        Microbatcher(setup.config, begin.plan, stop=setup.stop, ranks=ranks),
        reward_weights=begin.reward_weights,
        exact_sampler=setup.engine.exact,
        teacher=setup.teacher,
    )
    while not isinstance(order := ranks.hear(), End):
        with _until_told():
            match order:
                case Take():
                    setup.engine.limit_slots(order.slots)
                    learner.keep_microbatches(order.microbatch_tokens)
                    share_all(ranks, setup.policy, learner.optimizers)
                case Give():
                    give_state(learner.optimizers)
                case Draw():
                    share.draw(order)
                case Update():
                    learner.update(order.groups, order.step)
    return order


def _follow_imitation(setup: Setup[Any], begin: Begin, share: Share) -> End:
    ranks = share.ranks
    optimizer = imitating_optimizer(setup.policy, setup.config, ranks)
    while not isinstance(order := ranks.hear(), End):
        with _until_told():
            match order:
                case Take():
                    setup.engine.limit_slots(order.slots)
                    share_all(ranks, setup.policy, [optimizer])
                case Give():
                    give_state([optimizer])
                case Draw():
                    share.draw(order)
                case Imitate():
                    take_imitation_step(setup.policy, optimizer, order.examples, order.rate, begin.plan, ranks)
    return order


def _follow_measuring(share: Share) -> Begin | End:
    """Sample until the leader begins another measurement or ends."""
    order: Begin | Draw | End = share.ranks.hear()
    while isinstance(order, Draw):
        share.draw(order)
        order = share.ranks.hear()
    return order


@contextmanager
def _until_told() -> Iterator[None]:
    """A stop ends the order: the leader has heard of it, and may want the state of this rank for a checkpoint."""
    with suppress(Stopped):
        yield


def share_all(ranks: Ranks, policy: Policy, optimizers: Sequence[MasterAdamW]) -> None:
    """Give every rank the leader's weights, masters, moments and loss scales; of a divided state, every rank its part."""
    ranks.copy(policy.tensors().values())
    for optimizer in optimizers:
        ranks.copy(optimizer.parameters)
        share_state(optimizer, ranks)


def give_state(optimizers: Sequence[MasterAdamW]) -> None:
    """Send the leader, which has given the order `Give`, what this rank keeps."""
    drain([tensors_of(optimizer) for optimizer in optimizers])


def drain(tables: Sequence[Tensors]) -> None:
    """Read what has not been read of those that come a tensor at a time."""
    for table in tables:
        if isinstance(table, TensorStream):
            table.drain()
