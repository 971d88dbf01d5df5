"""The processes of a run: those that torchrun started, or those that `devices` asks for on this host."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import torch

from slimrl.config.schema import EvalConfig, RootConfig
from slimrl.errors import SettingsError, SlimError
from slimrl.machine.ranks import RankLostError, Ranks
from slimrl.machine.signals import PREEMPTED, Stop
from slimrl.machine.threads import cores
from slimrl.parallel.follow import follow
from slimrl.parallel.lookout import meeting
from slimrl.parallel.orders import End

T = TypeVar("T")
Process = subprocess.Popen[bytes]

FOLLOWER = "slimrl.cli.follower"
WAIT_SECONDS = 30
"""Time that followers have to end by themselves once their leader is done."""
SLACK_SECONDS = 10.0
"""Between the deadline of an environment and that of its rank."""


@contextmanager
def team(config: RootConfig, stop: Stop) -> Iterator[Ranks]:
    """This process among the ranks of its run; starts the others where `devices` asks for them and torchrun has not.

    A `stop` that one of them is asked for is asked of all.

    Raises SettingsError for more devices than there are.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = config.model.device != "cpu" and torch.cuda.is_available()
    if started > 1 and config.devices not in (1, started):
        raise SettingsError(
            f"devices={config.devices}, but {started} processes were started; leave devices out, or give both the same number"
        )
    wanted = config.devices if started == 1 else 1
    most, what = (torch.cuda.device_count(), "GPUs") if cuda else (cores(), "cores")
    if wanted > most:
        raise SettingsError(f"devices={wanted} exceeds the {most} {what} of this machine; lower it")
    device, deadline = torch.device("cuda" if cuda else "cpu"), patience(config)
    with (
        followers(wanted, device, deadline) as processes,
        meeting(device, deadline, stop, partial(check_start, processes), partial(check_running, processes)) as ranks,
    ):
        yield ranks


def measured_together(configs: Sequence[EvalConfig], stop: Stop, measure: Callable[[], T]) -> T | None:
    """The result of `measure`, called by the process that leads; None in any other, once it has done what the leader told it.

    `configs` are the settings of all that is measured. Raises SettingsError where they differ in their devices, and what `team`
    and `measure` raise.
    """
    with team(_common(configs), stop) as ranks:
        if ranks.leads:
            found = measure()
            with suppress(RankLostError):  # nothing more is wanted of the others
                ranks.tell(End())
            return found
        stop.defer()
        follow(ranks, stop)
        return None


def _common(configs: Sequence[EvalConfig]) -> EvalConfig:
    """The settings of a team that measures with each of these."""
    first = configs[0]
    for config in configs:
        for key, ours, theirs in (
            ("devices", first.devices, config.devices),
            ("model.device", first.model.device, config.model.device),
        ):
            if ours != theirs:
                raise SettingsError(
                    f"{key}={ours} and {key}={theirs} are set for what is measured in one command; give all of it one value"
                )
    return first.model_copy(update={"device_deadline": max(map(patience, configs))})


def patience(config: RootConfig) -> float:
    """Seconds without a sign of life after which a rank counts as hanging.

    An environment can hold the interpreter, and with it the beats of its rank, for as long as it has for an answer.
    """
    longest = config.environment.deadline + SLACK_SECONDS if config.environment.name else 0.0
    return max(config.device_deadline, longest)


@contextmanager
def followers(count: int, device: torch.device, deadline: float) -> Iterator[Sequence[Process]]:
    """Start all ranks of this host but the leader, which is this process; they end with it, however it ends."""
    if count == 1:
        yield []
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // count))
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads,
    }
    own = common | {"RANK": "0", "LOCAL_RANK": "0"}
    before = {name: os.environ.get(name) for name in own}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", FOLLOWER, device.type, str(deadline)],
            # torch's warnings of closed connections, each with a C++ stack, say less than the leader does
            env={"TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the leader, which tells them
        )
        for rank in range(1, count)
    ]
    os.environ |= own
    torch.set_num_threads(int(threads))
    try:
        yield processes
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def check_start(processes: Sequence[Process]) -> None:
    """Raises RankLostError for a follower that was killed, SlimError for one that ended by itself."""
    for rank, process in enumerate(processes, 1):
        code = process.poll()
        if code is not None and code < 0:
            raise RankLostError(f"rank {rank} of the run was ended by signal {-code} while it started")
        if code is not None:
            raise SlimError(
                f"rank {rank} of the run ended with exit code {code} while it started; its messages are above"
            )


def check_running(processes: Sequence[Process]) -> None:
    """Raises RankLostError for a follower that has ended: the one that others ended for, where several have."""
    ended = [(code, rank) for rank, process in enumerate(processes, 1) if (code := process.poll()) is not None]
    if not ended:
        return
    code, rank = min(ended, key=lambda end: (end[0] >= 0, end[0] == PREEMPTED, end[1]))
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise RankLostError(f"rank {rank} of the run {how}")
