"""Strict and lenient verdicts on a completion, always both."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from slimrl.records import right_answers
from slimrl.tasks import forms
from slimrl.tasks.checkers import fits_pattern, last_answer, last_letter, letter, same_text
from slimrl.tasks.latex import NAME, normalise, plausible, unwrapped
from slimrl.tasks.numbers import last_number, parse_number, same_number
from slimrl.tasks.styles import Style, last_box
from slimrl.tasks.symbolic import SymbolicWorker
from slimrl.tasks.units import MAGNITUDES, changes_meaning, without_plain_unit
from slimrl.terms import Checker
from slimrl.thinking import committed


@dataclass(frozen=True)
class Grade:
    """The verdict on one completion."""

    strict: bool
    """The answer stands in the required form and equals the gold answer."""
    lenient: bool
    """Strict, or the last number (symbolic: the last box; choice: the last letter; exact and regex: the end of the last line)
    after the thinking equals the gold answer.

    A number in the required form is the answer, however it is written: `#### $5$ million` is never read as 5.
    Thinking that never ends has no lenient answer either.
    """
    extracted_strict: str
    """The answer in the required form; empty if the completion is not in the form."""
    extracted_lenient: str
    undecided: bool = False
    """The symbolic checker, or a pattern, gave no verdict on the strict answer in time, so no reward may depend on it."""


class Grader:
    """Compares answers with gold answers. Where several answers are right, one of them is enough; an empty one is never right.

    `numeric` compares exact fractions; an answer that is not a number is never right. `symbolic` compares numbers exactly,
    and other answers first as normalised text, then piece by piece if they are times, ratios, choices, lists or intervals
    (`slimrl/tasks/forms.py`), and last through math-verify in a process of its own. `exact`, `choice` and `regex` are in
    `slimrl/tasks/checkers.py`. With `none` nothing is right.
    """

    def __init__(self, checker: Checker, worker: SymbolicWorker | None = None) -> None:
        self.checker = checker
        self.worker = worker or (SymbolicWorker() if checker == "symbolic" else None)
        """The process of a symbolic checker."""
        self._cached = lru_cache(maxsize=8192)(self._compare)
        # a completion is graded for `correct`, for each reward and for the record, and many of a group are equal
        self._graded = lru_cache(maxsize=2048)(self._grade)

    def begin(self, texts: Iterable[str], answer: str, style: Style) -> None:
        """Begin what takes long of the verdicts on completions, where something does."""

    def grade(self, text: str, answer: str, style: Style) -> Grade:
        """Verdicts on a completion's text, given the gold answer and how an answer must be written."""
        return self._graded(text, right_answers(answer), style)

    def _grade(self, text: str, answers: tuple[str, ...], style: Style) -> Grade:
        extracted = style.extract(text)
        verdict = self._any(extracted, answers)
        if verdict:
            return Grade(True, True, extracted, extracted)
        lenient = self._lenient(committed(text), extracted)
        # an answer without a verdict is not asked about again
        right = lenient != extracted and bool(self._any(lenient, answers))
        return Grade(False, right, extracted, lenient, undecided=verdict is None)

    def _any(self, guess: str, answers: tuple[str, ...]) -> bool | None:
        verdicts = {self.compare(guess, answer) for answer in answers}
        return True if True in verdicts else None if None in verdicts else False

    def compare(self, guess: str, gold: str) -> bool | None:
        """True if the guess is the gold answer; None if the symbolic checker, or a pattern, did not decide in time."""
        if not guess or not gold:
            return False
        match self.checker:
            case "numeric":
                return same_number(guess, gold)
            case "symbolic":
                return self._cached(guess, gold)
            case "exact":
                return same_text(guess, gold)
            case "choice":
                return letter(guess) == letter(gold) != ""
            case "regex":
                return fits_pattern(guess, gold)
        return False

    def earns(self, answer: str) -> bool:
        """True if the gold answer itself, written as it stands, must be found right: not for a pattern that does not fit itself,
        nor where nothing is compared.
        """
        if not answer or self.checker == "none":
            return False
        return self.checker != "regex" or bool(fits_pattern(answer, answer))

    def close(self) -> None:
        """Stop the checker's process, if it has one; the next comparison starts another."""
        if self.worker:
            self.worker.close()

    def _lenient(self, text: str, extracted: str) -> str:
        if self.checker not in ("numeric", "symbolic"):
            return extracted or (last_letter(text) if self.checker == "choice" else last_answer(text))
        if parse_number(extracted) is not None:
            return extracted
        if self.worker is None:
            return last_number(text)
        return last_box(text) or extracted or last_number(text)

    def _compare(self, guess: str, gold: str) -> bool | None:
        guess = unwrapped(guess)
        number = parse_number(gold, words=False)
        if number is None and changes_meaning(gold) & MAGNITUDES.keys():
            number = parse_number(gold)
        if number is not None:
            found = stated_number(guess)
            # a gold answer such as 10^{-9} or 0.\overline{3} is an expression too, which others may equal
            if found is not None or not re.search(r"\^|\\(?:overline|bar|dot)(?![A-Za-z])", gold):
                return found == number
        if normalise(guess) == normalise(gold) != "":
            return True
        if (time := forms.clock(gold)) is not None:
            guessed = forms.clock(_value(guess))
            return guessed is not None and guessed.agrees(time)
        if (letter := forms.choice(gold)) and forms.choice(guess) == letter:
            return True
        return self._piecewise(guess, gold)

    def _piecewise(self, guess: str, gold: str) -> bool | None:
        """The verdict on ratios, intervals and lists from those on their pieces; math-verify's on all other answers."""
        names, terms = forms.ratio(gold)
        if terms:
            return self._ratio(guess, names, terms)
        variable, wanted, as_inequality = forms.interval(gold)
        other, found, guess_as_inequality = forms.interval(guess)
        if wanted and found and (as_inequality or guess_as_inequality):
            same_variable = not variable or not other or variable == other
            return same_variable and plausible(found, wanted) and self._ask(found, wanted)
        if re.search(r"[<>]|\\[lg]e", gold) and re.search(_OR, gold) and re.search(_AND, guess):
            return False  # both sides of x<1 or x>4 hold for no x
        pieces = forms.parts(gold, alternatives=True)
        guessed = forms.parts(guess, alternatives=True)
        # x=1 or x=2 lists solutions; 1 or 2 is a choice, unless the gold answer leaves it too
        if not re.search(_OR, gold) and _without_one_name(guessed) == guessed:
            guessed = forms.parts(guess, alternatives=False)
        is_list = 1 < max(len(pieces), len(guessed)) <= forms.MAX_PARTS
        if is_list and not re.search(r"\\(?:pm|mp|[lc]?dots)|\.\.\.", guess + gold):
            return self._list(guessed, pieces)
        return self._whole(guess, gold)

    def _whole(self, guess: str, gold: str) -> bool | None:
        """math-verify's verdict; False if the guess is not plausible."""
        bare = without_plain_unit(guess)
        return plausible(bare, gold) and self._ask(bare, gold)

    def _ask(self, guess: str, gold: str) -> bool | None:
        assert self.worker is not None
        return self.worker.same(guess, gold)

    def _ratio(self, guess: str, names: tuple[str, ...], terms: tuple[str, ...]) -> bool | None:
        """Compare the terms, each divided by the first, with the gold answer's; a fraction may state a ratio of two terms."""
        other_names, guessed = forms.ratio(guess)
        if not guessed:
            return len(terms) == 2 and self._compare(guess, _quotient(*terms))
        guessed = forms.in_order(other_names, guessed, names)
        if len(guessed) != len(terms):
            return False
        pairs = zip(guessed[1:], terms[1:], strict=True)
        return _all(self._compare(_quotient(mine, guessed[0]), _quotient(theirs, terms[0])) for mine, theirs in pairs)

    def _list(self, guessed: list[str], pieces: list[str]) -> bool | None:
        """Compare the pieces in any order: by name if the gold answer names them differently.

        Values without names match named ones only in the order of the gold answer.
        """
        mine, theirs = forms.named(guessed), forms.named(pieces)
        if len({name for name, _ in theirs}) == len(pieces) > 1:
            if mine:
                values = dict(mine)
                same_names = len(values) == len(mine) and values.keys() == {name for name, _ in theirs}
                return same_names and _all(self.compare(values[name], value) for name, value in theirs)
            guessed = forms.elements(guessed)
            if len(guessed) != len(pieces):
                return False
            return _all(self.compare(guess, value) for guess, (_, value) in zip(guessed, theirs, strict=True))
        left, right = _without_one_name(guessed), _without_one_name(pieces)
        if len(left) != len(right):
            return False
        for guess in list(left):
            if twin := next((gold for gold in right if normalise(guess) == normalise(gold)), None):
                left.remove(guess)
                right.remove(twin)
        if len(left) > forms.MAX_ASKED:
            return self._whole(", ".join(left), ", ".join(right))
        for guess in left:
            verdicts = [self.compare(guess, gold) for gold in right]
            if True not in verdicts:
                return None if None in verdicts else False
            right.pop(verdicts.index(True))
        return True


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """True if all are, False if one is, None (no verdict) otherwise."""
    found = set(verdicts)
    return False if False in found else None if None in found else True


def _quotient(above: str, below: str) -> str:
    """Two terms of a ratio as a fraction in LaTeX, of whole numbers if they are numbers."""
    left, right = parse_number(above, words=False), parse_number(below, words=False)
    if left is None or not right:
        return f"\\frac{{{above}}}{{{below}}}"
    return str(left / right)


_AND = r"(?<![A-Za-z])and(?![A-Za-z])|\\(?:wedge|land)(?![A-Za-z])"
_OR = r"(?<![A-Za-z])or(?![A-Za-z])"


def _value(latex: str) -> str:
    """An answer without its name, be it of a value (`t=3:30`) or of a ratio (`a:b=11:21`)."""
    name, equals, value = latex.rpartition("=")
    return value if equals and re.fullmatch(rf"\s*\$?\s*{NAME}(?:\s*:\s*{NAME})*\s*", name) else latex


def _without_one_name(elements: list[str]) -> list[str]:
    """The values of `x=1, x=2` and of `x=1, 2`, if all belong to one name; otherwise the elements as they are."""
    first, *rest = elements
    if all(forms.named([element]) for element in elements):
        pairs = forms.named(elements)
        return [value for _, value in pairs] if len({name for name, _ in pairs}) == 1 else elements
    return [forms.named([first])[0][1], *rest] if forms.named([first]) and "=" not in "".join(rest) else elements


def stated_number(guess: str) -> Fraction | None:
    """The number that a LaTeX answer states, also if it is named, boxed or in brackets.

    An expression is no number: a problem may ask to compute \\binom{8}{4}, and a copy of that is no answer.
    """
    value = guess
    named = re.match(rf"\s*\$?\s*({NAME})\s*=(?!=)", guess) if guess.count("=") == 1 else None
    if named and not changes_meaning(named[1]):
        value = guess[named.end() :]
    for wrapped in (r"\\(?:boxed|fbox)\s*\{(.*)\}", r"(?:\\left)?\((.*?)(?:\\right)?\)", r"\{(.*)\}"):
        if match := re.fullmatch(rf"\s*\$?{wrapped}\$?\s*", value, re.DOTALL):
            value = match[1]
    found = parse_number(value, words=False)
    # words may be a unit; a lone letter, or letters close to it, make algebra of a number
    algebra = re.search(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])|[0-9][A-Za-z]", value)
    return found if found is not None or algebra else parse_number(value)
