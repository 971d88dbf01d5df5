"""LaTeX answers as text: one spelling for answers that read the same, and the answers that math-verify may compare."""

import re
from itertools import accumulate

from slimrl.tasks.units import changes_meaning

NAME = (
    r"(?:\\text\s*\{[A-Za-z ]{1,40}\}|\\(?:overline|overrightarrow|vec|hat)\s*\{[A-Za-z]{1,3}\}|\\(?:angle|triangle)\s*[A-Z]{1,3}"
    r"|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|rho|sigma|phi|omega)(?![A-Za-z])|[A-Za-z]{1,4})"
    r"(?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,4}\}))?(?:\([a-z0-9]{1,3}\))?"
)
"""A name of an answer: x, x_1, a_{37}, f(x), AB, \\angle ABC, \\theta, \\text{area}."""
TEXT = r"\\(?:text|mbox|textbf|mathrm|textrm|textit|mathbf)"  # commands whose argument is running text

_SPACE = r"(?:\s|~|\\[,;: ]|\\q?quad(?![A-Za-z]))"
_MARKS = re.compile(
    r"_\{?[0-9]+|\\(?:approx|sim|simeq|cong|ne|not|dots|boxed|fbox|tag|label|\w*phantom|\w*cancel)(?![A-Za-z])|\.\.\."
    r"|\^\{?(?:T|\\top|\\intercal)(?![A-Za-z])|(?<=[\])}])'+"
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_NUMBERED = re.compile(r"\\(?:text|math|mbox)[a-z]*\s*\{[^{}]*[0-9][^{}]*\}")
_PRIME = re.compile(r"\^\s*(?:\\prime(?![A-Za-z])|\{\s*(?:\\prime|')\s*\})|\u2019|\u2032")
_LETTERS = re.compile(r"(?:[A-Za-z](?:_?[0-9]+)?)+")
# Answers that people write in either letter case. All other names are what their letters say: AB is not ab.
_WORDS = """
yes no true none all both even odd east west up down left red blue sum mean mode max min on in at am pm
one two six ten sun mon tue wed thu fri sat jan feb mar apr may jun jul aug sep oct nov dec
"""
_SHORT_WORDS = frozenset(_WORDS.split())


def unwrapped(latex: str) -> str:
    """An answer without the bold type, the math delimiters or the box around the whole of it."""
    plain = latex
    for _ in range(4):
        plain = re.sub(rf"^(?:{_SPACE}|\\displaystyle(?![A-Za-z]))+|{_SPACE}+$", "", plain)
        for opening, closing in (("**", "**"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            inside = plain.removeprefix(opening).removesuffix(closing)
            if len(plain) - len(inside) == 2 * len(opening) and opening not in inside and closing not in inside:
                plain = inside
        box = re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.+)\}", plain, re.DOTALL)
        plain = box[1] if box and _balanced(box[1]) else plain
    return plain


def _balanced(latex: str) -> bool:
    depths = list(accumulate(1 if brace == "{" else -1 for brace in re.findall(r"(?<!\\)[{}]", latex)))
    return not depths or (min(depths) >= 0 and depths[-1] == 0)


def normalise(text: str) -> str:
    """LaTeX that reads the same, spelt the same: delimiters, spacing, \\dfrac, text commands, letter case of words."""
    plain = text.strip().strip("$").strip().rstrip(".")
    plain = re.sub(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\!", "", plain)
    plain = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", "", plain)
    plain = re.sub(r"\\[,;: ]|~", " ", plain)
    plain = re.sub(r"\\neq(?![A-Za-z])", r"\\ne", re.sub(r"\\[lc]dots(?![A-Za-z])", r"\\dots", plain))
    plain = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", plain)
    plain = re.sub(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}|\u2205", r"\\emptyset", plain)
    plain = re.sub(r"\\(?:leq|leqslant)(?![A-Za-z])|<=|\u2264", r"\\le", plain)
    plain = re.sub(r"\\(?:geq|geqslant)(?![A-Za-z])|>=|\u2265", r"\\ge", plain)
    plain = re.sub(r"\\lt(?![A-Za-z])", "<", re.sub(r"\\gt(?![A-Za-z])", ">", plain))
    plain = re.sub(rf"{TEXT}\s*\{{([^{{}}]*)\}}", r"\1", plain)
    plain = re.sub(r"_\{([0-9])\}", r"_\1", plain)
    plain = _PRIME.sub("'", re.sub(r"\\(?:colon|ratio)(?![A-Za-z])", ":", plain))
    # a gap between digits is kept: 1 8 is not 18
    plain = re.sub(r"(?<![0-9])\s+|\s+(?![0-9\s])", "", plain)
    if re.fullmatch(r"\([A-Za-z]\)", plain):
        plain = plain[1]
    return plain.casefold() if re.fullmatch(r"[A-Za-z]{2,}", plain) and _is_word(plain) else plain


def plausible(guess: str, gold: str) -> bool:
    """True if math-verify may compare the guess.

    math-verify adds adjacent numbers, takes the last of several equations, and ignores words, bases of numbers, dots and
    all that follows a box. It multiplies adjacent letters, so that their order and case are lost, and reads a colon as a
    division. In each case it would accept a text that is not the answer.
    """
    plain = normalise(guess)
    spaced = re.sub(r"\\log_\s*[0-9]", r"\\log", re.sub(r"\\[,;: ]|~", " ", guess))
    if re.search(r"[0-9]\s+[0-9]", spaced) or re.search(r"(?<![A-Za-z])(?:or|and)(?![A-Za-z])|\\(?:vee|lor)", spaced):
        return False
    name, equals, _ = plain.rpartition("=")
    if equals and ("=" in name or ("=" not in gold and not re.fullmatch(NAME, name))):
        return False
    if ":" in guess.replace("\\:", "") and ":" not in gold:
        return False
    said = changes_meaning(re.sub(r"\\[A-Za-z]+", " ", guess)) - changes_meaning(gold)
    products = [sorted(run) for run in re.findall("[a-z]+", gold)]
    if any(sorted(word) not in products for word in said):
        return False
    numbered = set(_NUMBERED.findall(guess)) <= set(_NUMBERED.findall(gold))
    return numbered and marks(guess) == marks(gold) and _same_letters(guess, gold)


def marks(latex: str) -> list[str]:
    """Signs that math-verify ignores although the answer depends on them: bases, relations, dots, and commands that hide others.

    The degrees of an angle whose sine is taken are among them; the base of a logarithm, which it reads, is not.
    """
    plain = normalise(re.sub(r"(\\[A-Za-z]+)\s+(?=[A-Za-z])", r"\1{}", latex))
    plain = re.sub(r"\\log_(?:\{[^{}]*\}|[0-9])", r"\\log", plain)
    degrees = re.findall(r"\\(?:circ|degree)(?![A-Za-z])", plain) if _TRIGONOMETRY.search(plain) else []
    return sorted([*degrees, *(mark.replace("{", "") for mark in _MARKS.findall(plain))])


def _is_word(letters: str) -> bool:
    """Five letters or more, a known short word, or a short one that is not written in capitals, as Bob."""
    return len(letters) > 4 or letters.lower() in _SHORT_WORDS or (len(letters) > 2 and letters[1:].islower())


def _same_letters(guess: str, gold: str) -> bool:
    """The names in both are the same, letter by letter, and no letter changes its case between them."""
    if all(re.fullmatch(r"[A-Za-z]+", normalise(latex)) for latex in (guess, gold)):
        mine, theirs = (re.sub(r"[\s$]", "", latex) for latex in (guess, gold))
        # two or three lower-case letters that are no word are variables, which commute
        products = all(re.fullmatch(r"[a-z]{2,3}", text) and text not in _SHORT_WORDS for text in (mine, theirs))
        return products and sorted(mine) == sorted(theirs)
    here, there = _bare(guess), _bare(gold)
    if ("=" in here) != ("=" in there):
        here, there = here.rpartition("=")[2], there.rpartition("=")[2]
    primed = [sorted(re.findall(r"[A-Za-z]'+", text)) for text in (here, there)]  # math-verify drops primes
    if _names(here) != _names(there) or primed[0] != primed[1]:
        return False
    used = [set(re.findall("[A-Za-z]", text)) for text in (here, there)]
    return not any(letter.swapcase() in used[1] and letter not in used[1] for letter in used[0])


def _bare(latex: str) -> str:
    """The letters that are not those of commands or of running text."""
    plain = _PRIME.sub("'", re.sub(rf"{TEXT}\s*\{{[^{{}}]*\}}", "", latex))
    plain = re.sub(r"_\s*\{\s*([A-Za-z0-9]+)\s*\}", r"_\1", re.sub(r"\\[A-Za-z]+", "|", plain))
    return re.sub(r"[\s\\]", "", plain.replace("{", "|").replace("}", "|"))


def _names(bare: str) -> list[str]:
    """Letters in a row with a capital among them, such as BCA and H_2O, and letters before a digit, such as A5."""
    runs = ((run, re.sub("[0-9_]", "", run)) for run in _LETTERS.findall(bare))
    names = [run for run, word in runs if re.search("[A-Za-z][0-9]", run) or (len(word) > 1 and not word.islower())]
    return sorted(name.replace("_", "") for name in names)
