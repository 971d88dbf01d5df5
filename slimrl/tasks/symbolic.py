"""math-verify in a process that can be killed.

A time-out inside the process cannot be relied on (a long integer power never looks at a signal), so there is one
worker, started when first needed, asked one comparison at a time, killed and started again when it misses its deadline.
It ends when its standard input closes, so it does not outlive the process that started it, however that ended.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from slimrl.errors import SettingsError
from slimrl.machine.processes import die_with_the_parent
from slimrl.tasks.numbers import REPEATING, repeating
from slimrl.tasks.units import without_latex_unit

MAX_LENGTH = 300
"""Characters of an answer; a longer one is compared as text only."""
MAX_NESTING = 20
"""Open brackets of any kind at once."""
MAX_DIGITS = 40
"""Digits in a row."""
MAX_EXPONENT = 1000
"""Largest integer power that is computed."""
DIGITS = 400
"""Digits to which two real numbers are told apart. Nothing is rounded, however small the numbers are."""
ROUNDED_DIGITS = 12
"""Significant digits, at least, of a decimal that may stand for a real number, and how many of them must be right."""
START_SECONDS = 120.0
MEMORY_BYTES = 4 << 30


def within_limits(latex: str) -> bool:
    """Cheap to compare. Decided from the text alone, so a verdict does not depend on how busy the machine is."""
    if len(latex) > MAX_LENGTH:
        return False
    plain = re.sub(r"\s", "", latex)
    powers = re.findall(r"(?:\^|\*\*)\{?[-+]?([0-9]+)", plain)
    tower = re.search(r"\^\{?[-+]?[0-9.]*\{?\(?[0-9.]+\}?\^", plain)
    factorial = re.search(r"[0-9]{3,}!|!!|\)!|\}!", plain)
    depth = deepest = 0
    for character in latex:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return (
        deepest <= MAX_NESTING
        and not re.search(rf"[0-9]{{{MAX_DIGITS + 1},}}", plain)
        and all(len(power) <= 4 and int(power) <= MAX_EXPONENT for power in powers)
        and not tower
        and not factorial
    )


class SymbolicWorker:
    """Asks math-verify whether two LaTeX answers are the same.

    Args:
        deadline: seconds for one comparison; a missed one is no verdict, and the process is killed.

    Raises SettingsError where the extra is not installed.
    """

    def __init__(self, deadline: float = 10.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise SettingsError("task.checker=symbolic needs math-verify; run pip install 'slimrl[math]'")
        self.deadline = deadline
        self.restarts = 0
        """How often a process was killed because it missed the deadline or had died."""
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        _workers.add(self)

    def same(self, guess: str, gold: str) -> bool | None:
        """True or False, or None where there was no verdict in time. Over the limits is False without being asked."""
        if not (within_limits(guess) and within_limits(gold)):
            return False
        with self._lock:
            try:
                reply = self._ask(json.dumps([gold, guess]).encode() + b"\n")
            except BaseException:
                # an interrupt between question and reply must not leave a stale reply for the next question
                self._kill()
                raise
        return {b"1": True, b"0": False}.get(reply)

    def close(self) -> None:
        """Kill the process, if it runs."""
        with self._lock:
            self._kill()

    @property
    def pid(self) -> int:
        """Process id of the running worker, 0 where none runs."""
        return self._process.pid if self._process is not None else 0

    def _ask(self, request: bytes) -> bytes:
        process = self._running()
        reply = b""
        if process is not None:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request)
                process.stdin.flush()
                reply = _read_line(process, self.deadline)
        if not reply:
            self.restarts += 1
            self._kill()
        return reply

    def _running(self) -> subprocess.Popen[bytes] | None:
        if self._owner != os.getpid():  # forked: the pipes belong to the parent
            self._process, self._owner = None, os.getpid()
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from slimrl.tasks.symbolic import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        return self._process if _read_line(self._process, START_SECONDS) == b"ready" else None

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


_workers: weakref.WeakSet[SymbolicWorker] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for worker in list(_workers):
        worker.close()


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """One line without its end; empty where the deadline passed or the process ended."""
    assert process.stdout is not None
    line, end = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 1 << 12) if ready else b""
        if not chunk:
            return b""
        line += chunk
    return line[:-1]


def serve() -> None:
    """The worker's own main: answer questions from standard input until it closes."""
    import queue
    import signal

    die_with_the_parent()  # also in the middle of a power that lets no thread look at standard input
    # the parent decides when to stop; Ctrl-C reaches the whole process group
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not become a reply
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            requests.put(line)
        os._exit(0)  # the parent is gone, perhaps in the middle of a long comparison

    threading.Thread(target=listen, daemon=True).start()
    import math_verify  # noqa: F401  (before the first deadline starts to run)

    os.write(replies, b"ready\n")
    while True:
        gold, guess = json.loads(requests.get())
        try:
            verdict = b"1" if _verify(gold, guess) else b"0"
        except Exception:  # no verdict, whatever the cause
            verdict = b"?"
        os.write(replies, verdict + b"\n")


def _verify(gold: str, guess: str) -> bool:
    """math-verify's verdict on two LaTeX answers; its own time-outs are off, since the process has one that holds.

    It compares numbers by rounding to decimals, which makes all small numbers equal, so that part is replaced: rationals
    are compared exactly (decimals are read as fractions), reals to DIGITS digits. See `_same_value`.
    """
    from math_verify import LatexExtractionConfig, grader, parse, verify

    # its own idea of units takes the h off \pi r^2 h
    normalization = replace(LatexExtractionConfig().normalization_config, units=False)
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization)]

    def read(latex: str) -> list[object]:
        boxed = "\\boxed{" + as_fractions(without_latex_unit(latex.strip().strip("$"))) + "}"
        found = parse(boxed, extraction_config=config, parsing_timeout=None, fallback_mode="no_fallback")
        return list(found)

    rounded = any(
        len(digits.replace(".", "").lstrip("0")) >= ROUNDED_DIGITS for digits in _DECIMAL.findall(gold + " " + guess)
    )
    grader.sympy_numeric_eq = lambda left, right, *_: _same_value(left, right, rounded=rounded)
    grader.sympy_symbolic_eq = _same_expression
    left, right = read(gold), read(guess)
    return bool(left and right) and bool(verify(left, right, timeout_seconds=None, allow_set_relation_comp=True))


_DECIMAL = re.compile(r"(?<![0-9A-Za-z_^.,])[0-9]*\.[0-9]+(?![0-9.])")


def as_fractions(latex: str) -> str:
    """LaTeX with its decimals, repeating ones too, as exact fractions, and without percent signs, which are units."""
    plain = REPEATING.sub(lambda match: "\\frac{{{}}}{{{}}}".format(*repeating(match).split("/")), latex)
    plain = re.sub(r"\\[tcd]frac(?![A-Za-z])", r"\\frac", re.sub(r"\s*\\?%", "", plain))
    return _DECIMAL.sub(lambda match: "\\frac{{{}}}{{{}}}".format(*Fraction(match[0]).as_integer_ratio()), plain)


def _same_value(left: Any, right: Any, *, rounded: bool) -> bool:
    """Whether two sympy objects without variables are the same: numbers, and matrices of them.

    With `rounded`, a rational and an irrational number are the same where they agree to ROUNDED_DIGITS digits.
    """
    from sympy import MatrixBase  # type: ignore[import-untyped]

    left, right = (side.doit() for side in (left, right))
    if isinstance(left, MatrixBase) or isinstance(right, MatrixBase):
        if getattr(left, "shape", None) != getattr(right, "shape", None):
            return False
        pairs = zip(left.flat(), right.flat(), strict=True)
        return all(_same_value(a, b, rounded=rounded) or _same_expression(a, b) for a, b in pairs)
    if left.free_symbols or right.free_symbols:
        return False
    if left.is_Rational and right.is_Rational:
        return bool(left == right)
    difference = (left - right).evalf(15, maxn=DIGITS)
    if rounded and bool(left.is_Rational) != bool(right.is_Rational):
        return bool(abs(difference) <= abs(right.evalf(15)) * 10**-ROUNDED_DIGITS)
    # what no number of digits tells from zero has lost all its precision
    return all(part == 0 or getattr(part, "_prec", 0) == 1 for part in difference.as_real_imag())


def _same_expression(left: Any, right: Any) -> bool:
    """Whether two sympy objects with variables are the same for all values; those without are settled as numbers."""
    from sympy import MatrixBase, simplify

    if not (left.free_symbols or right.free_symbols):
        return bool(left == right)
    difference = simplify(left - right)
    return bool(difference.is_zero_matrix if isinstance(difference, MatrixBase) else difference.is_zero)
