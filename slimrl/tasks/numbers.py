"""Numbers as people and models write them, read exactly.

Everything here is ASCII-only on purpose (digits of other scripts are not numbers), takes time linear in the text, and
refuses absurd sizes before computing anything.
"""

import re
from fractions import Fraction

from slimrl.tasks.units import MAGNITUDES, NO_UNITS, unit_factor, without_latex_unit

MAX_LENGTH = 120  # characters of a text that is to be one number; a longer one is none
MAX_EXPONENT = 100  # largest power of ten that `1e3` notation may name

# 1,080 is well formed, 1,08 and 0,080 are not.
_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"
_CURRENCY = r"(?:(?:US|CA|AU)?\$|[€£¥₹¢]|USD\ |EUR\ |GBP\ |Rs\.?\ )"
_WHOLE_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\ ?(?P<currency>{_CURRENCY}?)\ ?(?P<inner_sign>[+-]?)"
    rf"(?:(?:(?P<whole>{_INTEGER})\ +)?(?P<numerator>{_INTEGER})\ ?/\ ?(?P<denominator>{_INTEGER})"
    rf"|(?P<decimal>{_INTEGER}(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE](?P<exponent>[+-]?[0-9]{{1,4}})(?![0-9.]))?)"
    rf"(?P<unit>[^0-9]*(?:\^\{{?[23]\}}?[^0-9]*)?)",
    re.VERBOSE,
)
# Words that belong to the number before them also in running text: they multiply it or make another number of it. What
# takes it back (12 no, 12 isn't it) does so at the end of a text. Markup may stand between the two: **5** million.
_BOUND = "|".join(
    (
        r"(?:[ \t~$*_`(){}\[\]-]|\\[,;:!()\[\]]){1,8}(?P<word>(?i:"
        rf"{'|'.join(MAGNITUDES)}|opposite|reciprocal|squared|cubed|factorial|(?:hundred|thousand)ths?)(?![A-Za-z])"
        r"|(?i:grand|gross|score)(?=[^A-Za-z0-9\s]|\s*\Z))",
        r"(?:[kKMB]|ths|rds|nds)(?![A-Za-z0-9])",
        # 18x and 18^2 are not 18
        r"[abeijknqrtuvwxyz](?![A-Za-z0-9])|\^\{?-?[0-9]+\}?",
        rf"\ (?:{'|'.join(sorted(NO_UNITS))})(?![A-Za-z])(?:[\ '’][A-Za-z]+){{0,2}}(?=[\s.!?)*]*\Z)",
    )
)
_IN_TEXT = re.compile(
    r"(?:(?P<before>\\sqrt\s?\{?\s?|√\s?|(?<![A-Za-z])(?i:half\ of|twice|thrice|not)\s"
    r"|(?:(?<![A-Za-z])(?i:negative)|(?:(?<![A-Za-z0-9)\]}]\s)|(?<=\bis\s))(?<![A-Za-z])(?i:minus))\s)"
    rf"|(?<![A-Za-z0-9_.^])(?<!\^\{{)(?<!\^-)(?<!\^\{{-))(?P<sign>(?<![)\]}}])-)?(?P<currency>{_CURRENCY})?(?P<inner_sign>-)?"
    rf"(?P<number>(?:{_INTEGER}\ )?{_INTEGER}/{_INTEGER}"
    rf"|(?:{_INTEGER}(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9A-Za-z]))?)(?P<percent>\ ?%)?"
    rf"(?P<bound>{_BOUND})?",
    re.VERBOSE,
)

_FRACTION = re.compile(
    r"(?:(?<![^$({=])(-)\s*)?\\[dtc]?frac\s*"
    r"(?:\{\s*([+-]?[0-9,]{1,40})\s*\}|([0-9]))\s*(?:\{\s*([+-]?[0-9,]{1,40})\s*\}|([0-9]))"
)
_SCIENTIFIC = re.compile(
    rf"(?<![0-9A-Za-z./^_,])(?<!/\ )(?:(?P<mantissa>{_INTEGER}(?:\.[0-9]*+)?|\.[0-9]++)\s*"
    r"(?:\\times|\\cdot|[×·⋅*]|(?<=\s)x(?=\s))\s*)?10\s?(?:\^|\*\*)\s?"
    r"(?:\{\s?(?P<braced>[+-]?[0-9]{1,3})\s?\}|(?P<bare>[+-]?[0-9]{1,3}))(?![0-9.]|\s?\^)"
)
REPEATING = re.compile(
    r"(?<![0-9.,^_])(?<![0-9]\s)([0-9]{0,40})\.([0-9]{0,40})"
    r"(?:\\(?:overline|bar)\s*(?:\{([0-9]{1,40})\}|([0-9]))|\\dot\s*\{?([0-9])\}?(?:([0-9]{0,40})\\dot\s*\{?([0-9])\}?)?)(?![0-9])"
)
_REPEATING_IN_BRACKETS = re.compile(r"([+-]?)([0-9]{1,40})\.([0-9]{0,40})\(([0-9]{1,40})\)")
_GROUPED_BY_SPACES = re.compile(r"([^0-9]{0,6}[1-9][0-9]{0,2})((?: [0-9]{3})+)(?![0-9.]?[0-9]| ?/| [0-9])")
_ORDINAL = re.compile(r"(?<=[0-9])\s*\^\s*\{?\s*(st|nd|rd|th)\s*\}?(?![A-Za-z])")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile("(?<=[0-9])[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_NEGATIVE = re.compile(r"(?:minus|negative)\s+(?=[0-9.$€£¥₹])", re.IGNORECASE)
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf|textit|boldsymbol)\s*\{([^{}]*)\}")
_WRAPPINGS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\*\*([^*]+)\*\*([^*]*)", r"\*([^*]+)\*([^*]*)", r"__([^_]+)__([^_]*)", r"_([^_]+)_([^_]*)",
        r"`([^`]+)`([^`]*)", r"<([^<>]+)>([^<>]*)",
        r"\$\$((?:[^$\\]|\\.)+)\$\$((?:[^$\\]|\\.)*)", r"\$((?:[^$\\]|\\.)+)\$((?:[^$\\]|\\.)*)",
        r"\\\((.+)\\\)([^\\]*)", r"\\\[(.+)\\\]([^\\]*)", r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})+)\}([^{}\\]*)",
    )
]  # fmt: skip
"""Markup around a number, and the text after it: Markdown, math delimiters, a box."""


def parse_number(text: str, *, words: bool = True) -> Fraction | None:
    """The number that `text` *is*, exactly; None if it is not one number with at most a unit after it.

    Read: `1,080`, `10,\\!080`, `-5`, `−5`, `.5`, `2/3`, `1 1/2`, `\\frac{2}{-3}`, `1e3`, `2.5 \\times 10^4`, `10^{-3}`,
    `0.\\overline{36}`, `10 080`, `$18.50`, `18 eggs`, `9 (apples)`, `5 million`, `2 dozen`, `18th`, `**18** eggs`,
    `\\boxed{18}`, `$18$`, `18.`. Not read: lists and alternatives (`12 or 18`), sums, other powers (`2^{10}`), equations,
    `1/0`, digits of other scripts, malformed thousands (`1,08`).

    A percent sign is a unit, as in the data sets, which ask "what percent" and write 50: `50%` equals `50`, not `0.5`.
    So are cents behind a number (`18¢` is 18); the sign before it makes a sum of money of it (`¢18` is 0.18).
    With `words=False` only signs count as units (%, °, currency, LaTeX text), since `2k` is an expression in algebra.
    """
    if len(text) > MAX_LENGTH:
        return None
    if text.isascii() and text.isdigit():  # what follows gives the same, ten times slower
        return Fraction(int(text))
    match = _WHOLE_NUMBER.fullmatch(_plain(text, keep_text=words))
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    factor, value = unit_factor(match["unit"].strip(), bool(match["currency"]), words), _value(match)
    if value is None or factor is None:
        return None
    value *= Fraction(factor, 100 if match["currency"] == "¢" else 1)
    return -value if "-" in (match["sign"], match["inner_sign"]) else value


def same_number(left: str, right: str) -> bool:
    """Both are numbers, and the same one exactly; 18 cents are also the 0.18 of an answer in dollars."""
    first, second = parse_number(left), parse_number(right)
    if first is None or second is None:
        return False
    return first == second or (_is_cents(left) and not _is_cents(right) and first == 100 * second)


def numbers(text: str) -> list[str]:
    """Every number in running text, in order, each spelt so that `parse_number` reads it.

    A minus counts as a sign unless something stands right before it (`10-5` holds 10 and 5); exponents of units (`m^2`)
    and digits inside words (`H2O`) are no numbers. What makes another number of it stays with it: `2 dozen`, `5k`,
    `12 squared`, `\\sqrt{12}`, `12x` and `not 12`, of which `parse_number` reads the first. `minus 12` is `-12`.
    """
    found = []
    for match in _IN_TEXT.finditer(_plain_latex(text)):
        sign = "-" if match["sign"] or match["inner_sign"] else ""
        before = (match["before"] or "").replace("√", "\\sqrt").strip()
        if before.lower() in ("minus", "negative") and not sign:
            before, sign = "", "-"
        before += " " if before[-1:].isalpha() else ""
        cents = "e-2" if match["currency"] == "¢" and not re.search("[eE/]", match["number"]) else ""
        bound = f" {match['word'].lower()}" if match["word"] else match["bound"] or ""
        found.append(before + sign + match["number"] + cents + ("%" if match["percent"] else "") + bound)
    return found


def last_number(text: str) -> str:
    """The last number in running text, the lenient answer; empty if there is none."""
    return (numbers(text) or [""])[-1]


def _value(match: re.Match[str]) -> Fraction | None:
    parts = {name: (part or "0").replace(",", "") for name, part in match.groupdict().items()}
    if match["denominator"]:
        numerator, denominator = int(parts["numerator"]), int(parts["denominator"])
        # 1 3/2 is a slip or two numbers, not a mixed number
        if denominator == 0 or (match["whole"] and numerator >= denominator):
            return None
        return int(parts["whole"]) + Fraction(numerator, denominator)
    exponent = int(parts["exponent"])
    return Fraction(parts["decimal"]) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None


def _is_cents(text: str) -> bool:
    return re.search(r"(?:¢|\bcents?)[\s.})$*]*\Z", text[-20:]) is not None


def _unwrapped(text: str) -> str:
    """A short answer without Markdown, math delimiters or a box around its beginning: `**73** eggs` is `73 eggs`."""
    plain = text.strip()
    if negative := re.match(r"-\s?(?=\*\*|\\(?:boxed|fbox)|\\\()", plain):
        return "-" + _unwrapped(plain[negative.end() :])
    for _ in range(4):
        match = next((found for wrapping in _WRAPPINGS if (found := wrapping.fullmatch(plain))), None)
        if match is None or not match[1].strip() or match[2][:1].isdigit():
            return plain
        plain = f"{match[1].strip()} {match[2].strip()}".strip()
    return plain


def _plain(text: str, *, keep_text: bool) -> str:
    """A short answer as the plain characters of one number and its unit."""
    plain = _unwrapped(text)
    if not keep_text:
        plain = without_latex_unit(plain)
    plain = _ORDINAL.sub(r"\1", " ".join(_plain_latex(plain).split()))
    if keep_text and (negative := _NEGATIVE.match(plain)):
        plain = "-" + plain[negative.end() :]
    if match := _REPEATING_IN_BRACKETS.fullmatch(plain):
        return match[1] + _repeating(match[2], match[3], match[4])
    return _GROUPED_BY_SPACES.sub(lambda m: m[1] + m[2].replace(" ", ""), plain, count=1)


def _plain_latex(text: str) -> str:
    """LaTeX that only decorates a number as plain characters, powers of ten as `1e3`; the rest of the text as it is."""
    plain = text
    if not text.isascii():
        plain = re.sub("[\u00a0\u2009\u202f]", " ", text.replace("\u2212", "-").replace("\u2013", "-"))
        plain = _RAISED.sub(lambda match: "^{" + match[0].translate(_LOWERED) + "}", plain)
    if "\\" in plain or "{,}" in plain or "~" in plain:
        plain = plain.replace("{,}", ",")
        plain = re.sub(r",\s*\\!\s*", ",", plain)
        plain = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ",", plain)
        plain = _FRACTION.sub(_fraction, plain)
        plain = REPEATING.sub(repeating, plain)
        plain = re.sub(r"(?<!\s)\s+\^", "^", _TEXT_COMMAND.sub(r" \1 ", plain))
        plain = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree", "°", plain)
        plain = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\!", "", plain)
        plain = re.sub(r"\\[,;: ]|(?<=[0-9}])~(?=[\s\\A-Za-z0-9])", " ", plain)
        plain = re.sub(r"\\([$%])", r"\1", plain)
    return _SCIENTIFIC.sub(_scientific, plain) if "10" in plain else plain


def _fraction(match: re.Match[str]) -> str:
    """`a/b` with its signs in front; after a digit it is the fraction of a mixed number."""
    outer, *parts = match.groups()
    numerator, denominator = (part for part in parts if part)
    sign = "-" * ([outer or "", numerator[0], denominator[0]].count("-") % 2)
    gap = " " if match.string[: match.start()][-1:].isdigit() else ""
    return f"{gap}{sign}{numerator.lstrip('+-')}/{denominator.lstrip('+-')}"


def _scientific(match: re.Match[str]) -> str:
    exponent = match["braced"] or match["bare"]
    return f"{match['mantissa'] or '1'}e{exponent} "


def repeating(match: re.Match[str]) -> str:
    """A match of REPEATING as a fraction in lowest terms: `a/b`."""
    whole, first, *period = match.groups()
    return _repeating(whole, first, "".join(digits or "" for digits in period))


def _repeating(whole: str, first: str, period: str) -> str:
    """whole.first period period ... as a fraction in lowest terms."""
    shifted = int((whole or "0") + first)
    value = Fraction(int(f"{shifted}{period}") - shifted, 10 ** len(first) * (10 ** len(period) - 1))
    return f"{value.numerator}/{value.denominator}"
