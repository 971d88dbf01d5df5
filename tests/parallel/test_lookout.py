"""Ranks that never come: nobody waits for them longer than the deadline."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from slimrl.errors import SlimError
from slimrl.machine.ranks import RankLostError, Ranks
from slimrl.machine.signals import PREEMPTED, Stopped
from slimrl.parallel.lookout import wait_for_all
from slimrl.parallel.team import check_running


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
            check_running([running, over])
        assert found.type is error, "one that was killed can be resumed, one that fails would fail again"
        check_running([running])
    finally:
        running.kill()
        running.communicate()
