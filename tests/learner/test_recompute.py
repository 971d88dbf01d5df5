"""A stop between the layers of a pass: soon, and with nothing left of what it cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimrl.learner.learner import Learner
from slimrl.machine.signals import Stop, Stopped
from tests.learner.test_update import groups_of, settings
from tests.tiny import learner_of, tiny_policy

LAYERS = 2


class StopAfter(Stop):
    """Asks to stop at the n-th check from now on."""

    def __init__(self, checks: float) -> None:
        super().__init__()
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.ask("a test", 75)
        super().check()


def made(**sections: Any) -> tuple[Learner, Callable[[Stop], object]]:
    """A learner, and the first update of its step under a stop."""
    config, policy = settings(**sections), tiny_policy()
    learner, groups = learner_of(policy, config), groups_of(policy, config)

    def update(stop: Stop) -> object:
        learner.microbatcher.stop = stop
        return learner.update(groups, 0).metrics

    return learner, update


@pytest.mark.parametrize("again", ["off", "on"])
def test_a_stop_within_a_pass_leaves_nothing_behind(again: str) -> None:
    """At each check of an update of one micro-batch: before it, and twice a layer, forward and backward."""
    sections: dict[str, Any] = {"algorithm": {"kl_coef": 0}}
    sections["optimizer"] = {"learning_rate": 1e-2, "activation_checkpointing": again}
    undisturbed, update = made(**sections)
    stop = StopAfter(float("inf"))
    counted: list[None] = []
    stop.check = lambda: counted.append(None)  # type: ignore[method-assign]
    expected = update(stop)
    assert len(counted) == 1 + 2 * LAYERS
    for moment in range(1, len(counted) + 1):
        learner, update = made(**sections)
        before = {name: p.clone() for name, p in learner.policy.trainable.items()}
        with pytest.raises(Stopped):
            update(StopAfter(moment))
        assert all(torch.equal(before[name], p) for name, p in learner.policy.trainable.items())
        learner.drop()
        assert update(StopAfter(float("inf"))) == expected
        moved = learner.policy.trainable
        assert all(torch.equal(p, moved[name]) for name, p in undisturbed.policy.trainable.items())
        assert not all(torch.equal(p, moved[name]) for name, p in before.items())
    assert not any(module._forward_hooks for module in learner.policy.model.modules())
