"""Completion in a real bash: what is on the line after Tab."""

from __future__ import annotations

import os
import pty
import select
import shutil
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from slimrl.cli import cli
from slimrl.cli.bash import Bash
from tests.conftest import ROOT

PATIENCE = 120.0
"""Seconds after which bash hangs."""


class Terminal:
    """A bash that a person types into."""

    def __init__(self, folder: Path) -> None:
        program = folder / "slimrl"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m slimrl "$@"\n')
        program.chmod(0o755)
        self.number = 0
        self.terminal, theirs = pty.openpty()
        modes = termios.tcgetattr(theirs)
        modes[3] &= ~(termios.ICANON | termios.ECHO)  # what is typed before bash reads is kept as it is, also ^U
        termios.tcsetattr(theirs, termios.TCSANOW, modes)
        own = {"TERM": "dumb", "PS1": "", "HISTFILE": "/dev/null", "PYTHONPATH": str(ROOT)}
        self.bash = Popen(
            ["bash", "--norc", "--noprofile", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder,
            env=os.environ | own | {"PATH": f"{folder}:{os.environ['PATH']}"}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.type('eval "$(_SLIMRL_COMPLETE=bash_source slimrl)"\n')

    def type(self, text: str) -> str:
        """What the terminal shows after a text, up to a mark."""
        self.number += 1
        os.write(self.terminal, f"{text}echo mark''{self.number}.\n".encode())
        shown, mark, end = b"", f"mark{self.number}.".encode(), time.monotonic() + PATIENCE
        while mark not in shown and time.monotonic() < end:
            if select.select([self.terminal], [], [], 1.0)[0]:
                shown += os.read(self.terminal, 1 << 16)
        assert mark in shown, shown.decode(errors="replace")
        return shown.decode(errors="replace")

    def words(self, line: str) -> list[str]:
        """The words of a line in which Tab and an END are typed behind it."""
        shown = self.type(line + "\tEND\x01printf '<%s>\\n' \n")
        return [text[1:-1] for text in shown.splitlines() if text.startswith("<") and text.endswith(">")]

    def close(self) -> None:
        self.bash.kill()
        self.bash.wait()
        os.close(self.terminal)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    folder = tmp_path_factory.mktemp("bash")
    (folder / "data.jsonl").touch()
    found = Terminal(folder)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("typed", "last"),
    [
        ("slimrl tra", ["train", "END"]),
        ("slimrl train algorithm.kl_place=lo", ["algorithm.kl_place=loss", "END"]),
        ("slimrl train algorithm.kl_coe", ["algorithm.kl_coef=END"]),
        ("slimrl train algorithm.kl_place=", ["algorithm.kl_place=END"]),
        ("slimrl train @gsm8", ["@gsm8k", "END"]),
        ("slimrl train task.path=dat", ["task.path=data.jsonl", "END"]),
    ],
)
def test_tab(terminal: Terminal, typed: str, last: list[str]) -> None:
    assert terminal.words(typed)[-len(last) :] == last


def test_a_list_has_the_choices_alone(terminal: Terminal) -> None:
    shown = terminal.type("slimrl train algorithm.kl_place=\x1b?\x15")
    assert ["loss", "reward"] in [line.split() for line in shown.splitlines()]


@pytest.mark.parametrize(
    ("line", "arguments", "last"),
    [
        ("slimrl train steps=1 algorithm.kl_pl", ["train", "steps=1"], "algorithm.kl_pl"),
        ("slimrl train ", ["train"], ""),
        ('slimrl train "a b', ["train"], "a b"),
        ("slimrl ", [], ""),
    ],
)
def test_words_end_at_blanks_alone(line: str, arguments: list[str], last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMRL_LINE", line)
    assert Bash(cli, {}, "slimrl", "_SLIMRL_COMPLETE").get_completion_args() == (arguments, last)
