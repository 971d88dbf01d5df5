"""math-verify in a process that can be killed, asked one comparison at a time.

Its own time-outs cannot be relied on: a long integer power never looks at a signal.
"""

import importlib.util
import re
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from typing import Any

from slimrl.errors import SettingsError
from slimrl.machine.worker import Answer, Worker
from slimrl.tasks.numbers import REPEATING, repeating
from slimrl.tasks.units import without_latex_unit

MAX_LENGTH = 300  # characters of an answer; a longer one is compared as text only
MAX_NESTING = 20  # open brackets of any kind at once
MAX_DIGITS = 40  # digits in a row
MAX_EXPONENT = 1000  # largest integer power that is computed
DIGITS = 400  # digits to which two real numbers are compared. Nothing is rounded, however small the numbers are.
ROUNDED_DIGITS = 12
"""Significant digits, at least, of a decimal that may stand for a real number, and how many of them must be right."""
MEMORY_BYTES = 4 << 30


def within_limits(latex: str) -> bool:
    """True if the answer is cheap to compare, by its text alone: a verdict must not depend on the load of the machine."""
    if len(latex) > MAX_LENGTH:
        return False
    plain = re.sub(r"\s", "", latex)
    powers = re.findall(r"(?:\^|\*\*)\{?[-+]?([0-9]+)", plain)
    tower = re.search(r"\^\{?[-+]?[0-9.]*\{?\(?[0-9.]+\}?\^", plain)
    factorial = re.search(r"[0-9]{3,}!|!!|\)!|\}!", plain)
    depths = accumulate((character in "([{") - (character in ")]}") for character in latex)
    return (
        max(depths, default=0) <= MAX_NESTING
        and not re.search(rf"[0-9]{{{MAX_DIGITS + 1},}}", plain)
        and all(len(power) <= 4 and int(power) <= MAX_EXPONENT for power in powers)
        and not tower
        and not factorial
    )


class SymbolicWorker:
    """Asks math-verify whether two LaTeX answers are equal, in a process that is started at the first question.

    Args:
        deadline: seconds for one comparison. A missed deadline gives no verdict, and the process is killed and replaced.

    Raises SettingsError if the extra is not installed.
    """

    def __init__(self, deadline: float = 10.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise SettingsError("task.checker=symbolic needs math-verify; run pip install 'slimrl[math]'")
        self.deadline = deadline
        self.process = Worker(_load, memory=MEMORY_BYTES, output=lambda _: None)
        self._lock = threading.Lock()
        weakref.finalize(self, self.process.end)  # at the latest when this process ends

    def same(self, guess: str, gold: str) -> bool | None:
        """True or False, or None without a verdict in time. Answers over the limits are different without being asked."""
        if not (within_limits(guess) and within_limits(gold)):
            return False
        with self._lock:
            self.process.start()
            verdict: bool | None = None
            try:
                self.process.ask((guess, gold))
                verdict = self.process.reply(self.deadline)
            except BaseException as error:
                self.process.end()  # also after an interrupt: the next question must not get this reply
                if not isinstance(error, EOFError | OSError | RuntimeError):
                    raise
            return verdict

    def close(self) -> None:
        """Kill the process, if it runs; the next question starts another."""
        with self._lock:
            self.process.end()


def _load() -> Answer:
    """In the child: the function that answers (guess, gold) with a verdict, None if math-verify fails."""
    import math_verify  # noqa: F401  (before the first deadline starts to run)

    def answer(request: tuple[str, str]) -> Iterator[bool | None]:
        guess, gold = request
        try:
            yield _verify(gold, guess)
        except Exception:
            yield None

    return answer


def _verify(gold: str, guess: str) -> bool:
    """math-verify's verdict on two LaTeX answers; its own time-outs are off, since the process has one that holds.

    It rounds numbers to decimals, which makes all small ones equal, so `_same_value` replaces that comparison: rationals are
    compared exactly (decimals are read as fractions), reals to DIGITS digits.
    """
    from math_verify import LatexExtractionConfig, grader, parse, verify

    # its own idea of units takes the h off \pi r^2 h
    normalization = replace(LatexExtractionConfig().normalization_config, units=False)
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization)]

    def read(latex: str) -> list[object]:
        boxed = "\\boxed{" + as_fractions(without_latex_unit(latex.strip().strip("$"))) + "}"
        return list(parse(boxed, extraction_config=config, parsing_timeout=None, fallback_mode="no_fallback"))

    decimals = _DECIMAL.findall(f"{gold} {guess}")
    rounded = any(len(digits.replace(".", "").lstrip("0")) >= ROUNDED_DIGITS for digits in decimals)
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
    """True if two sympy objects without variables are equal: numbers, and matrices of them.

    With `rounded`, a rational and an irrational number are equal if they agree to ROUNDED_DIGITS digits.
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
    """True if two sympy objects with variables are equal for all values; those without are compared as numbers."""
    from sympy import MatrixBase, simplify

    if not (left.free_symbols or right.free_symbols):
        return bool(left == right)
    difference = simplify(left - right)
    return bool(difference.is_zero_matrix if isinstance(difference, MatrixBase) else difference.is_zero)
