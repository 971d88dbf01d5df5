"""The part of a process that does not lead its run: prepared like the leader's, it does what it is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError, SlimError
from slimrl.learner.forward import Microbatcher
from slimrl.learner.imitation import imitating_optimizer, take_imitation_step
from slimrl.learner.learner import Learner
from slimrl.learner.optimizer import MasterAdamW
from slimrl.machine.limits import is_out_of_memory
from slimrl.machine.ranks import LocalError, Ranks
from slimrl.machine.signals import Stop, Stopped
from slimrl.model.policy import Policy
from slimrl.parallel.orders import Begin, Draw, End, Give, Imitate, Take, Update
from slimrl.parallel.sampler import Share
from slimrl.preflight.environment import environment_digest
from slimrl.preflight.setup import Setup, prepare


def follow(ranks: Ranks, stop: Stop) -> None:
    """Do what the leader says until the run ends, and end the process as the run ends; what went wrong is the leader's to
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
    begin: Begin | End = ranks.hear()
    if isinstance(begin, End):
        return
    with ranks.together():
        setup = _prepare(begin, ranks, stop)
    share = Share(setup.engine, ranks, setup.rules)
    if isinstance(setup.config, TrainConfig):
        _follow_training(setup, begin, share)
    else:
        _follow_imitation(setup, begin, share)


def _prepare(begin: Begin, ranks: Ranks, stop: Stop) -> Setup[Any]:
    """The leader's setup, made here. Raises SettingsError where that cannot be."""
    demand_same_environment(begin, ranks)
    try:
        return prepare(begin.config, training=True, kept=begin.plan, stop=stop)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise SettingsError(
            f"memory ran out on rank {ranks.rank} while it loaded the model; free memory there, or train on fewer devices"
        ) from None


def demand_same_environment(begin: Begin, ranks: Ranks) -> None:
    """Raises SettingsError where the files of the environment are not those of the leader."""
    if environment_digest(begin.config.environment) != begin.environment:
        raise SettingsError(
            f"environment.name={begin.config.environment.name}: its files differ between rank 0 and rank {ranks.rank}; give "
            "every machine the same"
        )


def _follow_training(setup: Setup[Any], begin: Begin, share: Share) -> None:
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
                    share_state(ranks, setup.policy, learner.optimizers)
                case Give():
                    give_state(learner.optimizers)
                case Draw():
                    share.draw(order)
                case Update():
                    learner.update(order.groups, order.step)


def _follow_imitation(setup: Setup[Any], begin: Begin, share: Share) -> None:
    ranks = share.ranks
    optimizer = imitating_optimizer(setup.policy, setup.config, ranks)
    while not isinstance(order := ranks.hear(), End):
        with _until_told():
            match order:
                case Take():
                    setup.engine.limit_slots(order.slots)
                    share_state(ranks, setup.policy, [optimizer])
                case Give():
                    give_state([optimizer])
                case Draw():
                    share.draw(order)
                case Imitate():
                    take_imitation_step(setup.policy, optimizer, order.examples, order.rate, begin.plan, ranks)


@contextmanager
def _until_told() -> Iterator[None]:
    """A stop ends the order: the leader has heard of it, and may want the state of this rank for a checkpoint."""
    with suppress(Stopped):
        yield


def share_state(ranks: Ranks, policy: Policy, optimizers: Sequence[MasterAdamW]) -> None:
    """Give every rank the leader's weights, masters, moments and loss scales; of a divided state, every rank its part."""
    ranks.copy(policy.tensors().values())
    for optimizer in optimizers:
        ranks.copy(optimizer.parameters)
        if optimizer.shards.divided:
            optimizer.deal()
        else:
            _copy_state(ranks, optimizer)


def _copy_state(ranks: Ranks, optimizer: MasterAdamW) -> None:
    own = optimizer.tensors()
    outline = {name: (tensor.shape, tensor.dtype, tensor.device.type) for name, tensor in own.items()}
    (table, scale), *_ = ranks.exchange((outline, optimizer.scale))
    if not ranks.leads:
        own = {name: _blank(own.get(name), *form) for name, form in table.items()}
    ranks.copy(own.values())
    if not ranks.leads:
        optimizer.restore(own, scale)


def give_state(optimizers: Sequence[MasterAdamW]) -> list[dict[str, Tensor]]:
    """`MasterAdamW.tensors` of each; the leader of a divided state must have given the order `Give` before."""
    return [optimizer.tensors() for optimizer in optimizers]


def _blank(tensor: Tensor | None, shape: torch.Size, dtype: torch.dtype, device: str) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device) if tensor is None else tensor
