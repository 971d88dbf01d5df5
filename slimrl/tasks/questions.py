"""Equal questions, and the held-out questions of a file: both depend on what a question asks, not on its spelling."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from slimrl.records import Problem

HELD_OUT = 0.1  # share of a file's questions that is held out, in expectation, if no held-out file is given
SPLIT = b"slimrl held out\n"
"""Keeps the split apart from other hashes of the same text; another word would be another split of every file."""
FOLDED = {
    "<wide>", "<narrow>", "<noBreak>", "<compat>", "<font>", "<small>", "<initial>", "<medial>", "<final>", "<isolated>",
}  # fmt: skip
"""Unicode's ways to write a character that change no meaning; superscripts, subscripts and fractions do."""
SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),  # hyphens, the en dash and the minus sign
        **dict.fromkeys("\u00d7\u2217\u22c5\u00b7", "*"),
        **dict.fromkeys("\u00f7\u2215\u2044", "/"),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a", '"'),
        **dict.fromkeys("\u2014\u2015", "\u2014"),
    }
)
"""One character for each sign that is written in several ways."""
ELIDED = re.compile(r"(?<=[^\W\d])'(?=(?:s|t|re|ve|ll|d|m)\b)", re.IGNORECASE)
"""The apostrophe of don't and Mia's, but not the prime of f'(x)."""
DELIMITERS = re.compile(
    r"""
    (?<!\\)(?P<dollars>\${1,2})(?=[^\s$])(?P<formula>[^$]*[^\s$\\])(?P=dollars)(?![\d$])   # $3+1$, but $5 and $6
  | (?<![\w)\]*])(?P<mark>\*\*|__)(?=[^\s*_])(?P<strong>.*?[^\s*_])(?P=mark)(?![\w(*])  # **Tom**, but x**2
  | (?<!\\)\\[()\[\]]                                                                # \(3+1\)
    """,
    re.VERBOSE | re.DOTALL,
)
"""Marks of formulas and of Markdown; the text between them is kept."""
THOUSANDS = re.compile(r"(?<![\w.,(\[{])[1-9]\d{0,2}(?:,\d{3})+(?![\d)\]}]|,\d)")
"""1,080 and 1,080.5, but neither 1,08 nor 1, 080, and not the pair (1,080)."""
OPERATOR = re.compile(
    r"""
    (?: (?<=[\w)\]}])\s*([!<>=]=|\*\*|[+*/=<>^\u2264\u2265\u2260])
      | (?:(?<=[\d)\]}])|(?<=\b[^\W\d]))\s*(-)     # not that of "is -ab"
    )\s*(?=[\w(\[{\\.?+-]|$)
    """,
    re.VERBOSE,
)
"""An operator between its operands, with the blanks around it."""
PUNCTUATION = re.compile(
    r"""
    [?;`\u00bf\u00a1\u3001\u3002\u300c\u300d]
  | (?<!\d)[,:] | [,:](?!\d)            # but 1,080 and 3:30
  | (?<!\.)\.(?![\d.])                  # a full stop, but 1.5 and .5
  | (?<=[^\W\d])\.{2,}(?=\s+[^\W\d]{2}|\s*$)  # dots after a word, but 1, 2, ..., 10
  | (?<![\d)\]}!])(?<!\b[^\W\d])!+(?![=\w(])  # but 5!, n! and !=
  | (?<!\d)"                            # but 5" of length
  | (?<![\w)\]'])'                      # an opening quote
  | (?<=[a-z]{2})'(?![\w('])            # a closing one, but f'(x) and A'B'
  | (?<=[^\W\d]{2})(?:-|\s*\u2014\s*)(?=[^\W\d]{2})  # a hyphen or a dash between words
    """,
    re.VERBOSE,
)
"""Punctuation that carries no meaning: signs of sentences and quotes, and none of numbers, operators and brackets."""


def asked(problem: Problem) -> str:
    """All that a problem asks: the question, and the turns before it."""
    return "\n".join(content for role, content in problem.turns if role != "system") or problem.question


def normalized(question: str) -> str:
    """A question without differences that mean nothing to a reader.

    Case, white space, sentence punctuation, quotes, Unicode's ways to write a letter, marks of formulas and Markdown, blanks
    around operators and commas between thousands are removed; digits, decimal points, signs and operators stay.
    """
    text = question if question.isascii() else _plain(question)
    text = DELIMITERS.sub(lambda found: found["formula"] or found["strong"] or "", text)
    text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text.replace("{,}", ","))
    text = OPERATOR.sub(lambda found: found[1] or found[2], text)
    bare = PUNCTUATION.sub(" ", ELIDED.sub("", text)).replace("\u2014", "-")
    return " ".join((bare if bare.strip() else text).casefold().split())


def _plain(text: str) -> str:
    kept = (
        unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c).partition(" ")[0] in FOLDED else c
        for c in unicodedata.normalize("NFC", text)
        if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f"  # invisible
    )
    return unicodedata.normalize("NFC", "".join(kept).translate(SIGNS))


def place(question: str) -> float:
    """A number in [0, 1] for a normalized question: uniform, and a function of the question alone."""
    digest = hashlib.sha256(SPLIT + question.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def held_out(questions: Iterable[str]) -> list[str]:
    """The held-out ones of different normalized questions: those whose `place` is below `HELD_OUT`, in its order.

    So a question stays on its side when others are added or removed, and the first held-out questions of a sorted file are
    no easier than the last. One exception: if a side would be empty (one file in eight of those with 20 questions, one in
    40,000 of those with 100), the question nearest to it changes sides. A single question is never held out.
    """
    ordered = sorted(questions, key=lambda question: (place(question), question))
    below = sum(place(question) < HELD_OUT for question in ordered)
    return ordered[: min(max(below, 1), len(ordered) - 1)] if ordered else []
