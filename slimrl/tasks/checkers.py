"""Answers that are neither numbers nor LaTeX: text, letters of options, and patterns."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]

from slimrl.records import right_answers
from slimrl.tasks.forms import choice
from slimrl.tasks.latex import TEXT, unwrapped
from slimrl.tasks.numbers import parse_number
from slimrl.terms import Checker

PATTERN_SECONDS = 1.0
"""Time that a pattern may take for one answer; some patterns take for ever on some texts."""
MAX_GUESS = 300  # characters of an answer that is compared with a pattern
_SAID = re.compile(r"(?:answer|choice|option)(?:\s+is)?\s*:?\s+(?=\S)(.*)", re.IGNORECASE)
_LETTER = re.compile(r"\(([A-Z])\)|(?<![A-Za-z0-9'’])([A-Z])(?![A-Za-z0-9'’])")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s.,'’-]+[^\W\d_]+)*\.?")


def same_text(guess: str, gold: str) -> bool:
    """The same text but for case, white space, markup around it (bold type, a box, quotes) and a full stop at its end."""
    left = plain_text(guess)
    return left == plain_text(gold) != ""


def plain_text(text: str) -> str:
    """An answer as `same_text` compares it."""
    plain = re.sub(rf"{TEXT}\s*\{{([^{{}}]*)\}}", r"\1", unwrapped(text))
    return " ".join(plain.casefold().split()).rstrip(".!").strip("\"'`“”‘’").rstrip(".!").strip()


def letter(answer: str) -> str:
    """The option that an answer names, as a capital letter: `C`, `c`, `(C)`, `C. 12 apples`; else empty."""
    plain = unwrapped(answer).strip()
    alone = re.fullmatch(r"\(?([A-Za-z])[).]?", plain)
    return alone[1].upper() if alone else choice(plain)


def fits_pattern(guess: str, pattern: str) -> bool | None:
    """True if the pattern fits the whole answer; None if that took too long to find out."""
    try:
        return bool(_compiled(pattern).fullmatch(guess.strip()[:MAX_GUESS], timeout=PATTERN_SECONDS))
    except TimeoutError:
        return None


@lru_cache(maxsize=8192)
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern.strip())


def fault(checker: Checker, answer: str) -> str:
    """The reason why a gold answer could never be found right, with the way out; empty if it can be."""
    shown = repr(answer[:60])
    if checker == "numeric" and parse_number(answer) is None:
        return f"answer {shown} is not one number; set task.checker={fitting_checker([answer])}, or correct the answer"
    if checker == "choice" and not letter(answer):
        way_out = "set task.checker=exact, or name the column of the options in task.columns.choices"
        return f"answer {shown} is not the letter of an option; {way_out}"
    return pattern_fault(answer) if checker == "regex" else ""


def answer_fault(checker: Checker, answer: str) -> str:
    """As `fault`, of an answer that may be several: any bad pattern, and for other checkers only if no other can be right."""
    faults = [fault(checker, one) for one in right_answers(answer)]
    return next(filter(None, faults), "") if checker == "regex" or all(faults) else ""


def pattern_fault(pattern: str) -> str:
    """The reason why a text is no pattern of an answer; empty if it is one."""
    shown = repr(pattern[:60])
    try:
        empty = _compiled(pattern).fullmatch("", timeout=PATTERN_SECONDS)
    except regex.error as error:
        return f"answer {shown} is no regular expression ({error}); correct it"
    except TimeoutError:
        empty = None
    return f"answer {shown} is a pattern that fits an empty answer too; make it ask for something" if empty else ""


def fitting_checker(answers: Sequence[str]) -> Checker:
    """The checker for gold answers that are no numbers: for letters of options, for words, for anything else."""
    if all(choice(answer.strip()) for answer in answers):
        return "choice"
    return "exact" if all(_WORDS.fullmatch(answer.strip()) for answer in answers) else "symbolic"


def last_letter(text: str) -> str:
    """The last capital letter that stands alone in running text, brackets aside; empty if there is none."""
    letters = [first or second for first, second in _LETTER.findall(text)]
    return letters[-1] if letters else ""


def last_answer(text: str) -> str:
    """The last words of running text: those behind `answer is` or `Answer:` on its last line, or all of that line."""
    lines = [line.strip() for line in text.strip().split("\n")]
    said = _SAID.search(lines[-1])
    return said[1] if said else lines[-1]
