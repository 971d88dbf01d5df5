"""A child process that answers: replies in turn, deadlines, replacement, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slimrl.errors import DataError
from slimrl.machine.worker import Worker
from tests.conftest import ROOT
from tests.machine.answers import MEMORY, fails, load

SECONDS = 60.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(load, memory=MEMORY, output=lambda _: None)
    yield worker
    worker.end()


def is_gone(pid: int) -> bool:
    """Ended, or a zombie that waits for init; within some seconds."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_replies_come_in_turn_and_an_error_ends_them(worker: Worker) -> None:
    assert worker.pid == 0
    worker.start()
    for request, error, words in (
        ("fail", RuntimeError, "no colour"),
        ("refuse", DataError, "^row 3 is empty$"),
        ("memory", RuntimeError, "MemoryError"),
    ):
        worker.ask(request)
        assert worker.reply(SECONDS) == request
        with pytest.raises(error, match=words):
            worker.reply(SECONDS)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    worker.ask("stdin")
    assert [worker.reply(SECONDS) for _ in range(3)] == ["stdin", b"", worker.pid]
    worker.start()
    assert worker.starts == 1


def test_a_missed_deadline_ends_in_a_kill_of_the_group_and_another_child(worker: Worker) -> None:
    worker.start()
    first = worker.pid
    worker.ask("child")
    assert worker.reply(SECONDS) == "child"
    grandchild = worker.reply(SECONDS)
    with pytest.raises(TimeoutError):
        worker.reply(0.1)
    assert worker.end() == "signal 9 (as when memory runs out)"
    assert worker.end() == ""
    assert is_gone(grandchild)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    with pytest.raises(EOFError):
        worker.ask("a")
    worker.start()
    worker.ask("a")
    assert worker.reply(SECONDS) == "a"
    assert (worker.starts, worker.reply(SECONDS)) == (2, worker.pid)


def test_another_thread_may_kill_it(worker: Worker) -> None:
    worker.start()
    worker.ask("sleep")
    assert worker.reply(SECONDS) == "sleep"
    threading.Timer(0.1, worker.kill).start()
    with pytest.raises((EOFError, OSError)):
        worker.reply(SECONDS)


def test_what_keeps_it_from_loading_is_raised_at_every_request() -> None:
    worker = Worker(fails, memory=MEMORY, output=lambda _: None)
    worker.start()
    for _ in range(2):
        with pytest.raises(DataError, match=r"^a file is missing$"):
            worker.ask("a")
    worker.end()


def test_output_is_passed_on() -> None:
    parts: list[bytes] = []
    worker = Worker(load, memory=MEMORY, output=parts.append)
    worker.start()
    worker.ask("print")
    assert [worker.reply(SECONDS) for _ in range(2)] == ["print", worker.pid]
    worker.end()
    assert b"".join(parts) == b"printed\n"


FORK = """
import os
from slimrl.machine.worker import Worker
from tests.machine.answers import load

worker = Worker(load, memory=2**30, output=print)
worker.start()
if not os.fork():
    pid, ended = worker.pid, worker.end()
    worker.start()
    worker.ask("fork")
    print(pid, repr(ended), worker.reply(60), worker.reply(60) == worker.pid, flush=True)
    worker.end()
    os._exit(0)
os.wait()
worker.ask("parent")
print(worker.reply(60), worker.reply(60) == worker.pid, worker.starts)
worker.end()
"""


def test_a_forked_process_has_a_child_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == ["0 '' fork True", "parent True 1"]
