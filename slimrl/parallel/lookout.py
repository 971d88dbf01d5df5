"""Processes of a run that hang: noticed by the beats that each puts into the store of the run once a second."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from slimrl.machine.ranks import Ranks
from slimrl.machine.signals import PREEMPTED, Stop

STOP = "stop"
PERIOD = 1.0
"""Seconds between two beats."""


@contextmanager
def looking_out(ranks: Ranks, deadline: float, stop: Stop) -> Iterator[None]:
    """Within the block, a rank that gives no sign of life for `deadline` seconds is ended, so that nobody waits for it, and what
    one rank is asked to stop by, all are.

    On the same host its process is killed, which closes its connections: the leader then stops with a checkpoint. A process on
    another host cannot be reached, so this one ends, and the newest checkpoint is where the run goes on.
    """
    if ranks.size == 1:
        yield
        return
    over = threading.Event()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun keeps its store when it starts the processes again, and a stop of earlier ones is not for these
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"slimrl/{attempt}", TCPStore(host, port, is_master=False))
    watch = threading.Thread(target=_look, args=(store, ranks, deadline, stop, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()


def _look(store: Store, ranks: Ranks, deadline: float, stop: Stop, over: threading.Event) -> None:
    others = {rank: f"beat/{rank}" for rank in range(ranks.size) if rank != ranks.rank}
    seen = dict.fromkeys(others, ("", time.monotonic()))
    beat = 0
    with contextlib.suppress(RuntimeError):  # the store has ended with the run
        while not over.wait(PERIOD):
            beat += 1
            store.set(f"beat/{ranks.rank}", f"{socket.gethostname()} {os.getpid()} {beat}")
            _spread_stop(store, stop)
            for rank, key in others.items():
                found = store.get(key).decode() if store.check([key]) else ""
                if found != seen[rank][0]:
                    seen[rank] = (found, time.monotonic())
                elif time.monotonic() - seen[rank][1] > deadline and not over.is_set():
                    _end(rank, found, deadline)
                    seen[rank] = (found, float("inf"))


def _spread_stop(store: Store, stop: Stop) -> None:
    if stop.asked is not None:
        store.set(STOP, f"{stop.asked.exit_code} {stop.asked.cause}")
    elif store.check([STOP]):
        code, _, cause = store.get(STOP).decode().partition(" ")
        stop.ask(cause, int(code))


def _end(rank: int, beat: str, deadline: float) -> None:
    host, _, rest = beat.partition(" ")
    print(f"rank {rank} gave no sign of life for {deadline:g} s, so the run stops", file=sys.stderr, flush=True)
    if host == socket.gethostname():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(rest.split()[0]), signal.SIGKILL)
    else:
        os._exit(PREEMPTED)
