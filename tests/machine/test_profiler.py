"""Where the time goes: every moment once, and shares of a limit by hand."""

from __future__ import annotations

import contextlib

import pytest
import torch

from slimrl.machine import profiler
from slimrl.machine.limits import Limits, free_memory, measure_limits, peak_memory, total_memory, used_memory
from slimrl.machine.profiler import OFF, PARTS, Profiler, mean_profile

CPU = torch.device("cpu")


class Clock:
    """A clock that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(profiler.time, "perf_counter", found)
    return found


def test_a_part_within_a_part_stops_the_outer_one(clock: Clock) -> None:
    watch = Profiler(CPU)
    watch.start()
    clock.now += 1
    with watch.part("decode"):
        clock.now += 3
        with watch.part("sampling"):
            clock.now += 2
        clock.now += 2
    with contextlib.suppress(KeyError), watch.part("forward"):
        clock.now += 1
        raise KeyError
    clock.now += 1
    watch.count(flops=50.0, decode_bytes=28.0)
    metrics = watch.lap(40, Limits(flops=20.0, bandwidth=8.0))
    shares = {name: metrics[f"profile/{name}"] for name in PARTS}
    assert {name: share for name, share in shares.items() if share} == {
        "decode": 0.5, "sampling": 0.2, "forward": 0.1, "rest": 0.2
    }  # fmt: skip
    assert metrics["profile/seconds"] == 10
    assert metrics["profile/tokens_per_second"] == 4
    assert metrics["profile/flops_utilisation"] == 50 / 10 / 20
    assert metrics["profile/decode_bandwidth_utilisation"] == 28 / 7 / 8


def test_start_forgets_and_off_counts_nothing(clock: Clock) -> None:
    watch = Profiler(CPU)
    with watch.part("decode"):
        clock.now += 3
    watch.count(flops=5.0)
    watch.start()
    clock.now += 1
    assert watch.lap(1, Limits(1.0, 1.0))["profile/rest"] == 1
    assert watch.flops == 0
    with OFF.part("decode"):
        OFF.count(flops=1.0)
    assert not OFF.seconds
    assert OFF.flops == 0


def test_means_are_weighted_by_time() -> None:
    rows = [
        {"profile/seconds": 1.0, "profile/decode": 0.2},
        {"loss": 1.0},
        {"profile/seconds": 3.0, "profile/decode": 0.6},
    ]
    assert mean_profile(rows) == {"decode": pytest.approx(0.5)}
    assert mean_profile([{"loss": 1.0}]) == {}


def test_ranks_of_a_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = total_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert total_memory(CPU) == whole // 2
    assert 0 < free_memory(CPU) <= whole // 2


def test_the_machine_is_measured() -> None:
    limits = measure_limits(CPU, torch.float32)
    assert limits.flops > 1e8
    assert limits.bandwidth > 1e7
    assert free_memory(CPU) > 0
    block = torch.ones(2**24)
    assert peak_memory(CPU) >= used_memory(CPU) > block.nbytes
