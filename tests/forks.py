"""Processes of tests as forks of one that has imported all that they need: imports take longer than a small run.

What a process is at its start cannot be tested so: its imports, its first arguments in /proc, the memory that it holds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slimrl.parallel import team
from slimrl.study.launcher import Job, LocalLauncher
from tests.conftest import Ended

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["slimrl.train", "slimrl.sft", "slimrl.evaluate", "slimrl.cli", "tests.parallel.cases", "tests.parallel.fsdp", "tests.parallel.episodes"]
)  # fmt: skip
LONGEST_SECONDS = 600.0


class Fork:
    """A call of `target` in a process of its own, which ends with it, with what it writes kept in files."""

    def __init__(
        self, target: Callable[..., object], *arguments: Any, variables: Mapping[str, str], folder: Path | None = None
    ) -> None:
        self._files = tempfile.TemporaryDirectory()
        self._told = (Path(self._files.name) / "out", Path(self._files.name) / "err")
        for file in self._told:
            file.touch()
        place = folder or Path.cwd()
        self._process = FORKS.Process(
            target=_begin, args=(target, arguments, {**os.environ, **variables}, place, self._told)
        )
        self._process.start()
        Finalize(self, self._process.kill, exitpriority=10)  # a test that fails leaves it; pytest would wait for it

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.exitcode is None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float = LONGEST_SECONDS) -> Ended:
        """The end of the process, which is killed if it does not come within so many seconds."""
        self._process.join(seconds)
        self._process.kill()
        self._process.join()
        assert self._process.exitcode is not None
        with self._files:
            return Ended(self._process.exitcode, *(file.read_text() for file in self._told))


def command(*arguments: str, folder: Path | None = None, quick: bool = False) -> Fork:
    """The command `slimrl`, begun in this folder; a `quick` one leaves out what tests.quick names, for tests that look at
    none of it.
    """
    return Fork(_command, arguments, quick, variables={}, folder=folder)


class RunOfAStudy:
    """What a `LocalLauncher` starts, as a quick fork."""

    def __init__(self, job: Job) -> None:
        self._fork, self._log, self._code = (
            command("train", "--resume", "--quiet", str(job.settings), quick=True),
            job.log,
            None,
        )

    def poll(self) -> int | None:
        if self._code is None and not self._fork.running:
            self._code, out, err = self._fork.ended()
            self._log.parent.mkdir(exist_ok=True)
            self._log.write_text(out + err)
        return self._code

    def waits_for(self) -> str:
        return ""

    def stop(self) -> None:
        if self._code is None:
            self._fork.send(signal.SIGKILL)
            self._fork.ended()


@pytest.fixture
def studies_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of studies on this machine are forks: their imports would take longer than they."""
    monkeypatch.setattr(LocalLauncher, "start", lambda _, job, __: RunOfAStudy(job))


class Follower:
    """What a run on several devices starts for each further rank, as a fork."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], **_: object) -> None:
        reader, self.stdin = FORKS.Pipe(duplex=False)
        self._fork, self._code = Fork(_follow, reader, *command[-2:], variables=env), None
        reader.close()

    def poll(self) -> int | None:
        return None if self._fork.running else self.wait()

    def wait(self, seconds: float = LONGEST_SECONDS) -> int | None:
        if self._code is None:
            self._code, _, err = self._fork.ended(seconds)
            sys.stderr.write(err)
        return self._code

    def kill(self) -> None:
        self._fork.send(signal.SIGKILL)


@pytest.fixture
def ranks_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further ranks of this process are forks."""
    monkeypatch.setattr(team, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Follower}))


def _begin(
    target: Callable[..., object],
    arguments: tuple[Any, ...],
    variables: Mapping[str, str],
    folder: Path,
    told: tuple[Path, Path],
) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    for stream, file in zip((1, 2), told, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    target(*arguments)


def _command(arguments: tuple[str, ...], quick: bool) -> None:
    from slimrl.__main__ import run
    from slimrl.machine import interpreter
    from tests.quick import QUICK

    if quick:
        exec(QUICK)
    interpreter.PARENT = os.getppid()  # it was noted when the modules were imported
    sys.argv = ["slimrl", *arguments]
    run()


def _follow(reader: Connection, *arguments: str) -> None:
    from slimrl.cli import follower

    os.dup2(reader.fileno(), 0)
    sys.argv = ["follower", *arguments]
    follower.main()
