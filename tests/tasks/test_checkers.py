"""Answers that are words, letters of options or patterns; what is right, and what is none of it."""

from __future__ import annotations

import pickle

import pytest

from slimrl.records import Answer, right_answers
from slimrl.tasks.answers import Grader
from slimrl.tasks.checkers import fault, fits_pattern, fitting_checker, last_answer, last_letter, letter
from slimrl.tasks.styles import STYLES, interchangeable
from slimrl.terms import Checker

VERDICTS: dict[Checker, dict[str, tuple[str, str]]] = {
    # gold: right ones, wrong ones, separated by |
    "exact": {
        "yes": ("yes|Yes|YES.|**yes**|\\text{yes}|$yes$|\"yes\"| yes ", "no|yes and no|not yes|ye s|yes, it is|"),
        "New York": ("new  york|New\nYork", "York|NewYork|New York City"),
        "a.m.": ("A.M.|a.m", "p.m.|am"),
        "1,080": ("1,080", "1080"),
        ".": ("", ".|!"),
    },
    "choice": {
        "B": ("B|b|(B)|B.|B) 12 apples|\\text{(B)}|**B**|Option B|(b)", "A|AB|A or B|B or A|B, C|not B|12 apples|banana|"),
        "(C)": ("C", "B"),
        "12": ("", "12|B"),
    },
    "regex": {
        "7|seven": ("7|seven| 7 ", "Seven|77|7 eggs|se"),
        r"(?i)sev\w+\b": ("Seven", "six|seven eggs"),
        r"\d{2}:\d{2}": ("15:30", "5:30|15:300"),
    },
    "none": {"7": ("", "7|8")},
}  # fmt: skip


@pytest.mark.parametrize("checker", VERDICTS)
def test_verdicts(checker: Checker) -> None:
    grader = Grader(checker)
    for gold, (right, wrong) in VERDICTS[checker].items():
        for guess in filter(None, right.split("|")):
            assert grader.compare(guess, gold) is True, (guess, gold)
        for guess in wrong.split("|"):
            assert grader.compare(guess, gold) is False, (guess, gold)
        assert not grader.compare("", gold)
    assert not grader.compare("x", ""), "no answer is never right"


def test_a_pattern_that_takes_for_ever_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrl.tasks.checkers.PATTERN_SECONDS", 0.05)
    endless = r"(a|aa)+$b"
    assert fits_pattern("a" * 300, endless) is None
    grade = Grader("regex").grade(f"#### {'a' * 290}", Answer(endless, ["b"]), STYLES["hashes"])
    assert (grade.strict, grade.undecided) == (False, True)
    assert Grader("regex").grade(f"#### {'a' * 290}", Answer(endless, ["a+"]), STYLES["hashes"]).strict


LENIENT: dict[Checker, tuple[str, dict[str, bool]]] = {
    "exact": ("yes", {"So it is odd.\nThe answer is yes.": True, "Yes": True, "yes\nno": False, "yes, or no": False}),
    "choice": ("B", {"I would say (B).": True, "The answer is B": True, "(B), no, (C)": False, "none": False, "B's": False}),
    "regex": ("seven|7", {"Final answer: 7": True, "7\n8": False}),
    "none": ("7", {"7": False}),
}  # fmt: skip


@pytest.mark.parametrize("checker", LENIENT)
def test_lenient_verdicts_read_the_end(checker: Checker) -> None:
    gold, texts = LENIENT[checker]
    for text, right in texts.items():
        grade = Grader(checker).grade(text, gold, STYLES["hashes"])
        assert (grade.strict, grade.lenient) == (False, right), text
    wrong = Grader(checker).grade("#### X\n", gold, STYLES["hashes"])
    assert (wrong.strict, wrong.lenient, wrong.extracted_lenient) == (False, False, "X"), "in the form it is the answer"


def test_what_running_text_says_last() -> None:
    assert [last_letter(text) for text in ("A, then B.", "I am", "(D) it is", "vitamin C3", "")] == [
        "B",
        "I",
        "D",
        "",
        "",
    ]
    assert [last_answer(text) for text in ("x\nAnswer: a b", "the answer is 7", "a\n\nb \n", "")] == [
        "a b",
        "7",
        "b",
        "",
    ]
    assert [letter(text) for text in ("c", "(d)", "E. x", "ab", "", "-")] == ["C", "D", "E", "", "", ""]


@pytest.mark.parametrize("style", sorted(interchangeable("hashes")))
@pytest.mark.parametrize(("checker", "gold"), [("exact", "no"), ("choice", "C"), ("exact", "Mrs. Hilt")])
def test_gold_texts_are_right_in_every_form(style: str, checker: Checker, gold: str) -> None:
    form = STYLES[style]
    assert Grader(checker).grade(form.render("because", gold), gold, form).strict


def test_instructions_ask_for_what_the_checker_reads() -> None:
    for style in STYLES.values():
        assert style.instruction_for("numeric") == style.instruction_for("symbolic") == style.instruction
    assert (
        STYLES["hashes"]
        .instruction_for("choice")
        .endswith('only the letter of the right option, in the form "#### <letter>".')
    )
    assert STYLES["hashes"].instruction_for("exact").endswith('only the final answer, in the form "#### <answer>".')
    assert (
        STYLES["boxed"]
        .instruction_for("choice")
        .endswith("state the letter of the right option once, inside \\boxed{}.")
    )


def test_gold_answers_that_could_never_be_right() -> None:
    assert fault("numeric", "x+1").endswith("is not one number; set task.checker=symbolic, or correct the answer")
    assert "task.checker=exact" in fault("numeric", "no")
    assert "is not the letter of an option" in fault("choice", "twelve")
    assert "is no regular expression" in fault("regex", "(")
    assert "fits an empty answer" in fault("regex", "x*")
    for checker, answer in (
        ("numeric", "1,080"),
        ("choice", "(B)"),
        ("regex", "7|seven"),
        ("exact", "("),
        ("none", ""),
        ("symbolic", "x"),
    ):
        assert fault(checker, answer) == "", checker


def test_checkers_are_named_for_answers_that_are_no_numbers() -> None:
    assert fitting_checker(["A", "(B)", "C. red"]) == "choice"
    assert fitting_checker(["yes", "no", "New York", "Mrs. Hilt"]) == "exact"
    for answers in (["x"], ["yes", "x+1"], ["\\frac{x}{2}"], ["A", "12x"], ["x-1"]):
        assert fitting_checker(answers) == "symbolic", answers


def test_several_answers_survive_a_process_and_no_cache_mixes_them_up() -> None:
    answer = pickle.loads(pickle.dumps(Answer("7", ["seven"])))
    assert (answer, right_answers(answer)) == ("7", ("7", "seven"))
    grader = Grader("exact")
    verdicts = [grader.grade("#### seven", gold, STYLES["hashes"]).strict for gold in ("7", answer, Answer("7", ["8"]))]
    assert verdicts == [False, True, False]


def test_a_gold_answer_earns_where_its_own_text_must_be_right() -> None:
    assert Grader("numeric").earns("five"), "which the gold check then refuses"
    assert not Grader("numeric").earns("")
    assert not Grader("none").earns("7")
    assert [Grader("regex").earns(pattern) for pattern in ("seven", "7|seven", "(?i)x")] == [True, False, False]
