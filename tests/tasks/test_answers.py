"""Numbers read exactly, and verdicts that cannot be gamed."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrl.tasks.answers import Grader
from slimrl.tasks.checkers import fitting_checker
from slimrl.tasks.latex import normalise, plausible
from slimrl.tasks.numbers import last_number, numbers, parse_number, same_number
from slimrl.tasks.styles import STYLES, interchangeable

READ = {
    "18": 18,
    "+18": 18,
    "-5": -5,
    "−5": -5,
    "–5": -5,
    "- 5": -5,
    "007": 7,
    "025": 25,
    "1,080": 1080,
    "1,234,567.25": Fraction(4938269, 4),
    "10,\\!080": 10080,
    "11,\\! 111,\\! 111,\\! 100": 11111111100,
    "58{,}500": 58500,
    "10\\,080": 10080,
    "1.50": Fraction(3, 2),
    ".5": Fraction(1, 2),
    "-.5": Fraction(-1, 2),
    "5.": 5,
    "2/3": Fraction(2, 3),
    "-2/3": Fraction(-2, 3),
    "1 1/2": Fraction(3, 2),
    "-1 1/2": Fraction(-3, 2),
    "\\frac{2}{3}": Fraction(2, 3),
    "\\dfrac{17}{50}": Fraction(17, 50),
    "-\\frac{35}{9}": Fraction(-35, 9),
    "\\frac43": Fraction(4, 3),
    "\\frac 59": Fraction(5, 9),
    "\\frac9{19}": Fraction(9, 19),
    "1\\frac{4}{5}": Fraction(9, 5),
    "1e3": 1000,
    "1.5E-2": Fraction(3, 200),
    "$18.50": Fraction(37, 2),
    "-$5": -5,
    "$-5": -5,
    "€ 18": 18,
    "£18": 18,
    "18$": 18,
    "\\$32,\\!348": 32348,
    "50%": 50,
    "50 percent": 50,
    "50\\%": 50,
    "90^\\circ": 90,
    "18 eggs": 18,
    "18eggs": 18,
    "18 eggs.": 18,
    "9 (apples)": 9,
    "18 eggs (large)": 18,
    "18 dollars per hour": 18,
    "$5/hour": 5,
    "$5 a day": 5,
    "18 m": 18,
    "5 km/h": 5,
    "18 m^2": 18,
    "18 cm²": 18,
    "15\\mbox{ cm}^2": 15,
    "5.4 \\text{ cents}": Fraction(27, 5),
    "5 million": 5_000_000,
    "2.5 thousand dollars": 2500,
    "3 dozen": 36,
    "**18**": 18,
    "$18$": 18,
    "$$18$$": 18,
    "\\(18\\)": 18,
    " 18 \n": 18,
}

NOT_ONE_NUMBER = [
    "", " ", ".", "-", "$", "$$", "%", "abc", "nan", "inf", "Infinity", "eighteen", "1/0", "0/0", "1 1/0", "1 3/2",
    "1/2/3", "12 or 13 or 18", "12 or thirteen", "12, 13", "12,13,18", "12;18", "12 18", "12/18/20", "12 and 18",
    "12 not 18", "17+1", "18=18", "x=18", "18x", "18 x", "2k", "2pi", "2\\sqrt{3}", "18!", "18 squared", "3 thirds",
    "1,08", "1,0800", "0,080", "1,00,000", "1.234,5", "1.2.3", "1_000", "--5", "-$-5", "+-5", "0x12", "1e", "1e3e3",
    "1e101", "1e9999", "1e999999999", "\u0661\u0668", "\u2460", "\xbd", "18\u200b", "3:30", "18;", "1,080,",
    "5 hundred and two", "18 eggs 19", "18 is wrong", "18 (wrong)", "18 unless it is 19", "18 twice", "$18M", "18 bn", "1-1/2", "\uff11\uff18", "1\uff18", "9" * 121,
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), READ.items())
def test_reads(text: str, value: Fraction) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", NOT_ONE_NUMBER)
def test_refuses_what_is_not_one_number(text: str) -> None:
    assert parse_number(text) is None


def test_percent_is_a_unit() -> None:
    assert same_number("50%", "50")
    assert not same_number("50%", "0.5")


def test_comparison_is_exact() -> None:
    assert same_number("0.1", "1/10")
    assert not same_number("0.3333333333333333", "1/3")
    assert not same_number("9007199254740993", "9007199254740992")
    assert not same_number("x", "x")


def test_words_off_leaves_algebra_alone() -> None:
    assert parse_number("18 eggs", words=False) is None
    assert parse_number("5.4 \\text{ cents}", words=False) == Fraction(27, 5)
    assert parse_number("864 \\mbox{ inches}^2", words=False) == 864
    assert parse_number("90^\\circ", words=False) == 90
    assert parse_number("5\\text{ million}", words=False) is None


@given(st.integers(-(10**30), 10**30))
def test_integers_with_and_without_commas(value: int) -> None:
    assert parse_number(str(value)) == parse_number(f"{value:,}") == value
    assert numbers(f"so {value:,} it is.") == [f"{value:,}"]


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=6))
def test_decimals(value: Decimal) -> None:
    assert parse_number(f"{value:f}") == Fraction(value)


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.booleans())
def test_fractions(numerator: int, denominator: int, negative: bool) -> None:
    sign = "-" if negative else ""
    value = Fraction(numerator, denominator) * (-1 if negative else 1)
    assert parse_number(f"{sign}{numerator}/{denominator}") == value
    assert parse_number(f"{sign}\\frac{{{numerator}}}{{{denominator}}}") == value


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    parse_number(text)
    for number in numbers(text):
        assert number.isascii()
        assert number in numbers(number)


@given(st.text(alphabet="0123456789,.-/ $%eE^{}\\frac", max_size=60))
def test_number_like_text_is_read_or_refused(text: str) -> None:
    parse_number(text)
    assert last_number(text) == (numbers(text) or [""])[-1]


def test_hostile_lengths_are_cheap() -> None:
    for text in (
        "1" * 50_000,
        "1," * 25_000,
        "1/" * 25_000,
        "1 " * 25_000,
        "-" * 50_000,
        "1." * 25_000,
        "\\frac" * 9000,
        "\\frac" + " " * 50_000,
        "\\text{" + " " * 50_000 + "^",
    ):
        assert parse_number(text) is None
        last_number(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10-5 = 5.", ["10", "5", "5"]),
        ("costs $1,080.", ["1,080"]),
        ("48/2 = 24", ["48/2", "24"]),
        ("15 cm^2", ["15"]),
        ("x^{12} and 7", ["7"]),
        ("from -5 to −3", ["-5", "-3"]),
        ("-$5 or $-6", ["-5", "-6"]),
        ("12,13,18", ["12", "13", "18"]),
        ("H2O, x_3", []),
        ("1,0800", ["1", "0800"]),
        ("50% of 20 %", ["50%", "20%"]),
        ("1 1/2 cups", ["1 1/2"]),
        ("\uff11\uff18 \u0661\u0668", []),
        ("1e3 or 2.5", ["1e3", "2.5"]),
        ("\\frac{1}{2}", ["1/2"]),
        ("", []),
    ],
)
def test_numbers_in_text(text: str, found: list[str]) -> None:
    assert numbers(text) == found
    assert last_number(text) == (found[-1] if found else "")


def test_grade_reports_strict_and_lenient() -> None:
    grader = Grader("numeric")
    hashes = STYLES["hashes"]
    right = grader.grade("16 - 3 = 13\n#### 1,080 eggs", "1080", hashes)
    assert (right.strict, right.lenient, right.extracted_strict) == (True, True, "1,080 eggs")
    loose = grader.grade("The answer is 1,080.", "1080", hashes)
    assert (loose.strict, loose.lenient, loose.extracted_strict, loose.extracted_lenient) == (False, True, "", "1,080")
    wrong = grader.grade("#### 17", "18", hashes)
    assert (wrong.strict, wrong.lenient, wrong.extracted_strict, wrong.extracted_lenient) == (False, False, "17", "17")
    assert grader.grade("#### 5 million", "5000000", hashes).lenient
    assert not grader.compare("x", "x")


@pytest.mark.parametrize("said", ["x = 18", "x=18", "$x = 18$", "Total = 18"])
def test_a_number_in_an_equation_is_right_leniently_alone(said: str) -> None:
    """The form asks for a number; what stands before the equals sign may be another quantity than the one that is asked for."""
    for style in ("hashes", "boxed", "answer"):
        grade = Grader("numeric").grade(STYLES[style].render("", said), "18", STYLES[style])
        assert (grade.strict, grade.lenient) == (False, True), style
    # as a gold answer it is no number, and the gold check says which checker to take
    assert parse_number("x = 18") is None
    assert fitting_checker(["x = 18"]) == "symbolic"


def test_equal_completions_are_graded_once() -> None:
    grader, hashes, read = Grader("numeric"), STYLES["hashes"], []
    style = replace(hashes, _extract=lambda text: (read.append(text), hashes.extract(text))[1])
    assert [grader.grade("#### 5", gold, style).strict for gold in ("5", "6", "5")] == [True, False, True]
    assert len(read) == 2, "one for each gold answer"


@settings(max_examples=200)
@given(st.text(max_size=80), st.sampled_from(sorted(interchangeable("hashes"))))
def test_strict_implies_lenient(text: str, style: str) -> None:
    grade = Grader("numeric").grade(STYLES[style].render(text, "18"), "18", STYLES[style])
    assert grade.strict
    assert grade.lenient
    noisy = Grader("numeric").grade(text, "18", STYLES[style])
    assert noisy.lenient or not noisy.strict


def test_normalise() -> None:
    assert normalise("$\\left( 3, \\dfrac{\\pi}{2} \\right)$") == normalise("(3,\\frac{\\pi}{2})")
    assert normalise("\\text{East}") == normalise("east")
    assert normalise("\\text{(C)}") == normalise("C")
    assert normalise("52_{8}") == normalise("52_8")
    assert normalise("2k") != normalise("2m")
    assert normalise("x = 10\\,080") == "x=10080"
    assert normalise("1 8") == normalise("1\\,8") == normalise("1 ~ 8") == "1 8"


@pytest.mark.parametrize(
    "guess",
    [
        "1 \\sqrt{3} 2 6", "\\pi or \\sqrt{3}", "3=\\sqrt{3}", "x=3=\\sqrt{3}", "\\sqrt{3}_8", "\\sqrt{3}\\text{ million}",
        "\\sqrt{3} wrong", "\\sqrt{3}\\text{12}", "\\sqrt{3}\\mathbf{12}", "\\sqrt{3} \\approx 1", "\\sqrt{3},\\ldots",
        "\\boxed{\\sqrt{3}}12", "\\phantom{\\sqrt{3}}", "\\sqrt{3}\\ne 1",
    ],
)  # fmt: skip
def test_implausible_guesses_never_reach_math_verify(guess: str) -> None:
    assert not plausible(guess, "\\sqrt{3}")


@pytest.mark.parametrize("guess", ["x=\\sqrt{3}", "\\sqrt{9/3}", "\\sqrt{3}\\text{ cm}", "3^{1/2}", "-\\sqrt{3}"])
def test_plausible_guesses_do(guess: str) -> None:
    assert plausible(guess, "\\sqrt{3}")


def test_marks_of_the_gold_answer_are_no_marks_against_a_guess() -> None:
    assert plausible("x \\neq 2", "x\\ne 2")
    assert plausible("52_{8}", "52_8")
    assert plausible("1,2,\\cdots", "1,2,\\ldots")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("¥18", 18), ("₹1,080", 1080), ("US$18.50", Fraction(37, 2)), ("USD 18", 18), ("Rs. 18", 18), ("18¢", 18),
        ("18 eggs left over", 18), ("18 eggs left over.", 18), ("`18`", 18), ("-₹5", -5),
    ],
)  # fmt: skip
def test_more_currencies_and_units(text: str, value: Fraction) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["18 over 2", "18 left or over", "¥18¥", "$18 ¢", "18 over", "US 18"])
def test_what_looks_like_them_and_is_not(text: str) -> None:
    assert parse_number(text) is None


def test_lenient_reads_magnitudes_as_strict_does() -> None:
    assert last_number("She has 5 million") == "5 million"
    assert parse_number(last_number("about $1.5 billion in all.")) == 1_500_000_000
    assert last_number("5 millions of them") == "5 millions"
    assert last_number("He bought 2 dozen.") == "2 dozen"
    assert parse_number(last_number("so it is 12 opposite")) is None
    assert parse_number(last_number("it is 12, no?")) == 12
    assert parse_number(last_number("or ¢1,850.")) == Fraction(37, 2)
    assert parse_number(last_number("that is 2.5 \\times 10^4 m.")) == 25_000
