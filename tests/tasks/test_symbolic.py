"""math-verify in a process of its own: verdicts, limits, deadlines, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from slimrl.errors import SettingsError
from slimrl.tasks import symbolic
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from slimrl.tasks.symbolic import SymbolicWorker, within_limits

pytest.importorskip("math_verify", reason="math-verify (extra `math`) is not installed")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader("symbolic")
    yield grader
    grader.close()


SAME = [
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt3}"),
    ("(a+5)(b+2)", "ab+2a+5b+10"),
    ("1 \\pm \\sqrt{19}", "1+\\sqrt{19},1-\\sqrt{19}"),
    ("3, 5, 7", "7,5,3"),
    ("x \\in [-2,7]", "[-2,7]"),
    ("y = 2x + 3", "y=3+2x"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("10,\\!080", "10080"),
    ("5.4 \\text{ cents}", "5.4"),
    ("90^\\circ", "90"),
    ("\\text{Evelyn}", "Evelyn"),
    ("52_8", "52_{8}"),
    ("025", "25"),
]

DIFFERENT = [
    ("(3,4]", "(3,4)"),
    ("2k", "2m"),
    ("52_8", "52"),
    ("52_8", "42"),
    ("3, 5, 7", "3,5,7,9"),
    ("\\pi", "\\pi \\text{ or } e"),
    ("\\sqrt{5}", "x"),
    ("\\sqrt{5}", "2=\\sqrt{5}"),
    ("18", "12 6"),
    ("18", "12 or 18"),
    ("18", "\\{12,18\\}"),
    ("18", "\\pm 18"),
    ("18", "3=18"),
    ("18", "17+1"),
    ("18", "1/0"),
    ("18", "1 8"),
    ("18", "18ab"),
    ("18", "18_{16}"),
    ("18", "\\sqrt{324}"),
    ("70", "\\binom{8}{4}"),
    ("\\frac{\\pi}{2}", "1.570796"),
    ("10^{-9}", "0"),
    ("18", "\uff11\uff18"),
    ("18", "10^{10^{10}}"),
    ("18", "(" * 5000),
    ("18", "\\boxed{"),
    ("18", "\\input{/etc/passwd}"),
    ("18", "__import__('os')"),
    ("\\sqrt{5}", ""),
]


@pytest.mark.parametrize(("gold", "guess"), SAME)
def test_same(grader: Grader, gold: str, guess: str) -> None:
    assert grader.compare(guess, gold)
    assert grader.compare(gold, gold)


@pytest.mark.parametrize(("gold", "guess"), DIFFERENT)
def test_different(grader: Grader, gold: str, guess: str) -> None:
    assert not grader.compare(guess, gold)


def test_lenient_is_the_last_box(grader: Grader) -> None:
    text = "First \\boxed{2}, then \\boxed{\\frac{1}{\\sqrt{3}}} it is, by 7."
    grade = grader.grade(text, "\\frac{\\sqrt3}{3}", STYLES["hashes"])
    assert (grade.strict, grade.lenient) == (False, True)
    assert grade.extracted_lenient == "\\frac{1}{\\sqrt{3}}"
    assert grader.grade("so it is 7.", "7", STYLES["boxed"]).lenient


@pytest.mark.parametrize(
    "latex",
    [
        "x" * 301,
        "(" * 21,
        "1" * 41,
        "2^{1001}",
        "2^{99999}",
        "10^{10^{10}}",
        "2^3^4",
        "1000!",
        "5!!",
        "(x+3)!",
        "2**5000",
    ],
)
def test_over_the_limits(latex: str) -> None:
    assert not within_limits(latex)


@pytest.mark.parametrize("latex", ["x^{1000}", "e^{x^2}", "5!", "\\frac{1}{2^{10}}", "((((x))))"])
def test_within_the_limits(latex: str) -> None:
    assert within_limits(latex)


def test_a_missed_deadline_is_no_verdict_and_the_process_is_replaced() -> None:
    worker = SymbolicWorker(deadline=60.0)
    assert worker.same("x+1", "1+x") is True
    first = worker.process.pid
    os.kill(first, signal.SIGSTOP)  # hangs for certain
    worker.deadline = 0.2
    assert worker.same("x+2", "2+x") is None
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    worker.deadline = 60.0
    assert worker.same("x+2", "2+x") is True
    assert worker.process.starts == 2
    last = worker.process.pid
    worker.close()
    worker.close()
    assert worker.process.pid == 0
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_a_worker_that_died_is_replaced() -> None:
    worker = SymbolicWorker()
    assert worker.same("x+1", "1+x") is True
    os.kill(worker.process.pid, signal.SIGKILL)
    verdicts = [worker.same("x+1", "1+x") for _ in range(2)]
    assert verdicts[-1] is True
    worker.close()


def test_no_verdict_is_undecided_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SymbolicWorker, "same", lambda *_: None)
    grade = Grader("symbolic").grade("#### x+1", "1+x", STYLES["hashes"])
    assert grade.undecided
    assert not grade.strict


def test_no_orphan_when_the_parent_is_killed() -> None:
    code = (
        "import sys; from slimrl.tasks.symbolic import SymbolicWorker\n"
        "w = SymbolicWorker(); w.same('x+1', '1+x'); print(w.process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
        parent.wait()
    for _ in range(600):
        if not _runs(child):
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} outlived its parent")


def _runs(pid: int) -> bool:
    """Alive and not a zombie that only waits to be reaped by init."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'slimrl\[math\]'"):
        Grader("symbolic")
