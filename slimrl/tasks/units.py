"""Words and signs after a number: units, which change nothing, and magnitudes, which multiply it."""

import re

SIGNS = "$€£¥₹¢%°"
_ORDINALS = ("st", "nd", "rd", "th")

_LARGE_NUMBERS = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "quadrillion": 10**15,
    "quintillion": 10**18, "sextillion": 10**21, "septillion": 10**24, "octillion": 10**27, "nonillion": 10**30,
    "dozen": 12, "lakh": 10**5, "lac": 10**5, "crore": 10**7,
}  # fmt: skip
MAGNITUDES = {f"{word}{plural}": value for word, value in _LARGE_NUMBERS.items() for plural in ("", "s")} | {"tens": 10}
"""Short scale, singular and plural. `pair` and `couple` are missing on purpose: 5 pairs of shoes are counted as 5."""
_LAST_MAGNITUDES = {"grand": 1000, "gross": 144, "score": 20}
"""Magnitudes only if nothing follows: there are grand pianos, gross income and score points too."""

# A unit that holds one of these is no unit: it names a second answer, takes the first back, or changes its value.
_NO_UNIT_WORDS = """
or and nor but not no to vs then than either maybe perhaps possibly probably likely versus plus minus times divided over
squared cubed factorial opposite reciprocal inverse negated double doubled doubles triple tripled triples quadruple
quadrupled halved fold root
half halves third thirds fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth
tenths pi sqrt log ln exp sin cos tan mod modulo remainder choose binary octal hex hexadecimal
infinity zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
if unless otherwise except alternatively wrong incorrect incorrectly false untrue invalid never guess lie nan null none
unknown unsure undefined impossible cannot isn aren wasn weren doesn don didn won nothing nope neither
approx approximately roughly nearly almost circa below
negative twice thrice hundredth hundredths thousandth thousandths millionth millionths billionth billionths
ths rds nds bn mn bln mln tn mil mill mio bil tril googol myriad myriads milliard milliards zillion zillions scores
grosses grands
"""
NO_UNITS = frozenset(_NO_UNIT_WORDS.split())
_VARIABLES = frozenset("abeijknqrtuvwxyz")
"""Letters that make algebra of the number before them; the others are units, as in 18 m. M is no metre but a million."""

_WORD = r"[A-Za-zµΩ°]+(?:['’][a-z]+)?\.?(?:\^\{?[23]\}?|[²³])?"
_WORDS = rf"{_WORD}(?:(?:\ |-|\ ?/\ ?){_WORD}){{0,6}}"
_UNIT = re.compile(rf"(?:[{SIGNS}]|(?:/\ ?)?{_WORDS}(?:\ ?\({_WORDS}\))?|\({_WORDS}\))?\.?")
_LATEX_UNIT = re.compile(
    r"(?:(?:\\[,;: ]|~|\s|\\cdot(?![A-Za-z])|/)*\\(?:text|mbox|mathrm|textrm|rm|operatorname)\s*"
    r"\{[^{}0-9!+*=<>?]{0,60}(?:\^\{?-?[1-4]\}?)?\}(?:\s*\^\s*\{?\s*-?[1-4]\s*\}?)?){1,6}\s*$"
)


def changes_meaning(text: str) -> set[str]:
    """The words of a text that would name a second answer, take the first back, or change its value."""
    return set(re.findall(r"[a-z]+", text.lower())) & (NO_UNITS | MAGNITUDES.keys() | _LAST_MAGNITUDES.keys())


def unit_factor(unit: str, has_currency: bool, words: bool) -> int | None:
    """The factor that the text after a number stands for (1 for nearly all units); None if it is not a unit.

    With `words=False` only signs are units, and the endings of ordinal numbers.
    """
    if not _UNIT.fullmatch(unit) or (has_currency and unit[:1] in SIGNS and unit):
        return None
    if not words:
        return 1 if unit.rstrip(".") in ("", *SIGNS, *_ORDINALS) else None
    if re.fullmatch(r"[MBT]M?\.?", unit):
        return None
    factor = 1
    parts = re.findall(r"[A-Za-z]+", unit.lower())
    while parts and parts[0] in MAGNITUDES:
        factor *= MAGNITUDES[parts.pop(0)]
    if len(parts) == 1 and parts[0] in _LAST_MAGNITUDES and not (has_currency and parts[0] != "grand"):
        factor *= _LAST_MAGNITUDES[parts.pop()]
    if parts[:1] == ["a"] and len(parts) > 1:  # $5 a day
        del parts[0]
    if parts[-1:] == ["over"] and parts[-2:-1] == ["left"]:  # 18 eggs left over
        del parts[-2:]
    if changes_meaning(" ".join(parts)) or _VARIABLES.intersection(parts[:1]):
        return None
    return factor


_PLAIN_UNIT = re.compile(r"(?<=[0-9})])\s+([A-Za-z]{2,20}(?:(?:\s|\s?/\s?)[A-Za-z]{1,20}){0,3})\.?\s*$")
_SHORT_UNIT_WORDS = "cm mm km nm kg mg ml ft yd mi hr hrs min mins sec secs mph kph lb lbs oz in cc kw mw"
_SHORT_UNITS = frozenset(_SHORT_UNIT_WORDS.split())


def without_plain_unit(latex: str) -> str:
    """A LaTeX expression without a unit in plain letters at its end: `2\\sqrt{3} cm`; letters may be variables too."""
    unit = _PLAIN_UNIT.search(latex[-100:])
    if unit is None or not (unit[1].split()[0] in _SHORT_UNITS or len(re.split(r"[\s/]", unit[1])[0]) > 3):
        return latex
    return latex[: len(latex) - len(latex[-100:]) + unit.start()] if unit_factor(unit[1], False, True) == 1 else latex


def without_latex_unit(latex: str) -> str:
    """A LaTeX number without the unit in \\text or \\mathrm at its end; unchanged if that is no unit."""
    unit = _LATEX_UNIT.search(latex) if "{" in latex else None
    if unit is None or unit.start() == 0:
        return latex
    words = re.sub(r"\\[A-Za-z]+", " ", unit[0])
    named = re.sub(r"[^A-Za-z]", "", words)
    return latex if changes_meaning(words) or re.fullmatch("[kKMBT]", named) else latex[: unit.start()].rstrip()
