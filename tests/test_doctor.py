"""Which switches are said to be inert, and when they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slimrl import doctor
from slimrl.config import TrainConfig
from slimrl.settings import build
from slimrl.switches import Seen, combine, inert_switches
from tests.tiny import tiny_policy

BUSY = Seen(completions=64, truncated=5, longest=64, shortest=8, groups=8, constant=3)
SWITCHES = {
    "algorithm.overlong_filtering": ({"algorithm": {"overlong_filtering": True}}, {"truncated": 0}),
    "rewards.soft_overlong": ({"rewards": {"soft_overlong": 1.0}}, {"longest": 48}),
    "algorithm.dynamic_sampling": ({"algorithm": {"dynamic_sampling": "refill"}}, {"constant": 0}),
    "algorithm.aggregation": ({"algorithm": {"aggregation": "token_mean"}}, {"shortest": 64}),
}


def names(settings: dict[str, object], seen: Seen) -> set[str]:
    several = {"optimizer": {"minibatches": 2}}
    return {s.partition(":")[0] for s in inert_switches(build(TrainConfig, {**settings, **several}), seen)}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_inert_only_where_nothing_lets_it_act(switch: str) -> None:
    settings, quiet = SWITCHES[switch]
    assert switch not in names(settings, BUSY)
    assert switch in names(settings, replace(BUSY, **quiet))
    assert switch not in names({}, replace(BUSY, **quiet)), "a switch that is off is not inert, it is off"


def test_clip_is_inert_with_one_update_only() -> None:
    one = inert_switches(TrainConfig(), BUSY)
    assert [s.partition(":")[0] for s in one] == ["algorithm.clip_low and clip_high"]
    assert (
        "may carry over" in inert_switches(build(TrainConfig, {"algorithm": {"dynamic_sampling": "refill"}}), BUSY)[0]
    )
    acting = replace(BUSY, carried=1)
    assert inert_switches(build(TrainConfig, {"algorithm": {"dynamic_sampling": "refill"}}), acting) == []
    for several in ({"minibatches": 2}, {"epochs": 2}):
        assert inert_switches(build(TrainConfig, {"optimizer": several}), BUSY) == []


def test_seen_adds_up() -> None:
    nothing = Seen(0, 0, 0, 0, 0, 0)
    other = Seen(completions=1, truncated=0, longest=90, shortest=3, groups=1, constant=1)
    assert combine(nothing, BUSY) == combine(BUSY, nothing) == BUSY
    assert combine(BUSY, other) == Seen(completions=65, truncated=5, longest=90, shortest=3, groups=9, constant=4)


def test_a_cpu_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    monkeypatch.setattr(doctor, "problem", lambda: "")
    assert doctor._slow(policy) == []
    monkeypatch.setattr(doctor, "problem", lambda: "there is no g++")
    assert "since there is no g++; install g++" in doctor._slow(policy)[0]
    policy.model.to(torch.bfloat16)
    assert doctor._slow(policy) == []
