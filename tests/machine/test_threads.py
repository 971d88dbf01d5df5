"""How threads wait is settled before torch is there, and other processes keep the cores that they use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from slimrl.machine import threads
from slimrl.machine.threads import Usage, fix_threads, settle_threads, taken_by_others, threads_of_a_call, usage
from slimrl.study.launcher import threads_asked_for
from tests.conftest import ROOT

ENTRIES = [
    "slimrl", "slimrl.cli", "slimrl.__main__", "slimrl.cli.child", "slimrl.machine.worker", "slimrl.rewards.workers", "slimrl.tasks.symbolic", "slimrl.train",
]  # fmt: skip
"""What verbs, workers and the runs of a study begin with, and what Python code may import first."""


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_settled", False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def waiting_at_import(entry: str, **given: str) -> str:
    """The variables as they stand when torch is looked for, or at the end where it is not."""
    look = (
        "import os, sys\n"
        "def told(): sys.stderr.write(' '.join(os.environ.get(n, '-') for n in ('GOMP_SPINCOUNT', 'KMP_BLOCKTIME'))); os._exit(0)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': told()\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"import importlib; sys.argv = ['slimrl', '--help']; importlib.import_module({entry!r}); told()"
    )
    clean = {k: v for k, v in os.environ.items() if k not in threads.WAITING}
    done = subprocess.run(
        [sys.executable, "-c", look], env={**clean, "PYTHONPATH": str(ROOT), **given}, capture_output=True, text=True
    )
    return done.stderr


@pytest.mark.parametrize("entry", ENTRIES)
def test_waiting_threads_sleep_soon_wherever_one_begins(entry: str) -> None:
    assert waiting_at_import(entry) == f"{threads.SPINS} {threads.BLOCKTIME}"


def test_what_a_user_has_set_stays() -> None:
    assert waiting_at_import("slimrl.cli", OMP_WAIT_POLICY="active") == "- -"
    assert waiting_at_import("slimrl.cli", GOMP_SPINCOUNT="77") == "77 -"


def test_cores_taken_by_others_by_hand() -> None:
    """Ten seconds on four cores: 25 processor seconds in all, 10 of them this process's own."""
    before = Usage(at=100.0, cores=4, everyone=1000.0, own=5.0)
    assert taken_by_others(before, Usage(110.0, 4, 1025.0, 15.0)) == pytest.approx(1.5)
    assert taken_by_others(before, Usage(110.0, 4, 1005.0, 15.0)) == 0.0  # the kernel's two clocks differ a little
    assert taken_by_others(before, Usage(110.0, 4, 1090.0, 5.0)) == 4.0


@pytest.mark.skipif(usage() is None, reason="the system does not say which cores are in use")
def test_the_system_is_read() -> None:
    before = usage()
    assert before is not None
    sum(i * i for i in range(3_000_000))
    after = usage()
    assert after is not None
    assert 0 < after.own - before.own < 60
    assert after.everyone >= before.everyone
    assert after.cores == len(os.sched_getaffinity(0))


@pytest.mark.usefixtures("unsettled")
def test_a_busy_machine_gets_fewer_threads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([Usage(110.0, 8, 60.0, 9.0), Usage(120.0, 8, 160.0, 9.0)])
    monkeypatch.setattr(threads, "_began", Usage(100.0, 8, 0.0, 0.0))
    monkeypatch.setattr(threads, "usage", lambda: next(used))
    counts: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    note = settle_threads()
    assert counts == [3]
    assert note == "other processes use 5.1 of 8 cores, so 3 threads compute instead of 8; OMP_NUM_THREADS=8 takes all"
    assert settle_threads() == ""
    assert counts == [3]


@pytest.mark.usefixtures("unsettled")
def test_an_idle_machine_a_user_and_a_resumed_run_keep_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_began", Usage(100.0, 8, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    counts: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(threads, "usage", lambda: Usage(110.0, 8, 13.0, 9.0))
    assert settle_threads() == ""
    monkeypatch.setattr(threads, "_settled", False)
    monkeypatch.setattr(threads, "usage", lambda: Usage(110.0, 8, 80.0, 9.0))
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert settle_threads() == ""
    monkeypatch.delenv("OMP_NUM_THREADS")
    fix_threads(5)
    assert settle_threads() == ""
    assert counts == [5]


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("4,2", 4), ("", 0), ("many", 0)])
def test_a_study_asks_for_the_users_threads(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert threads_asked_for() == count


@pytest.mark.usefixtures("unsettled")
def test_every_call_settles_its_threads_anew_and_leaves_as_many_as_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.get_num_threads()
    monkeypatch.setattr(threads, "_settled", True)
    began = threads._began
    for _ in range(2):
        with threads_of_a_call():
            used = threads._began
            assert (threads._settled, used is began and used is not None) == (False, False)
            fix_threads(count + 1)
        assert (threads._settled, threads._began, torch.get_num_threads()) == (True, began, count)
