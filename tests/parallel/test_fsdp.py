"""Layers that are divided among ranks in an update; `test_ranks` holds that their gradients are those of one process."""

from __future__ import annotations

import pytest
from torch import nn

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.learner.divided import divides
from slimrl.machine.ranks import Ranks
from tests.parallel.test_ranks import run, started
from tests.tiny import tiny_policy


@pytest.mark.parametrize("count", [2, 4])
def test_divided_layers(count: int) -> None:
    """One test, since what takes time is to start the processes."""
    found = run(count, "fsdp")
    assert max(found["imitated"].values()) < 1e-6
    for name, case in found["kept"].items():
        assert all(case.values()), (name, case)
    assert found["failing"] == {
        "stopped in a pass": True,
        "stopped heard by one rank": True,
        "dropped": [1.0, True],
        "moved": True,
        "next": True,
        "on all": True,
    }


def test_a_rank_without_memory_says_so_and_the_others_stop() -> None:
    """In the middle of a pass it cannot tell the others, which wait for it in torch."""
    (leader, other) = started(2, "fsdp", "memory")
    assert other.code != 0
    assert "memory ran out on rank 1 in the update with optimizer.microbatch_tokens=" in other.err
    assert leader.code == 0
    assert "stopped by the loss of another process" in leader.out


def test_experts_that_are_modules_of_their_own_are_refused() -> None:
    """One that no token of a rank is sent to has no gradient there, and each rank would add up those that it has."""
    policy, config = tiny_policy(), load_config(TrainConfig, [], ["parallel=fsdp", "devices=2"])
    assert divides(config, policy, Ranks(0, 2))
    policy.model.model.layers[0].mlp.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(SettingsError, match=r"keeps its experts as separate modules, .* set parallel=ddp"):
        divides(config, policy, Ranks(0, 2))
    assert not divides(config, policy, Ranks())
