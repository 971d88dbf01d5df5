"""Numbers as people and models write them, read exactly.

Everything here is ASCII-only on purpose (digits of other scripts are not numbers), takes time linear in the text, and
refuses absurd sizes before computing anything.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_LENGTH = 120
"""Characters of a text that is to be one number; a longer one is none."""
MAX_EXPONENT = 100
"""Largest power of ten that `1e3` notation may name."""

# 1,080 is well formed, 1,08 and 0,080 are not.
_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"
_CURRENCY = r"(?:(?:US|CA|AU)?\$|[€£¥₹]|USD\ |EUR\ |GBP\ |Rs\.?\ )"
_SIGNS = "$€£¥₹¢%°"
_WHOLE_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\ ?(?P<currency>{_CURRENCY}?)\ ?(?P<inner_sign>[+-]?)"
    rf"(?:(?:(?P<whole>{_INTEGER})\ +)?(?P<numerator>{_INTEGER})\ ?/\ ?(?P<denominator>{_INTEGER})"
    rf"|(?P<decimal>{_INTEGER}(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE](?P<exponent>[+-]?[0-9]{{1,4}})(?![0-9.]))?)"
    rf"(?P<unit>[^0-9]*(?:\^\{{?[23]\}}?[^0-9]*)?)",
    re.VERBOSE,
)
_IN_TEXT = re.compile(
    rf"(?<![A-Za-z0-9_.^])(?<!\^\{{)(?P<sign>(?<![)\]}}])-)?{_CURRENCY}?(?P<inner_sign>-)?"
    rf"(?P<number>(?:{_INTEGER}\ )?{_INTEGER}/{_INTEGER}"
    rf"|(?:{_INTEGER}(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9A-Za-z]))?)(?P<percent>\ ?%)?"
    r"(?P<magnitude>\ (?:hundred|thousand|million|billion|trillion)(?![A-Za-z]))?",
    re.VERBOSE,
)
_WORD = r"[A-Za-zµΩ°]+(?:['’][a-z]+)?\.?(?:\^\{?[23]\}?|[²³])?"
_WORDS = rf"{_WORD}(?:(?:\ |-|\ ?/\ ?){_WORD}){{0,6}}"
_UNIT = re.compile(rf"(?:[{_SIGNS}]|(?:/\ ?)?{_WORDS}(?:\ ?\({_WORDS}\))?|\({_WORDS}\))?\.?")

_MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# A unit that holds one of these is no unit: it names a second answer, takes the first back, or changes its value.
_NO_UNIT_WORDS = """
or and nor but not to vs then than either maybe perhaps versus plus minus times divided over squared cubed factorial
half halves third thirds fifth fifths sixth sixths eighth eighths tenth tenths pi sqrt log ln exp sin cos tan mod choose
infinity zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
if unless otherwise except alternatively wrong incorrect false untrue invalid never guess lie nan null none unknown
negative twice thrice hundredth hundredths thousandth thousandths bn mn bln mln tn
"""
_NO_UNITS = frozenset(_NO_UNIT_WORDS.split())
_VARIABLES = frozenset("abeijknqrtuvwxyz")
"""Letters that make algebra of the number before them; the others are units, as in 18 m. M is no metre but a million."""

_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?[0-9,]{1,40})\s*\}|([0-9]))\s*(?:\{\s*([0-9,]{1,40})\s*\}|([0-9]))")
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|textit)\s*\{([^{}]*)\}")


def parse_number(text: str, *, words: bool = True) -> Fraction | None:
    """The number that `text` *is*, exactly; None where it is not one number with at most a unit behind it.

    Read: `1,080`, `10,\\!080`, `-5`, `−5`, `.5`, `2/3`, `1 1/2`, `\\frac{2}{3}`, `1e3`, `$18.50`, `18 eggs`,
    `9 (apples)`, `5 million`, `**18**`, `$18$`, `18.`. Not read: lists and alternatives (`12 or 18`), sums, equations,
    `1/0`, digits of other scripts, malformed thousands (`1,08`).

    A percent sign is a unit, as in the data sets, which ask "what percent" and write 50: `50%` equals `50`, not `0.5`.
    With `words=False` only signs count as units (%, °, currency, LaTeX text), since `2k` is an expression in algebra.
    """
    if len(text) > MAX_LENGTH:
        return None
    match = _WHOLE_NUMBER.fullmatch(_plain(text, keep_text=words))
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    factor = _unit_factor(match["unit"].strip(), bool(match["currency"]), words)
    value = None if factor is None else _value(match)
    if value is None or factor is None:
        return None
    return -value * factor if "-" in (match["sign"], match["inner_sign"]) else value * factor


def same_number(left: str, right: str) -> bool:
    """Both are numbers, and the same one exactly."""
    first = parse_number(left)
    return first is not None and first == parse_number(right)


def numbers(text: str) -> list[str]:
    """Every number in running text, in order, each spelt so that `parse_number` reads it.

    A minus counts as a sign unless something stands right before it (`10-5` holds 10 and 5); exponents of units (`m^2`)
    and digits inside words (`H2O`) are no numbers.
    """
    found = []
    for match in _IN_TEXT.finditer(_plain_latex(text)):
        sign = "-" if match["sign"] or match["inner_sign"] else ""
        found.append(sign + match["number"] + ("%" if match["percent"] else "") + (match["magnitude"] or ""))
    return found


def changes_meaning(text: str) -> set[str]:
    """The words of a text that would name a second answer, take the first back, or change its value."""
    return set(re.findall(r"[a-z]+", text.lower())) & (_NO_UNITS | _MAGNITUDES.keys())


def last_number(text: str) -> str:
    """The last number in running text, the lenient answer; empty where there is none."""
    found = numbers(text)
    return found[-1] if found else ""


def _value(match: re.Match[str]) -> Fraction | None:
    if match["denominator"]:
        denominator = _integer(match["denominator"])
        numerator = _integer(match["numerator"])
        if denominator == 0:
            return None
        if not match["whole"]:
            return Fraction(numerator, denominator)
        # 1 3/2 is a slip or two numbers, not a mixed number
        proper = numerator < denominator
        return _integer(match["whole"]) + Fraction(numerator, denominator) if proper else None
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    return Fraction(match["decimal"].replace(",", "")) * Fraction(10) ** exponent


def _integer(text: str) -> int:
    return int(text.replace(",", ""))


def _unit_factor(unit: str, has_currency: bool, words: bool) -> int | None:
    """What the unit multiplies by (1 for nearly all); None where it is not a unit."""
    if not _UNIT.fullmatch(unit) or (has_currency and unit[:1] in _SIGNS and unit):
        return None
    if not words:
        return 1 if unit.rstrip(".") in ("", *_SIGNS) else None
    if re.fullmatch(r"MM?\.?", unit):
        return None
    factor = 1
    parts = re.findall(r"[A-Za-z]+", unit.lower())
    while parts and parts[0] in _MAGNITUDES:
        factor *= _MAGNITUDES[parts.pop(0)]
    if parts[:1] == ["a"] and len(parts) > 1:  # $5 a day
        del parts[0]
    if parts[-1:] == ["over"] and parts[-2:-1] == ["left"]:  # 18 eggs left over
        del parts[-2:]
    is_no_unit = _NO_UNITS.intersection(parts) or _MAGNITUDES.keys() & set(parts) or _VARIABLES.intersection(parts[:1])
    return None if is_no_unit else factor


def _plain(text: str, *, keep_text: bool) -> str:
    """A short answer without its wrapping: Markdown bold, math delimiters, LaTeX spacing."""
    plain = text.strip()
    for opening, closing in (("**", "**"), ("`", "`"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = plain[len(opening) : -len(closing)]
        if plain.startswith(opening) and plain.endswith(closing) and inside.strip() and opening not in inside:
            plain = inside.strip()
    if not keep_text:
        unit = re.search(r"\\(?:text|mbox|mathrm)\s*\{([^{}0-9]*)\}(?:\^\{?[23]\}?)?\s*$", plain)
        plain = plain[: unit.start()] if unit and not changes_meaning(unit[1]) else plain
    return " ".join(_plain_latex(plain).split())


def _plain_latex(text: str) -> str:
    """LaTeX that only decorates a number as plain characters; the rest of the text as it is."""
    plain = text.replace("\u2212", "-").replace("\u2013", "-") if not text.isascii() else text
    if not text.isascii():
        plain = re.sub("[\u00a0\u2009\u202f]", " ", plain)
    if "\\" not in plain and "{,}" not in plain:
        return plain
    plain = plain.replace("{,}", ",")
    plain = re.sub(r",\s*\\!\s*", ",", plain)
    plain = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ",", plain)
    plain = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", plain)
    plain = re.sub(r"(?<!\s)\s+\^", "^", _TEXT_COMMAND.sub(r" \1 ", plain))
    plain = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree", "°", plain)
    plain = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\!", "", plain)
    plain = re.sub(r"\\[,;: ]|~", " ", plain)
    return re.sub(r"\\([$%])", r"\1", plain)
