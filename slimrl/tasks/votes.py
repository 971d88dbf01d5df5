"""The votes of maj@k: answers to one problem that are equal are one vote."""

import re
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import NamedTuple

from slimrl.tasks.answers import Grader, stated_number
from slimrl.tasks.checkers import letter, plain_text
from slimrl.tasks.latex import normalise, unwrapped
from slimrl.tasks.numbers import parse_number
from slimrl.terms import Checker

ASKED = 64
"""Questions about the answers to one problem that are put to the process of a symbolic checker, which may be slow."""
PAIRS = 2048
"""Pairs of answers to one problem that are compared at all: all pairs of 64."""
TOLD: tuple[Checker, ...] = ("numeric", "exact", "choice", "regex", "tests", "none")
"""Checkers whose equality the keys of answers decide, so that no pairs are compared."""
_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
"""A letter that is no command of LaTeX."""


class Votes(NamedTuple):
    """The votes of a problem's samples."""

    cast: list[int | None]
    """Of each sample, the first sample with an equal answer; None without an answer."""
    uncompared: frozenset[int]
    """Samples whose answer was not compared with all earlier ones that it may equal, and counts as a vote of its own."""


class _Pairs(Grader):
    """The checker of another grader, which compares at most PAIRS pairs and puts at most ASKED questions to its process."""

    def __init__(self, grader: Grader) -> None:
        super().__init__(grader.checker, grader.worker)
        self.pairs, self.questions = PAIRS, ASKED
        self.refused = False
        """Something was not compared since this was last set."""

    def equal(self, answer: str, key: Hashable, other: str, other_key: Hashable) -> bool:
        """True if two answers with different keys are equal; two numbers are not, nor is a number an expression with a letter."""
        keys = key, other_key
        texts = [one for one in keys if not isinstance(one, Fraction)]
        if not texts or (len(texts) == 1 and _LETTER.search(str(texts[0]))):
            return False
        if not self.pairs:
            self.refused = True
            return False
        self.pairs -= 1
        # an expression is no answer where a number is asked for, and a number may be one where an expression is
        return bool(self.compare(other, answer) if isinstance(other_key, Fraction) else self.compare(answer, other))

    def _ask(self, guess: str, gold: str) -> bool | None:
        if not self.questions:
            self.refused = True
            return False
        self.questions -= 1
        return super()._ask(guess, gold)


def votes(grader: Grader, answers: Sequence[tuple[str, bool]]) -> Votes:
    """The votes of a problem's samples, given the answer of each (empty for none) and its strict verdict.

    Right answers are equal. Wrong ones are where they have the same key (the letter of an option, a number, or else the text but
    for markup and, except in LaTeX, case), or where a symbolic checker says so; it is asked about few pairs.
    """
    checker = _Pairs(grader)
    known: dict[Hashable, int] = {}
    """The vote for each key of a wrong answer."""
    classes: dict[int, tuple[str, Hashable]] = {}
    """The first answer of each vote for a wrong one, with its key."""
    right: int | None = None
    cast: list[int | None] = []
    uncompared: set[int] = set()
    for index, (answer, is_right) in enumerate(answers):
        if is_right:
            right = index if right is None else right
            cast.append(right)
        elif not answer:
            cast.append(None)
        else:
            key = _key(grader.checker, answer)
            if key not in known:
                checker.refused = False
                others = () if grader.checker in TOLD else classes.items()
                known[key] = next((first for first, other in others if checker.equal(answer, key, *other)), index)
                if known[key] == index:
                    classes[index] = answer, key
                    uncompared |= {index} if checker.refused else set()
            cast.append(known[key])
    return Votes(cast, frozenset(uncompared))


def _key(checker: Checker, answer: str) -> Hashable:
    """A number, or a text; answers with equal keys are equal."""
    if checker == "choice":
        return letter(answer) or plain_text(answer) or answer
    if checker == "tests":
        return answer
    if checker == "exact":
        return plain_text(answer) or answer
    if checker == "symbolic":
        bare = unwrapped(answer.strip().rstrip("."))
        number = stated_number(bare)
        return normalise(bare) or answer if number is None else number
    number = parse_number(answer)
    return plain_text(answer) or answer if number is None else number
