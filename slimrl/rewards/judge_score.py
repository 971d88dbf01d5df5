"""The score in a judge's reply, or the reason why it holds none that is beyond doubt."""

import re
from typing import Any

from slimrl.config.judge import SCORE

SECONDS = 1.0
"""Time that a pattern may take for one reply; some patterns take for ever on some texts."""
NONE = "found no score in its judge's reply"
DOUBTFUL = "was given what may be a share, a range or the end of a scale instead of a score by its judge"
SEVERAL = "was given several different scores by its judge"
_MARKS = " \t\r\"'*_`#>{}()[].-"
"""Around a score that is a line by itself."""
_FIRST = re.compile(r"(?:final|overall|total|my)\s+(?=score)", re.IGNORECASE)
_BOUND = re.compile(
    r"\b(?:max(?:imum|imal)?|min(?:imum|imal)?|highest|lowest|best|top|full|perfect|possible|passing)"
    r"[\s\"'*_.]*(?:(?:possible|attainable)\s+)?$",
    re.IGNORECASE,
)
"""Before a number that is the end of a scale."""
_SHARE_OR_RANGE = re.compile(
    r"[\s\"'*_)\]\\]*(?:%|per\s?cent\b|[,;(]?\s*(?:to|or)\b|[±~+]|(?:[-–—,;:…]|\.{2,}|and\b|through\b)\s*-?\d)",
    re.IGNORECASE,
)
"""Behind a number that is only a part of what is said."""
_OUT_OF = re.compile(r"[\s\"'*_)\]]*(?:/|(?:out\s+)?of\s)[\s\"'*_(\[]*(-?\d+(?:\.\d+)?)", re.IGNORECASE)


def score_in(reply: str, pattern: Any, high: float) -> float | str:
    """The score that a compiled pattern finds, or the reason why there is none; raises TimeoutError after SECONDS.

    With the default pattern, a last line that is a score and nothing else counts. Without one, all scores must be equal, and
    none may be a percentage, a range, the end of a scale or out of another number than `high`. With any other pattern the last
    match counts.
    """
    if pattern.pattern != SCORE:
        found = pattern.findall(reply, timeout=SECONDS)
        try:
            return float(found[-1])
        except (IndexError, ValueError):
            return NONE
    last = next((line for line in reversed(reply.splitlines()) if line.strip(_MARKS)), "").strip(_MARKS)
    last = _FIRST.sub("", last, count=1) if _FIRST.match(last) else last
    alone = pattern.match(last, timeout=SECONDS)
    if alone and not _doubtful(last, alone, high) and _rest(last, alone) == "":
        return float(alone[1])
    scores = set()
    for match in pattern.finditer(reply, timeout=SECONDS):
        if _doubtful(reply, match, high):
            return DOUBTFUL
        scores.add(float(match[1]))
    return NONE if not scores else SEVERAL if len(scores) > 1 else scores.pop()


def _doubtful(text: str, match: Any, high: float) -> bool:
    """True where the number of a match may be something else than the score."""
    if _BOUND.search(text[max(0, match.start() - 60) : match.start()]) or _SHARE_OR_RANGE.match(text, match.end()):
        return True
    of = _OUT_OF.match(text, match.end())
    return of is not None and (float(of[1]) != high or bool(_SHARE_OR_RANGE.match(text, of.end())))


def _rest(text: str, match: Any) -> str:
    """The text behind a score and the number that it is out of."""
    of = _OUT_OF.match(text, match.end())
    return text[of.end() if of else match.end() :].strip(_MARKS)
