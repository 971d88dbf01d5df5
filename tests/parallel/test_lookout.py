"""Ranks that never come: nobody waits for them longer than the deadline."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from slimrl.errors import SlimError
from slimrl.machine.ranks import RankLostError, Ranks
from slimrl.machine.signals import MAX_TIME, PREEMPTED, Stop, Stopped
from slimrl.parallel import lookout
from slimrl.parallel.lookout import Watch, wait_for_all
from slimrl.parallel.sampler import DividedSampler
from slimrl.parallel.team import check_running, check_start
from slimrl.records import Completion
from slimrl.rollout import OnGroup, Request


def test_one_that_has_not_started_by_the_deadline_is_named() -> None:
    store = HashStore()
    store.set("beat/0", "host 1 0")
    store.set("beat/2", "host 3 0")
    with pytest.raises(
        RankLostError, match=r"rank 1 of the run has not started after 0\.1 s; .* raise device_deadline"
    ):
        wait_for_all(store, Ranks(0, 3, 3), 0.1, lambda: None)
    store.set("beat/1", "host 2 0")
    wait_for_all(store, Ranks(0, 3, 3), 0.1, lambda: None)


def test_while_ranks_are_waited_for_a_reason_not_to_wait_is_heard() -> None:
    def stopped() -> None:
        raise Stopped("SIGTERM", PREEMPTED)

    with pytest.raises(Stopped):
        wait_for_all(HashStore(), Ranks(0, 2, 2), 60, stopped)


def test_a_signal_to_one_rank_counts_at_all_and_a_later_one_of_their_own_is_not_a_second() -> None:
    """The second would end the process without a checkpoint."""
    store, told, other = HashStore(), Stop(), Stop()
    with told.on_signals():
        told.defer()
        signal.raise_signal(signal.SIGTERM)
    lookout._spread_stop(store, told)
    lookout._spread_stop(store, other)
    assert other.is_signalled
    with other.on_signals():
        other.defer()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            other.check()


def test_the_end_of_the_time_of_one_rank_is_no_signal_to_others() -> None:
    store, over, other = HashStore(), Stop(), Stop()
    over.after(1e-9)
    with pytest.raises(Stopped):
        over.check()
    lookout._spread_stop(store, over)
    lookout._spread_stop(store, other)
    assert other.asked is not None
    assert other.asked.cause == MAX_TIME
    assert not other.is_signalled


def watched(leads: bool, work: Callable[[Ranks, Stop], object], monkeypatch: pytest.MonkeyPatch) -> float | None:
    """Looks until this process would have ended itself; None where it would not have while `work` was done. Deadline: 25 looks."""
    monkeypatch.setattr(lookout, "PERIOD", 0.02)
    ended: list[float] = []
    ranks, stop, over = Ranks(0 if leads else 1, 2, 2), Stop(), threading.Event()
    monkeypatch.setattr(lookout, "LEADER_SECONDS", 0.1)
    watch = Watch(ranks, 0.5, over)

    def end(code: int) -> None:
        assert code == PREEMPTED
        ended.append(watch.still)
        over.set()

    monkeypatch.setattr(os, "_exit", end)
    looking = threading.Thread(target=watch.look, args=(HashStore(), stop))
    looking.start()
    work(ranks, stop)
    over.set()
    looking.join()
    return ended[0] if ended else None


def test_a_process_that_computes_without_progress_ends_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The leader a little later, so that it can notice the end of another that waits with it."""

    def stuck(ranks: Ranks, _stop: Stop) -> None:
        with ranks.activity.of(computes=True):
            time.sleep(3)

    assert watched(False, stuck, monkeypatch) == 26
    place = f"{stuck.__code__.co_filename}:{stuck.__code__.co_firstlineno + 2}"
    assert (
        f"rank 1 made no progress for 0.5 s at {place}, so it ends; resume the run, and if it was not stuck, raise"
        in capsys.readouterr().err
    )
    assert watched(True, stuck, monkeypatch) == 31


def test_one_that_waits_or_makes_progress_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(ranks: Ranks, _stop: Stop) -> None:
        time.sleep(0.8)
        with ranks.activity.of(computes=True), ranks.activity.of(computes=False):
            time.sleep(0.8)

    def decodes(ranks: Ranks, stop: Stop) -> None:
        with ranks.activity.of(computes=True):
            for _ in range(20):
                stop.check()
                time.sleep(0.05)

    def updates(ranks: Ranks, _stop: Stop) -> None:
        with ranks.activity.of(computes=True):
            for _ in ranks.activity.each(range(20)):
                time.sleep(0.05)

    def is_here_and_there(ranks: Ranks, _stop: Stop) -> None:
        draws = random.Random(0)
        with ranks.activity.of(computes=True):
            for _ in range(20):
                time.sleep(draws.uniform(0, 0.05))
                time.sleep(draws.uniform(0, 0.05))

    for work in (waits, decodes, updates, is_here_and_there):
        assert watched(False, work, monkeypatch) is None, work.__name__


class Samples:
    """A sampler that draws nothing, and notes whether its rank is at work."""

    slots, exact = 1, True

    def __init__(self, ranks: Ranks, noted: list[bool]) -> None:
        self.ranks, self.noted = ranks, noted

    def generate(self, _: Sequence[Request], *, on_group: OnGroup, **__: object) -> list[tuple[Completion, ...]]:
        self.noted.append(self.ranks.activity.computes)
        on_group(0, ())
        return [()]

    def weights_changed(self) -> None:
        pass

    def limit_slots(self, slots: int) -> None:
        pass


def test_a_leader_that_samples_must_make_progress_and_one_that_scores_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Request((1, 2), np.zeros((1, 4))) for _ in range(2)]
    monkeypatch.setattr(Ranks, "tell", lambda *_: None)
    monkeypatch.setattr(Ranks, "deal", lambda _, parts: parts[0])
    monkeypatch.setattr(Ranks, "exchange", lambda _, part: [part, [((), ())]])
    leader, noted = Ranks(0, 2, 2), list[bool]()
    scored = lambda *_: noted.append(leader.activity.computes)  # noqa: E731
    DividedSampler(Samples(leader, noted), leader).generate(asked, max_new_tokens=4, on_group=scored)
    assert noted == [True, False, False]
    assert not leader.activity.computes


ORPHAN = """
import os, socket, sys, time
from pathlib import Path
from slimrl.machine.interpreter import is_orphan
Path(sys.argv[1], "started").touch()
while not is_orphan():
    time.sleep(0.01)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    from slimrl.machine.ranks import RankLostError
    from slimrl.parallel.lookout import _connect
    try:
        _connect(120)
    except RankLostError as error:
        Path(sys.argv[1], "told").write_text(str(error))
"""
PARENT = """
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]])
while not Path(sys.argv[1], "started").exists():
    time.sleep(0.01)
"""


def test_a_rank_whose_torchrun_has_ended_waits_for_nobody(tmp_path: Path) -> None:
    """The message is that on torchrun, and not the one after the time that a rank is waited for."""
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "none"}
    subprocess.run([sys.executable, "-c", PARENT, str(tmp_path), ORPHAN], env=environment, check=True)
    told = tmp_path / "told"
    while not told.exists() or not told.read_text():
        time.sleep(0.05)
    assert told.read_text() == "torchrun ended before all ranks of the run had started; give its command again"


@pytest.mark.parametrize(
    ("program", "error", "said"),
    [
        ("raise SystemExit(3)", SlimError, "rank 2 of the run ended with exit code 3 while it started"),
        ("raise SystemExit(0)", SlimError, "rank 2 of the run ended with exit code 0 while it started"),
        (
            "import os; os.kill(os.getpid(), 9)",
            RankLostError,
            "rank 2 of the run was ended by signal 9 while it started",
        ),
    ],
)
def test_one_that_ends_while_it_starts_is_not_waited_for(program: str, error: type[SlimError], said: str) -> None:
    running, over = (
        subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE) for text in ("input()", program)
    )
    try:
        over.communicate()
        with pytest.raises(error, match=said) as found:
            check_start([running, over])
        assert found.type is error, "one that was killed can be resumed, one that fails would fail again"
        check_start([running])
        with pytest.raises(RankLostError, match=f"{said.removesuffix(' while it started')}$"):
            check_running([running, over])
        check_running([running])
    finally:
        running.kill()
        running.communicate()


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ((75, None, -9), "rank 3 of the run was ended by signal 9"),
        ((75, 1, None), "rank 2 of the run ended with exit code 1"),
        ((None, 75, 75), "rank 2 of the run ended with exit code 75"),
    ],
)
def test_the_rank_that_others_ended_for_is_named(codes: tuple[int | None, ...], said: str) -> None:
    with pytest.raises(RankLostError, match=f"{said}$"):
        check_running([SimpleNamespace(poll=partial(dict(enumerate(codes)).get, n)) for n in range(len(codes))])  # type: ignore[misc]


@pytest.mark.parametrize("connected", [False, True])
def test_a_rank_that_has_ended_before_all_are_connected_is_not_waited_for(
    connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is gone when it counts as hanging; once ranks are connected, the end of its connections is noticed instead."""
    ended: list[int] = []
    over = subprocess.Popen([sys.executable, "-c", ""])
    over.wait()
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(lookout, "ranks_here", lambda: Ranks(0, 2, 2) if connected else Ranks())
    lookout._end(1, f"{lookout.host_here()} {over.pid} 7", 3.0)
    assert ended == ([] if connected else [PREEMPTED])


def test_a_process_of_another_host_with_the_same_name_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of a process means one on that host: here it is another process, whose name it only shares."""
    ends: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _signal: ends.append(pid))
    monkeypatch.setattr(os, "_exit", lambda code: ends.append(-code))
    other = lookout.host_here().replace(lookout.BOOT_ID.read_text().strip(), "another")
    assert other.split(",")[0] == socket.gethostname()
    lookout._end(1, f"{other} {os.getpid()} 7", 3.0)
    lookout._end(1, f"{lookout.host_here()} 12345 7", 3.0)
    assert ends == [-75, 12345]
