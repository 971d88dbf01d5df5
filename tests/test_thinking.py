"""What is read of a completion that thinks first, or that carries end tokens, in all forms and by all readers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrl.rewards import case_study
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES, TAGS
from slimrl.thinking import committed, ended, split, without_end_tokens

FORMS = {
    "hashes": "So.\n#### {}",
    "boxed": "So $\\boxed{{{}}}$.",
    "answer": "So.\nAnswer: {}",
    "tags": f"{TAGS[0]}So.{TAGS[1]}{TAGS[2]}{{}}{TAGS[3]}",
}
READ = {
    "one block": "<think>maybe {wrong} or {wrong}</think>\n{right}",
    "prefilled by the prompt": "maybe {wrong}</think>\n\n{right}",
    "several blocks": "<think>{wrong}</think> Hm. {wrong} <think>no</think>{right}",
    "nested": "<think>a <think>{wrong}</think> b {wrong}</think>{right}",
    "another spelling": "<thinking>{wrong}</thinking>{right}",
    "capitals": "<Think>{wrong}</Think>{right}",
    "words": "<|begin_of_thought|>{wrong}<|end_of_thought|>\n{right}",
    "brackets": "[THINK]{wrong}[/THINK]{right}",
    "a channel": "<|channel>thought\n{wrong}<channel|>{right}<turn|>",
    "empty": "<think>\n\n</think>\n\n{right}",
    "opened twice": "<think><think>{wrong}</think>{right}",
    "end tokens": "<think>{wrong}</think>{right}<|im_end|>\n<|endoftext|>",
    "one end token": "{right}</s>",
    "another end token": "{right}<end_of_turn>\n",
}
UNREAD = {
    "never ends": "<think>so {right}",
    "begins again": "<think>a</think>{right} <think>or is it",
    "nothing behind": "<think>{right}</think>",
    "a late end": "{right}</think>",
    "another spelling": "<thinking>{right}",
    "words": "<|begin_of_thought|>{right}",
    "a channel": "<|channel>thought\n{right}",
    "ends, then only a token": "<think>{right}</think><|im_end|>",
}


@pytest.mark.parametrize("style", FORMS)
@pytest.mark.parametrize("case", READ)
def test_reading_begins_behind_the_thinking(style: str, case: str) -> None:
    text = READ[case].format(right=FORMS[style].format("18"), wrong=FORMS[style].format("12"))
    assert STYLES[style].extract(text) == "18"
    assert STYLES[style].well_formed(text)
    grade = Grader("numeric").grade(text, "18", STYLES[style])
    assert (grade.strict, grade.lenient, grade.extracted_strict) == (True, True, "18")
    wrong = Grader("numeric").grade(text, "12", STYLES[style])
    assert (wrong.strict, wrong.lenient, wrong.extracted_lenient) == (False, False, "18")


@pytest.mark.parametrize("style", FORMS)
@pytest.mark.parametrize("case", UNREAD)
def test_thinking_commits_to_nothing(style: str, case: str) -> None:
    text = UNREAD[case].format(right=FORMS[style].format("18"))
    assert STYLES[style].extract(text) == ""
    assert not STYLES[style].well_formed(text)
    grade = Grader("numeric").grade(text, "18", STYLES[style])
    assert (grade.strict, grade.lenient, grade.extracted_lenient) == (False, False, "")


def test_the_case_studys_rewards_read_the_same_part() -> None:
    right, wrong = (FORMS["tags"].format(number) for number in (18, 12))
    rewards = (
        case_study.match_format_exactly,
        case_study.match_format_approximately,
        case_study.check_answer,
        case_study.check_numbers,
    )
    points = [sum(f([text], answer=["18"])[0] for f in rewards) for text in (f"<think>{wrong}</think>{right}", right)]
    assert points == [9.5, 9.5]
    assert case_study.check_numbers([f"<think>{right}"], answer=["18"]) == [0.0]
    # as published: nothing is known of thinking
    assert case_study.check_numbers_published([f"<think>{right}"], answer=["18"]) == [1.5]


@given(st.lists(st.sampled_from(["<think>", "</think>", "<thinking>", "[/THINK]", "a", "#### 1", " "])).map("".join))
def test_what_is_read_holds_no_marks_and_is_read_again_as_it_stands(text: str) -> None:
    thinking, read = split(text)
    assert thinking + read == text
    assert "think>" not in read
    assert committed(read) == without_end_tokens(read)
    assert split(ended(text) + "#### 7")[1].endswith("#### 7")


@pytest.mark.parametrize("style", FORMS)
@pytest.mark.parametrize(
    "solution", ["<think>9*2</think>\nIt is 18.", "<think>9*2", "</think>", "<think>a</think>b<think>", "so<|im_end|>"]
)
def test_worked_solutions_that_think_are_rendered_in_form(style: str, solution: str) -> None:
    text = STYLES[style].render(solution, "18")
    assert STYLES[style].extract(text) == "18"
    assert STYLES[style].well_formed(text)
    assert text.startswith("<think>9*2</think>\n") == (solution == "<think>9*2</think>\nIt is 18.")


def test_long_texts_are_cheap() -> None:
    for text in ("<think>" * 10_000, "</think>" * 10_000, "</s>" * 20_000, "<" * 50_000, "18" + " " * 50_000 + "<eos>"):
        committed(text)
    assert committed("18" + "</s>\n" * 10_000) == "18"
