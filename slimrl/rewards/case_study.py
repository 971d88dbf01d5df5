"""The case study's four rewards, at most 3 + 2 + 3 + 1.5 = 9.5 points: corrected, and as they were published.

The points are the study's. These are the errors of its functions, and the behaviour of the corrected ones:

- match_format_exactly searched anywhere in the text, any line could be the first and the last, and anything could stand
  between the tags. Corrected: the whole completion is the form, each tag once, only white space between the parts.
- match_format_approximately counted tags wherever they are named, so prose about the tags earned all points. Corrected: a
  tag must also be in its place.
- check_answer asked for the whole format first, paid half for `<SOLUTION> 18 </SOLUTION>`, read "1,080" as no number,
  and divided by a gold answer of 0. Corrected: needs the solution tags only, and compares numbers exactly.
- check_numbers dropped signs, read "1,080" as 1 and could not read such a gold answer at all (82 training and 16 test
  answers of GSM8K cannot earn their points), and took the first of several numbers. Corrected: one number, read exactly.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from slimrl.tasks.latex import normalise
from slimrl.tasks.numbers import numbers, parse_number
from slimrl.tasks.styles import STYLES, TAGS
from slimrl.thinking import committed

_START, _END, _OPEN, _CLOSE = TAGS
_PUBLISHED_FORM = re.compile(
    rf"^[\s]{{0,}}{_START}.+?{_END}.*?{_OPEN}(.+?){_CLOSE}[\s]{{0,}}$", flags=re.MULTILINE | re.DOTALL
)
_PUBLISHED_NUMBER = re.compile(rf"{_OPEN}.*?([\d\.]{{1,}})")


def match_format_exactly(completions: Sequence[str], **_: object) -> list[float]:
    """3 where the whole completion is in the form, else 0."""
    return [3.0 if STYLES["tags"].well_formed(text) else 0.0 for text in completions]


def match_format_approximately(completions: Sequence[str], **_: object) -> list[float]:
    """For each of the four tags 0.5 where it occurs once and in its place, else -0.5: -2 to 2."""
    return [sum(0.5 if placed else -0.5 for placed in _in_place(committed(text))) for text in completions]


def check_answer(completions: Sequence[str], *, answer: Sequence[str], **_: object) -> list[float]:
    """3 for the gold answer, 0.5 within 10 %, 0.25 within 20 %, -1 for other numbers, -0.5 for words, 0 for nothing."""
    return [_answer_points(STYLES["tags"].extract(text), gold) for text, gold in zip(completions, answer, strict=True)]


def check_numbers(completions: Sequence[str], *, answer: Sequence[str], **_: object) -> list[float]:
    """1.5 where the only number after the only <SOLUTION> is the gold number, else 0."""
    pairs = zip(completions, answer, strict=True)
    return [1.5 if _one_number(committed(text), gold) else 0.0 for text, gold in pairs]


def _in_place(text: str) -> tuple[bool, bool, bool, bool]:
    """For each tag: it occurs once, where the form has it, whatever the other tags do."""
    once = [text.count(tag) == 1 for tag in TAGS]
    at = [text.find(tag) for tag in TAGS]
    after_working = not once[1] or text[at[1] + len(_END) : at[2]].strip() == "" if at[2] > at[1] else False
    return (
        once[0] and text[: at[0]].strip() == "",
        once[1] and (not once[0] or at[0] < at[1]) and at[1] > 0,
        once[2] and after_working,
        once[3] and (not once[2] or at[2] < at[3]) and text[at[3] + len(_CLOSE) :].strip() == "",
    )


def _answer_points(guess: str, gold: str) -> float:
    if not guess:
        return 0.0
    value, target = parse_number(guess), parse_number(gold)
    if normalise(guess) == normalise(gold) or (value is not None and value == target):
        return 3.0
    if value is None or target is None:
        return -0.5
    miss = abs(value - target) / abs(target) if target else 1
    return 0.5 if miss <= Fraction(1, 10) else 0.25 if miss <= Fraction(2, 10) else -1.0


def _one_number(text: str, gold: str) -> bool:
    if text.count(_OPEN) != 1:
        return False
    inside = text.partition(_OPEN)[2].partition(_CLOSE)[0]
    target = parse_number(gold)
    if target is None:
        return normalise(inside) == normalise(gold)
    whole = parse_number(inside)
    found = [whole] if whole is not None else [parse_number(number) for number in numbers(inside)]
    return len(found) == 1 and found[0] == target


def match_format_exactly_published(completions: Sequence[str], **_: object) -> list[float]:
    """3 where the published pattern is found anywhere, else 0."""
    return [3.0 if _PUBLISHED_FORM.search(text) else 0.0 for text in completions]


def match_format_approximately_published(completions: Sequence[str], **_: object) -> list[float]:
    """0.5 for each tag that occurs exactly once, wherever, else -0.5."""
    return [sum(0.5 if text.count(tag) == 1 else -0.5 for tag in TAGS) for text in completions]


def check_answer_published(completions: Sequence[str], *, answer: Sequence[str], **_: object) -> list[float]:
    """Points for the string between the solution tags, only where the whole published pattern is found."""
    return [_published_points(text, gold) for text, gold in zip(completions, answer, strict=True)]


def check_numbers_published(completions: Sequence[str], *, answer: Sequence[str], **_: object) -> list[float]:
    """1.5 where the first run of digits and points after <SOLUTION>, on its line, is float-equal to the gold answer."""
    return [1.5 if _published_number(text, gold) else 0.0 for text, gold in zip(completions, answer, strict=True)]


def _published_points(text: str, gold: str) -> float:
    match = _PUBLISHED_FORM.search(text)
    if match is None:
        return 0.0
    guess = match[1]
    if guess == gold:
        return 3.0
    if guess.strip() == gold.strip():
        return 1.5
    try:
        ratio = float(guess) / float(gold)
    except (ValueError, ZeroDivisionError, OverflowError):
        return -0.5
    return 0.5 if 0.9 <= ratio <= 1.1 else 0.25 if 0.8 <= ratio <= 1.2 else -1.0


def _published_number(text: str, gold: str) -> bool:
    match = _PUBLISHED_NUMBER.search(text)
    try:
        return match is not None and float(match[1].strip()) == float(gold.strip())
    except ValueError:
        return False
