"""The part of a process that does not lead its run: prepared like the leader's, it does what it is told."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from slimrl.errors import SlimError
from slimrl.learner.forward import Microbatcher
from slimrl.learner.learner import Learner
from slimrl.machine.ranks import Ranks
from slimrl.machine.signals import Stop, Stopped
from slimrl.parallel.orders import Begin, Draw, End, Order, Take, Update
from slimrl.parallel.sampler import Share
from slimrl.preflight.setup import prepare


def follow(ranks: Ranks, stop: Stop) -> None:
    """Do what the leader says until the run ends, and end the process as the run ends; what went wrong is the leader's to say."""
    try:
        _follow(ranks, stop)
    except SlimError as error:
        sys.exit(error.exit_code)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


def _follow(ranks: Ranks, stop: Stop) -> None:
    begin = ranks.hear()
    if isinstance(begin, End):
        return
    assert isinstance(begin, Begin)
    config, plan = begin.config, begin.plan
    setup = prepare(config, training=True, kept=plan, stop=stop)
    microbatcher = Microbatcher(setup.config, plan, stop=stop, ranks=ranks)
    learner = Learner(
        setup.policy,
        setup.config,
        microbatcher,
        reward_weights=begin.reward_weights,
        exact_sampler=setup.engine.exact,
        teacher=setup.teacher,
    )
    share = Share(setup.engine, ranks)
    while True:
        order: Order = ranks.hear()
        match order:
            case Take():
                setup.engine.limit_slots(order.slots)
                learner.keep_microbatches(order.microbatch_tokens)
                share_state(ranks, learner)
            case Draw():
                share.draw(order)
            case Update():
                learner.update(order.groups, order.step)
            case End():
                return


def share_state(ranks: Ranks, learner: Learner) -> None:
    """Give every rank the leader's weights, masters, moments and loss scales."""
    policy = learner.policy
    ranks.copy(policy.tensors().values())
    optimizers = [learner.optimizer]
    if learner.critic is not None:
        ranks.copy(learner.critic.critic.state_dict().values())
        optimizers.append(learner.critic.optimizer)
    for optimizer in optimizers:
        own = optimizer.tensors()
        outline = {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in own.items()}
        (table, scale), *_ = ranks.exchange((outline, optimizer.scale))
        if not ranks.leads:
            own = {name: _blank(own.get(name), *form) for name, form in table.items()}
        ranks.copy(own.values())
        if not ranks.leads:
            optimizer.restore(own, scale)


def _blank(tensor: Tensor | None, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device.type) if tensor is None else tensor
