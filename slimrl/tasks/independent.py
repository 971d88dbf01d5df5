"""A second verdict on the same text, which shares no code with the strict one.

A policy that is paid by a checker learns what that checker accepts. Where the strict verdict is right and this one is wrong,
somebody should read the completion: the form may hide another answer, or a text goes on behind it. It reads the end of the
text and no form, and gives no verdict (None) where a reader of its simple kind could be mistaken.
"""

import re
from decimal import Decimal
from fractions import Fraction

from slimrl.records import right_answers
from slimrl.terms import Checker

_SIGN = r"(?:(?<![\w)\]}])[-\u2212])?"
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_FRACTION = rf"\\[dt]?frac\s*{{\s*[-\u2212]?\d+\s*}}\s*{{\s*\d+\s*}}|{_WHOLE}\s*/\s*\d+"
_DECIMAL = rf"{_WHOLE}?\.\d+|{_WHOLE}"
_NUMBER = re.compile(rf"{_SIGN}\$?(?<![\w.,^])(?:\d+\s+\d+/\d+|{_FRACTION}|{_DECIMAL})(?:\s*\\?%)?")
_DOUBTFUL = re.compile(
    r"(?i)\b(?:tens?|dozen|score|gross|hundred|thousand|grand|lakh|million|crore|billion|trillion|cent|minus|negative)s?\b|[¢^×⁰¹²³⁴-⁹]"
    r"|\d(?:[\s{}!\\]|\\?,)+\d|\de[-+]?\d|[\d.]\(|(?:^|[^\w)\s=])\s*(?:-\s+|\u2013\s*)\d|\\(?:times|cdot|sqrt|pi|overline|bar|dot|d?cfrac|frac)"
)
"""Writing near the last number with which this reader could be mistaken."""
_NEAR = 24
"""Characters before a number, on its line, that are looked at."""
_LONGEST = 400
"""Characters at the end of a text that are read."""


def verdict(checker: Checker, text: str, answer: str) -> bool | None:
    """True if the end of a completion's text says a right answer, False if it says another one or none; else None.

    Numbers are the last one of the text; words are the end of its last line; an option is the first capital letter that
    stands alone on its last line. Patterns and LaTeX that is no plain number have no second reader.
    """
    verdicts = {_one(checker, text.strip()[-_LONGEST:], gold) for gold in right_answers(answer)}
    return True if True in verdicts else None if None in verdicts else False


def _one(checker: Checker, end: str, gold: str) -> bool | None:
    match checker:
        case "numeric" | "symbolic":
            return _same_number(end, gold, boxed=checker == "symbolic")
        case "exact":
            said, wanted = _words(_last_line(end)), _words(gold)
            return said[-len(wanted) :] == wanted if wanted else None
        case "choice":
            said, wanted = _options(_last_line(end)), _options(gold)
            return said[:1] == wanted[:1] if wanted else None
    return None


def _same_number(end: str, gold: str, *, boxed: bool) -> bool | None:
    """The verdict on the last number of a text; None unless the gold answer is a plain number itself."""
    end = re.sub(r"[_*]+", " ", end)  # of Markdown
    whole = _NUMBER.fullmatch(gold.strip().strip("$ "))
    wanted = _value(whole[0]) if whole else None
    if wanted is None:
        return None
    if boxed:  # an expression may equal the number, and this reader cannot tell
        _, box, inside = end.rpartition("\\boxed")
        if not box:
            return None
        if not _NUMBER.fullmatch(re.sub(r"^\{|\}[^}]*$", "", inside.strip()).strip().strip("$ ")):
            return None
    found = [*_NUMBER.finditer(end)]
    if not found:
        return False
    *_, last = found
    if ("%" in last[0]) != ("%" in gold):
        return None
    if _value(last[0]) == wanted:
        return True
    line = end.rindex("\n", 0, last.start()) + 1 if "\n" in end[: last.start()] else 0
    return None if _DOUBTFUL.search(end[max(line, last.start() - _NEAR) :]) else False


def _value(number: str) -> Fraction | None:
    """The value of what `_NUMBER` matched; None for a fraction over zero."""
    plain = re.sub(r"[,$%\s\\]+(?=\D|$)|[,$]", "", number.replace("\u2212", "-")).strip()
    sign = -1 if plain.startswith("-") else 1
    parts = [Fraction(Decimal(part)) for part in re.findall(r"\d*\.\d+|\d+", plain)]
    if len(parts) == 1:
        return sign * parts[0]
    if parts[-1] == 0:
        return None
    above = sum(parts[:-2], Fraction(0))
    inner = -1 if "{-" in plain else 1
    return sign * (above + inner * parts[-2] / parts[-1])


def _last_line(text: str) -> str:
    return text.rpartition("\n")[2]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", re.sub(r"</?\w+>", " ", text).casefold())


def _options(text: str) -> list[str]:
    """Letters that stand alone, but for the words `a` and `I`: capitals where there are any."""
    alone = re.findall(r"(?<![\w'’])(?:[B-HJ-Zb-hj-z]|[AIai](?!\s+[a-z]))(?![\w'’])", text)
    return [letter for letter in alone if letter.isupper()] or [letter.upper() for letter in alone]
