"""Answers that are more than one number or expression, taken to pieces: times, ratios, choices, lists, intervals.

Each reader returns the pieces, or nothing (`None`, an empty tuple) if the answer is not of its form.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from slimrl.tasks.latex import NAME, TEXT, normalise
from slimrl.tasks.numbers import parse_number
from slimrl.tasks.units import changes_meaning

MAX_PARTS = 12  # parts of a list; a longer one is left to math-verify whole
MAX_ASKED = 4
"""Parts of a list whose spelling differs from all of the gold answer's; more are left to math-verify whole."""

_CLOCK = re.compile(
    r"(?P<hour>[01]?[0-9]|2[0-4])(?::(?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9]))?)?"
    r"(?P<half>a\.?m\.?|p\.?m\.?|noon|midnight)?(?:hours|hrs?|h|o'clock)?\.?",
    re.IGNORECASE,
)
_OR, _AND = (
    re.compile(
        rf"\\(?:text|mbox|mathrm)\s*\{{\s*{word}\s*\}}|(?<![A-Za-z\\]){word}(?![A-Za-z])|\\(?:{signs})(?![A-Za-z])"
    )
    for word, signs in (("or", "vee|lor"), ("and", "wedge|land"))
)


@dataclass(frozen=True)
class Clock:
    """A time of day."""

    hour: int
    """As written: 1 to 12 if the half of the day is given, 0 to 24 otherwise."""
    minute: int
    second: int
    half: str
    """`a`, `p`, or empty if it is not given."""

    def agrees(self, gold: "Clock") -> bool:
        """True if this is the time of the gold answer; a time without a half of the day is on the 24-hour clock.

        If the gold answer leaves the half open, as 3:30 does, the guess may add either.
        """
        if (self.minute, self.second) != (gold.minute, gold.second):
            return False
        if self.half and not gold.half and 1 <= gold.hour <= 12:
            return self.hour % 12 == gold.hour % 12
        return self._hour_of_day() == gold._hour_of_day()

    def _hour_of_day(self) -> int:
        return self.hour % 12 + 12 * (self.half == "p") if self.half else self.hour % 24


def clock(latex: str) -> Clock | None:
    """The time of day that an answer states: `3:30`, `9:45 \\text{ a.m.}`, `15:00:20`, `3 p.m.`; `4:6` and `45:30` are ratios."""
    match = _CLOCK.fullmatch(re.sub(r"[\s{}$]", "", normalise(latex)))
    if match is None or not (match["minute"] or match["half"]):
        return None
    half = {"n": "p", "m": "a"}.get((match["half"] or " ")[0].lower(), (match["half"] or "")[:1].lower())
    hour = int(match["hour"])
    if half and not 1 <= hour <= 12:
        half = "" if (half == "p") == (hour >= 12) else "?"  # 15:30 p.m. says one thing twice, 15:30 a.m. two things
    return None if half == "?" else Clock(hour, int(match["minute"] or 0), int(match["second"] or 0), half)


def ratio(latex: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names, terms) of a ratio: `V_1:V_2=11:21` has both, `2:3:5` only terms; two empty tuples for anything else."""
    plain = re.sub(r"\\(?:colon|ratio)(?![A-Za-z])", ":", latex.replace("\\:", " ").strip().strip("$"))
    plain = re.sub(r"(?<=[0-9}])\s*(?:\\text\s*\{\s*to\s*\}|\sto\s)\s*(?=[\\0-9])", ":", plain)
    if len(parts(plain, alternatives=True)) > 1:
        return (), ()  # several times or ratios
    left, equals, right = plain.rpartition("=")
    terms = tuple(_split(right, ":"))
    names = tuple(normalise(name) for name in _split(left, ":")) if equals else ()
    if len(terms) < 2 or not all(terms) or "=" in left or "|" in plain or re.search(r"[<>]|\\(?:le|ge|in|\{)", plain):
        return (), ()
    # one name for the whole: the ratio is 2:3
    return (names if len(names) == len(terms) else (), terms) if len(names) in (0, 1, len(terms)) else ((), ())


def in_order(names: Sequence[str], terms: tuple[str, ...], wanted: Sequence[str]) -> tuple[str, ...]:
    """The terms of a named ratio in the order of other names, if both name the same things."""
    if names and wanted and Counter(names) == Counter(wanted) and len(set(names)) == len(names):
        return tuple(terms[names.index(name)] for name in wanted)
    return terms if not names or not wanted or list(names) == list(wanted) else ()


def choice(latex: str) -> str:
    """The letter of a multiple-choice answer: `C`, `(C)`, `\\text{(C)}`, `C.`, `\\textbf{(C) }5`; else empty.

    The text after the letter may describe the choice, but must not hold a second letter or take the choice back.
    """
    plain = re.sub(rf"{TEXT}\s*\{{([^{{}}]*)\}}", r"\1", latex).strip(" $*")
    plain = re.sub(r"\\[,;:! ]|\\q?quad(?![A-Za-z])|~", " ", plain).strip()
    match = re.fullmatch(r"(?:(?i:option|choice)\s+)?(?:(\()\s*)?([A-Z])\s*(?(1)\)|(?:[).:]|\Z))(.*)", plain, re.DOTALL)
    if match is None:
        return ""
    rest = match[3].strip(" .:")
    second = re.search(r"(?<![A-Za-z\\])[A-Z](?![A-Za-z])", rest)
    return "" if second or changes_meaning(re.sub(r"\\[A-Za-z]+", " ", rest)) or len(rest) > 60 else match[2]


def parts(latex: str, *, alternatives: bool) -> list[str]:
    """The elements of a list or set, in order: `1, 2`, `1 \\text{ and } 2`, `\\{1, 2\\}`; a single answer is one element.

    With `alternatives`, "or" separates too. `(x, y) = (1, 2)` reads as `x=1, y=2`.
    """
    plain = latex.strip().strip("$").strip()
    if pair := re.fullmatch(r"(?:\\left)?\(([^()=]+)\)\s*=\s*(\(.*\)|\\left\(.*\\right\))", plain, re.DOTALL):
        names, values = _split(pair[1].removesuffix("\\right"), ","), elements([pair[2]])
        if len(names) == len(values) > 1:
            return [f"{name}={value}" for name, value in zip(names, values, strict=True)]
    braced = re.fullmatch(r"(?:\\left)?\\\{(.*?)(?:\\right)?\\\}", plain, re.DOTALL)
    if braced and "\\{" not in braced[1] and ":" not in braced[1] and "|" not in braced[1]:
        plain = braced[1]
    words = "and|or" if alternatives else "and"
    plain = re.sub(rf"(?:\\text|\\mbox|\\mathrm)\s*\{{\s*,?\s*(?:{words})\s*\}}", ";", plain)
    plain = re.sub(rf"(?<![A-Za-z\\])(?:{words})(?![A-Za-z])", ";", plain)
    plain = re.sub(r"\\[;: ]|\\q?quad(?![A-Za-z])|~", " ", plain)
    plain = re.sub(r"[,;]\s*;", ";", plain)
    found = [element.strip(" $\n\t") for element in _split(plain, ",;")]
    return found if all(found) else [latex]


def elements(pieces: Sequence[str]) -> list[str]:
    """The coordinates of a single point `(1, 2)`; other pieces unchanged."""
    point = re.fullmatch(r"(?:\\left)?\((.*?)(?:\\right)?\)", pieces[0].strip(), re.DOTALL)
    return _split(point[1], ",") if point and len(pieces) == 1 else list(pieces)


def named(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """(name, value) of every piece, if each has both; otherwise empty."""
    found = []
    for piece in pieces:
        name, equals, value = piece.partition("=")
        if not equals or "=" in value or not re.fullmatch(NAME, name.strip()) or not value.strip():
            return []
        found.append((re.sub(r"[\s{}]", "", name), value.strip()))
    return found


def interval(latex: str) -> tuple[str, str, bool]:
    """(variable, set in LaTeX, whether it was written as inequalities); the set is empty if it is no set of reals.

    `-2 \\le x < 7` is x and `[-2,7)`, `x \\in (3,\\infty)` is x and `(3,\\infty)`; "or" and a comma join inequalities,
    "and" makes one of the two sides of an interval. `\\{x : x > 3\\}` is read as `x > 3`.
    """
    plain = latex.strip().strip("$").strip()
    plain = re.sub(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\!", "", plain)
    plain = _OR.sub(";", plain)
    plain = re.sub(r"\\(?:leqslant|leq|le)(?![A-Za-z])|<=|\u2264", " <= ", plain)
    plain = re.sub(r"\\(?:geqslant|geq|ge)(?![A-Za-z])|>=|\u2265", " >= ", plain)
    plain = re.sub(r"\\lt(?![A-Za-z])", " < ", re.sub(r"\\gt(?![A-Za-z])", " > ", plain))
    real = r"(?:\s*\\in\s*\\mathbb\s*\{?R\}?)?"
    if such_that := re.fullmatch(rf"\\\{{\s*{NAME}{real}\s*(?:\\mid(?![A-Za-z])|\||:)(.+)\\\}}", plain, re.DOTALL):
        plain = such_that[1].strip()
    if member := re.fullmatch(rf"({NAME})\s*\\in\s*(.+)", plain, re.DOTALL):
        variable, plain = normalise(member[1]), member[2]
        return (variable, plain, False) if _is_set(plain) else ("", "", False)
    if _is_set(plain):
        return "", plain, False
    plain = _AND.sub("&", plain)
    pieces = [_both_sides(piece.strip()) for piece in _split(plain, ",;")]
    # all numbers are one or the other of x > -1, x < 1, so that it cannot mean "or"
    if ";" not in plain and len(pieces) == 2 and _overlap(both := _both_sides(plain.replace(",", "&"))[1]):
        pieces = [(pieces[0][0], both)]
    variables = {variable for variable, _ in pieces}
    if len(variables) != 1 or not all(piece for _, piece in pieces):
        return "", "", False
    return variables.pop(), "\\cup".join(piece for _, piece in pieces), True


def _is_set(latex: str) -> bool:
    """Intervals joined by \\cup, of which each has a bracket at either end and two ends."""
    pieces = re.split(r"\\cup(?![A-Za-z])", latex)
    inside = [re.fullmatch(r"\s*[\[(](.*)[\])]\s*", piece, re.DOTALL) for piece in pieces]
    return all(match and len(_split(match[1], ",")) == 2 for match in inside)


def _both_sides(inequality: str) -> tuple[str, str]:
    """As `_piece`, also for `x > a & x < b`, in either order, which is `a < x < b`."""
    if "&" not in inequality:
        return _piece(inequality)
    sides = [_piece(side.strip()) for side in inequality.split("&")]
    low = [(name, piece) for name, piece in sides if piece.endswith(",\\infty)")]
    high = [(name, piece) for name, piece in sides if piece.startswith("(-\\infty,")]
    if len(sides) != 2 or len(low) != 1 or len(high) != 1 or low[0][0] != high[0][0]:
        return "", ""
    return low[0][0], low[0][1].removesuffix("\\infty)") + high[0][1].removeprefix("(-\\infty,")


def _overlap(interval: str) -> bool:
    """The ends of an interval are two numbers, of which the second is the larger one."""
    ends = [parse_number(end, words=False) for end in interval[1:-1].split(",")]
    return len(ends) == 2 and ends[0] is not None and ends[1] is not None and ends[0] < ends[1]


def _piece(inequality: str) -> tuple[str, str]:
    """(variable, interval) of `a < x <= b`, `x < a` or `a < x`; two empty texts for anything else."""
    tokens = [token.strip() for token in re.split(r"(<=|>=|<|>)", inequality)]
    names = [token for token in tokens[::2] if re.fullmatch(NAME, token) and not token.startswith("\\infty")]
    variable = names[0] if names else ""
    if not variable or not all(tokens) or len(tokens) not in (3, 5) or len({token[0] for token in tokens[1::2]}) != 1:
        return "", ""
    if tokens[1][0] == ">":
        tokens = [token.replace(">", "<") for token in reversed(tokens)]
    if len(tokens) == 3:
        tokens = ["-\\infty", "<", *tokens] if tokens[0] == variable else [*tokens, "<", "\\infty"]
    low, first, middle, last, high = tokens
    piece = f"{'[' if first == '<=' else '('}{low},{high}{']' if last == '<=' else ')'}"
    return (variable, piece) if middle == variable else ("", "")


def _split(latex: str, separators: str) -> list[str]:
    """The text between separators that no bracket encloses; a comma inside of 1,080 or {,} separates nothing."""
    plain = latex.replace("{,}", "\0")
    plain = re.sub(r",\s*\\!\s*(?=[0-9]{3}(?![0-9]))", "\0", plain)
    found, depth, start = [], 0, 0
    for i, character in enumerate(plain):
        depth += (character in "([{") - (character in ")]}")
        if character in separators and depth <= 0 and plain[max(0, i - 1)] != "\\":
            found.append(plain[start:i])
            start = i + 1
    return [element.replace("\0", ",").strip() for element in [*found, plain[start:]]]
