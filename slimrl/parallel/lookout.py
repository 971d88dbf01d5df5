"""Processes of a run that hang.

Each puts a beat into the store of the run once a second, from a thread: one that is suspended, or whose interpreter is held up,
gives none, and the others end it. The same thread looks at the one that does the work of its process: where that computes and is
at the same place for the deadline, as behind a GPU that does not answer or waits for one whose rank has ended, the process ends
itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import FrameType

import torch
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from slimrl.machine.interpreter import is_orphan
from slimrl.machine.ranks import RankLostError, Ranks, joined, named, ranks_here
from slimrl.machine.signals import PREEMPTED, Stop

STOP = "stop"
PERIOD = 1.0
"""Seconds between two beats."""
TRY_SECONDS = 5.0
"""Time of one attempt to reach the store of the run."""
LEADER_SECONDS = 5.0
"""Time that the leader has to notice the end of a rank before it ends itself, if both wait in the same computation."""
START_SECONDS = 120.0
"""Time that a process has at least to start: on a busy machine, imports alone can take longer than a short deadline."""


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def meeting(
    device: torch.device,
    deadline: float,
    stop: Stop,
    check_start: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Ranks]:
    """This process among the ranks of its run, once all of them are there; alone where the environment names no others.

    Within the block a rank that gives no sign of life for `deadline` seconds is ended, and one that computes and makes no
    progress for so long ends itself, so that nobody waits for it; and what one rank is asked to stop by, all are. On the same
    host the process of a silent rank is killed, which closes its connections: the leader then stops with a checkpoint. A process
    on another host cannot be reached, so this one ends, and the newest checkpoint is where the run goes on.
    `check_start` is called while ranks are waited for, and raises if that is in vain; `check` is that of the ranks.

    Raises RankLostError where one of them has not come after `deadline` seconds, or after START_SECONDS if that is longer.
    """
    ranks = replace(named(), check=check)
    if ranks.size == 1:
        yield ranks
        return
    over, start_limit = threading.Event(), max(deadline, START_SECONDS)
    # two connections, since a rank that waits on one for the others gives its signs of life on the other
    store, joining = _connect(start_limit, serves=ranks.leads), _connect(start_limit)
    watch = Watch(ranks, deadline, over)
    with stop.overheard() as overhear:
        threading.Thread(target=watch.look, args=(store, stop, overhear), daemon=True).start()
        if not ranks.leads and not served_by_torchrun():
            threading.Thread(target=watch.demand_answers, daemon=True).start()
        try:
            wait_for_all(joining, ranks, start_limit, check_start)
            with joined(ranks, device, PrefixStore("joined", joining)):
                yield ranks
        finally:
            over.set()


def _connect(limit: float, serves: bool = False) -> Store:
    """The store of the run at the address that the environment names, served by the leader unless torchrun does."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = serves and not served_by_torchrun()
    # torchrun keeps its store when it starts the processes again, and what earlier ones wrote is not for these
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    until = time.monotonic() + limit
    while True:
        tried = timedelta(seconds=max(0.1, min(TRY_SECONDS, until - time.monotonic())))
        try:
            store = TCPStore(host, port, is_master=serves, wait_for_workers=False, timeout=tried)
            store.set_timeout(timedelta(seconds=limit))
            return PrefixStore(f"slimrl/{attempt}", store)
        except RuntimeError as error:  # DistNetworkError and DistStoreError
            check_torchrun()
            if serves or time.monotonic() >= until:
                reason = str(error).strip().split("\n")[0][:160]
                raise RankLostError(
                    f"the leader of the run cannot be reached at {host}:{port} ({reason}); correct the address, or raise "
                    "device_deadline"
                ) from error
            time.sleep(0.1)  # an attempt may fail at once


def served_by_torchrun() -> bool:
    """True where the store of the run is in a process of torchrun, which is no rank."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def check_torchrun() -> None:
    """Raises RankLostError where torchrun started this process and has ended: the others will not come."""
    if "TORCHELASTIC_RUN_ID" in os.environ and is_orphan():
        raise RankLostError("torchrun ended before all ranks of the run had started; give its command again")


def wait_for_all(store: Store, ranks: Ranks, limit: float, check: Callable[[], None]) -> None:
    """Return once each rank has given a sign of life.

    Raises RankLostError where one of them has given none after `limit` seconds, and what `check` raises.
    """
    until = time.monotonic() + limit
    while absent := [rank for rank in range(ranks.size) if not store.check([f"beat/{rank}"])]:
        check()
        check_torchrun()
        if time.monotonic() > until:
            raise RankLostError(
                f"rank {absent[0]} of the run has not started after {limit:g} s; see its messages, or raise device_deadline"
            )
        time.sleep(0.02)


@dataclass(frozen=True)
class Place:
    """The place that a thread has come to in its work."""

    passed: int
    """Decode steps, layers and micro-batches, as far as they are counted."""
    frames: tuple[tuple[int, int], ...]
    """The place in each function that it is in, the innermost one first."""
    where: str
    """File and line of that one."""

    @classmethod
    def of(cls, thread: int, passed: int) -> Place | None:
        """None where the thread has ended."""
        inner = sys._current_frames().get(thread)
        if inner is None:
            return None
        where, frames = f"{inner.f_code.co_filename}:{inner.f_lineno}", []
        outer: FrameType | None = inner
        while outer is not None:
            frames.append((id(outer.f_code), outer.f_lasti))
            outer = outer.f_back
        return cls(passed, tuple(frames), where)


class Watch:
    """The look of one rank at the others and at itself, in threads of its own, until `over` is set.

    Time is counted in looks, so that a pause of the whole run counts for nobody.
    """

    def __init__(self, ranks: Ranks, deadline: float, over: threading.Event) -> None:
        self.ranks, self.deadline, self.over = ranks, deadline, over
        self.others = {rank: f"beat/{rank}" for rank in range(ranks.size) if rank != ranks.rank}
        self.seen: dict[int, tuple[str, float]] = dict.fromkeys(self.others, ("", 0.0))
        """The last beat of each, and the look that saw it first."""
        self.rounds, self.looks = 0, True
        """Looks so far, and whether there will be more."""
        self.place: Place | None = None
        self.still = 0
        """Where the thread that made this object was if it computed, and for how many looks."""
        self.thread = threading.get_ident()

    def look(self, store: Store, stop: Stop, overhear: Callable[[], None] = lambda: None) -> None:
        """Give a sign of life once a second, and end a rank that gives none; spread what one is asked to stop by."""
        # torchrun may start processes again without counting them, and its store keeps the beats of earlier ones
        alive: set[int] = set()
        with contextlib.suppress(RuntimeError):  # the store has ended with the run
            while not self.over.is_set():
                store.set(f"beat/{self.ranks.rank}", f"{host_here()} {os.getpid()} {self.rounds}")
                overhear()
                _spread_stop(store, stop)
                self.look_at_own(stop.checks)
                for rank, key in self.others.items():
                    found = store.get(key).decode() if store.check([key]) else ""
                    last, since = self.seen[rank]
                    if found != last:
                        alive |= {rank} if last else set()
                        self.seen[rank] = (found, self.rounds)
                    elif found and (self.rounds - since) * PERIOD > self.deadline and not self.over.is_set():
                        _end(rank, found if rank in alive else "", self.deadline)
                        self.seen[rank] = (found, float("inf"))
                self.rounds += 1
                self.over.wait(PERIOD)
        self.looks = False

    def look_at_own(self, checks: int) -> None:
        """End this process where it computes and makes no progress."""
        activity = self.ranks.activity
        place = Place.of(self.thread, checks + activity.begun) if activity.computes else None
        self.still = self.still + 1 if place is not None and place == self.place else 0
        self.place = place
        patience = self.deadline + (LEADER_SECONDS if self.ranks.leads else 0)
        if place is not None and self.still * PERIOD > patience and not self.over.is_set():
            print(
                f"rank {self.ranks.rank} made no progress for {patience:g} s at {place.where}, so it ends; resume the run, and "
                "if it was not stuck, raise device_deadline",
                file=sys.stderr,
                flush=True,
            )
            os._exit(PREEMPTED)

    def demand_answers(self) -> None:
        """End the leader, which serves the store, where `look` waits for an answer for the deadline: it hangs as a whole."""
        last, waited = -1, 0.0
        while self.looks and not self.over.wait(PERIOD):
            waited = waited + PERIOD if self.rounds == last else 0.0
            last = self.rounds
            if waited > self.deadline:
                _end(0, self.seen[0][0], self.deadline)
                return


@cache
def host_here() -> str:
    """A name for this host and its table of processes that no other machine or container has: host names may repeat."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):  # where there is no Linux
        found += [BOOT_ID.read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return ",".join(found)


def _spread_stop(store: Store, stop: Stop) -> None:
    if stop.asked is not None:
        store.set(STOP, f"{stop.asked.exit_code} {stop.asked.cause}")
    elif store.check([STOP]):
        code, _, cause = store.get(STOP).decode().partition(" ")
        stop.relay(cause, int(code))


def _end(rank: int, beat: str, deadline: float) -> None:
    host, _, rest = beat.partition(" ")
    print(
        f"rank {rank} gave no sign of life for {deadline:g} s, so the run stops; resume it", file=sys.stderr, flush=True
    )
    if host == host_here():
        try:
            os.kill(int(rest.split()[0]), signal.SIGKILL)
        except ProcessLookupError:
            if ranks_here().size == 1:  # nothing is connected yet whose end would be noticed
                os._exit(PREEMPTED)
    else:
        os._exit(PREEMPTED)
