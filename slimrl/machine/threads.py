"""CPU threads: how they wait for each other, and how many of them compute. Torch is imported only by functions that set them.

The threads of a parallel region wait for each other at its end. By default they spin while they wait: on a machine whose
cores other processes use too, a thread then burns its time slice waiting for one that is not running, and the same
training takes many times as long. So SlimRL lets them spin briefly, and uses fewer threads if cores are busy.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that decide how OpenMP's threads wait. If the user has set one of them, none is changed."""
SPINS = 10_000
"""Turns of GNU's OpenMP before a waiting thread sleeps: some tens of microseconds, which Python takes from one parallel region to
the next. With 1,000 a step of a small model takes a quarter longer on an idle machine, and about as long on a busy one."""
BLOCKTIME = 1  # the same for LLVM's and Intel's, in milliseconds (their default is 200)


def settle_waiting() -> None:
    """Let waiting threads sleep soon, in this process and its children. OpenMP reads the variables when torch is imported."""
    if not any(name in os.environ for name in WAITING):
        os.environ |= {"GOMP_SPINCOUNT": str(SPINS), "KMP_BLOCKTIME": str(BLOCKTIME)}


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Usage:
    """Processor seconds up to a moment: of all processes on the cores that this process may use, and of this process."""

    at: float
    cores: int
    everyone: float
    own: float


def usage() -> Usage | None:
    """The usage up to now; None if the system does not tell (Linux does)."""
    own = os.times()
    if not hasattr(os, "sched_getaffinity") or not Path("/proc/stat").is_file():
        return None
    cores = os.sched_getaffinity(0)
    busy = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _wait, interrupt, soft, stolen, *_ = map(int, fields)
            busy += user + nice + system + interrupt + soft + stolen
    return Usage(time.monotonic(), len(cores), busy / os.sysconf("SC_CLK_TCK"), own.user + own.system)


def taken_by_others(before: Usage, after: Usage) -> float:
    """Cores that other processes used between two moments, 0 to all."""
    seconds = max(after.at - before.at, 1e-9)
    others = (after.everyone - before.everyone) - (after.own - before.own)
    return min(max(0.0, others / seconds), float(after.cores))


SHORTEST = 0.5  # shortest time, in seconds, over which use is measured: the kernel counts in hundredths
_began = usage()
_settled = False


def fix_threads(count: int) -> None:
    """Compute with `count` threads, whatever else runs: sums in another order differ in their last bits."""
    global _settled
    import torch

    torch.set_num_threads(count)
    _settled = True


def settle_threads() -> str:
    """Leave to other processes the cores that they have used since this process began; returns a note, empty if none.

    Only the first call acts, and only if OMP_NUM_THREADS is not set, `fix_threads` was not called, and the use is known.
    """
    global _settled
    before, after = _began, usage()
    if _settled or "OMP_NUM_THREADS" in os.environ or before is None or after is None:
        return ""
    _settled = True
    if after.at - before.at < SHORTEST:
        time.sleep(SHORTEST)
        after = usage() or after
    import torch

    others, threads = taken_by_others(before, after), torch.get_num_threads()
    left = max(1, round(after.cores - others))
    if left >= threads:
        return ""
    torch.set_num_threads(left)
    use, compute = f"{others:.1f} of {after.cores} cores", f"{left} thread{'s compute' if left > 1 else ' computes'}"
    return f"other processes use {use}, so {compute} instead of {threads}; OMP_NUM_THREADS={threads} takes all"


@contextmanager
def threads_of_a_call() -> Iterator[None]:
    """Within the block threads are settled as in a new process; behind it as many compute as before."""
    global _began, _settled
    import torch

    count, before = torch.get_num_threads(), (_began, _settled)
    _began, _settled = usage(), False
    try:
        yield
    finally:
        _began, _settled = before
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
