"""What counts as right: strict and lenient verdicts on a completion, always both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from slimrl.tasks.numbers import changes_meaning, last_number, numbers, parse_number, same_number
from slimrl.tasks.styles import Style, last_box

if TYPE_CHECKING:
    from slimrl.tasks.symbolic import SymbolicWorker

__all__ = ["Grade", "Grader", "last_number", "numbers", "parse_number", "same_number"]


@dataclass(frozen=True)
class Grade:
    """The verdict on one completion."""

    strict: bool
    """The answer stands in the required form and equals the gold answer."""
    lenient: bool
    """Strict, or the last number (symbolic: the last box) equals the gold answer."""
    extracted_strict: str
    """What the required form holds; empty where the completion is not in the form."""
    extracted_lenient: str
    undecided: bool = False
    """The symbolic checker gave no verdict in time on the strict answer, so that no reward may be built on it."""


class Grader:
    """Compares answers with gold answers.

    `numeric` compares exact fractions and knows nothing else: what is not a number is never right. `symbolic` compares
    numbers exactly and everything else first as normalised text, then through math-verify in a process of its own.
    """

    def __init__(self, checker: Literal["numeric", "symbolic"]) -> None:
        self.checker = checker
        self._worker: SymbolicWorker | None = None
        if checker == "symbolic":
            from slimrl.tasks.symbolic import SymbolicWorker

            self._worker = SymbolicWorker()
        # a completion is graded for `correct`, for each reward and for the record
        self._cached = lru_cache(maxsize=8192)(self._compare)

    def grade(self, text: str, answer: str, style: Style) -> Grade:
        """Verdicts on a completion's text, given the gold answer and how an answer must be written."""
        extracted = style.extract(text)
        verdict = self.compare(extracted, answer)
        if verdict:
            return Grade(True, True, extracted, extracted)
        lenient = self._lenient(text, extracted)
        # what no verdict was found for a moment ago is not asked again
        right = False if lenient == extracted else bool(self.compare(lenient, answer))
        return Grade(False, right, extracted, lenient, undecided=verdict is None)

    def same(self, guess: str, gold: str) -> bool:
        """The guess is the gold answer."""
        return self.compare(guess, gold) is True

    def compare(self, guess: str, gold: str) -> bool | None:
        """As `same`, but None where the symbolic checker could not decide in time."""
        if not guess:
            return False
        return same_number(guess, gold) if self._worker is None else self._cached(guess, gold)

    def close(self) -> None:
        """Stop the checker's process, if it has one; it comes back when needed."""
        if self._worker is not None:
            self._worker.close()

    def _lenient(self, text: str, extracted: str) -> str:
        if self._worker is None:
            return last_number(text)
        return last_box(text) or extracted or last_number(text)

    def _compare(self, guess: str, gold: str) -> bool | None:
        assert self._worker is not None
        number = parse_number(gold, words=False)
        if number is not None:
            return _number(guess) == number
        if normalise(guess) == normalise(gold) != "":
            return True
        return plausible(guess, gold) and self._worker.same(guess, gold)


_NAME = r"[A-Za-z](?:_[A-Za-z0-9]|\([a-z]\))?"
"""What an answer may be called: x, x_1, f(x)."""
_MARKS = re.compile(
    r"_\{?[0-9]+|\\(?:approx|sim|simeq|cong|ne|not|dots|boxed|fbox|tag|label|\w*phantom|\w*cancel)(?![A-Za-z])|\.\.\."
)
_NUMBERED = re.compile(r"\\(?:text|math|mbox)[a-z]*\s*\{[^{}]*[0-9][^{}]*\}")


def _number(guess: str) -> Fraction | None:
    """The number that a LaTeX answer states, be it named, boxed or in brackets.

    What has still to be computed is none: many a problem asks to compute \\binom{8}{4}, and who copies that has not.
    """
    value = re.sub(rf"^\s*\$?\s*{_NAME}\s*=(?!=)", "", guess) if guess.count("=") == 1 else guess
    for wrapped in (r"\\boxed\s*\{(.*)\}", r"(?:\\left)?\((.*?)(?:\\right)?\)", r"\{(.*)\}"):
        if match := re.fullmatch(rf"\s*\$?{wrapped}\$?\s*", value, re.DOTALL):
            value = match[1]
    found = parse_number(value, words=False)
    # words may be a unit; a lone letter, or letters close to it, make algebra of a number
    algebra = re.search(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])|[0-9][A-Za-z]", value)
    return found if found is not None or algebra else parse_number(value)


def normalise(text: str) -> str:
    """LaTeX that reads the same, spelt the same: delimiters, spacing, \\dfrac, text commands, letter case of words."""
    plain = text.strip().strip("$").strip().rstrip(".")
    plain = re.sub(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\!", "", plain)
    plain = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", "", plain)
    plain = re.sub(r"\\[,;: ]|~", " ", plain)
    plain = re.sub(r"\\neq(?![A-Za-z])", r"\\ne", re.sub(r"\\[lc]dots(?![A-Za-z])", r"\\dots", plain))
    plain = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", plain)
    plain = re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}", r"\1", plain)
    plain = re.sub(r"_\{([0-9])\}", r"_\1", plain)
    # a gap between digits is kept: 1 8 is not 18
    plain = re.sub(r"(?<![0-9])\s+|\s+(?![0-9\s])", "", plain)
    if re.fullmatch(r"\([A-Za-z]\)", plain):
        plain = plain[1]
    return plain.casefold() if re.fullmatch(r"[A-Za-z]{2,}", plain) else plain


def plausible(guess: str, gold: str) -> bool:
    """Whether a guess may be handed to math-verify at all.

    math-verify adds numbers that stand side by side, takes the last of several equations, and passes over words, bases of
    numbers, dots and whatever stands behind a box; each would let a text that is not the answer pass for it.
    """
    plain = normalise(guess)
    spaced = re.sub(r"\\[,;: ]|~", " ", guess)
    if re.search(r"[0-9]\s+[0-9]", spaced) or re.search(r"(?<![A-Za-z])(?:or|and)(?![A-Za-z])|\\(?:vee|lor)", spaced):
        return False
    name, equals, _ = plain.rpartition("=")
    if equals and ("=" in name or ("=" not in gold and not re.fullmatch(_NAME, name))):
        return False
    said = changes_meaning(re.sub(r"\\[A-Za-z]+", " ", guess)) - changes_meaning(gold)
    if said or set(_NUMBERED.findall(guess)) - set(_NUMBERED.findall(gold)):
        return False
    return _marks(guess) == _marks(gold)


def _marks(latex: str) -> list[str]:
    """Bases, relations, dots and what hides other signs: math-verify passes over them, and the answer hangs on them."""
    return sorted(mark.replace("{", "") for mark in _MARKS.findall(normalise(latex)))
