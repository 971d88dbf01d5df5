"""The laws across ranks: whatever their number, the same tokens, the same gradient, the same weights on all of them."""

from __future__ import annotations

import json
import socket
import sys
from importlib import import_module
from typing import Any

import pytest

from tests.conftest import Ended
from tests.forks import Fork
from tests.parallel.cases import CASES, FEW


def run(count: int, module: str = "cases", *arguments: str) -> dict[str, Any]:
    """What the leader of so many ranks says of all cases of a module."""
    ranks = started(count, module, *arguments)
    assert not any(rank.code for rank in ranks), [(rank.code, rank.err[-1000:]) for rank in ranks]
    found: dict[str, Any] = json.loads(ranks[0].out)
    return found


def started(count: int, module: str, *arguments: str) -> list[Ended]:
    """The ends of so many ranks that run a module."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    own = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    ranks = [Fork(run_rank, module, arguments, variables=variables) for variables in own]
    return [rank.ended() for rank in ranks]


def run_rank(module: str, arguments: tuple[str, ...]) -> None:
    """One rank, in a process of its own."""
    sys.argv = [module, *arguments]
    import_module(f"tests.parallel.{module}").main()


@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_ranks_takes_the_same_step(count: int) -> None:
    """One test, since what takes time is to start the processes."""
    found = run(count)
    names = [*CASES, "adapter"] if count == 2 else FEW
    for name in [*names, *(f"{name}, fsdp" for name in names if name in CASES)]:
        case = found[name]
        assert case["gradient"] < 1e-6, name
        assert max(case["means"].values()) < 1e-6, (name, case["means"])
        assert case["keys"], name
        assert case["equal on all ranks"], name
    assert found["token mean, several updates"]["updates"] == 4
    assert found["drawn"] == {"same tokens": True, "heard": True}
    assert {"loss", "grad_norm"} <= found["imitated"].keys()
    assert max(found["imitated"].values()) < 1e-6
    check_failures(found["failing"], count)
    for name, case in found["divided"].items():
        assert all(case.values()), (name, case)
    assert all(found["given"].values()), found["given"]
    assert found["shared"]["equal"]
    assert found["shared"]["moments"] > 0


def check_failures(found: dict[str, Any], count: int) -> None:
    """What one rank raises, all raise; where memory runs out on one of them, all try again with smaller micro-batches."""
    for kind in ("Stopped", "NonFiniteError", "SettingsError"):
        assert found[kind] == [kind, True]
    assert found["tries"] == [2] * count
    assert len(set(found["tokens"])) == 1
    assert found["tokens"][0] < 16384
