"""The four forms: what is in them, what is not, and that the rendered gold answer always is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrl.tasks.styles import STYLES, TAGS, boxes, last_box

IN_FORM = [
    ("hashes", "16 - 3 = 13\n#### 72", "72"),
    ("hashes", "#### 72\n", "72"),
    ("hashes", "it is 72. ####72 clips  \n\n", "72 clips"),
    ("boxed", "so $\\boxed{72}$.", "72"),
    ("boxed", "\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("boxed", "\\boxed{72}, that is \\boxed{72} clips.", "72"),
    ("boxed", "\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
    ("boxed", "\\boxed {72}", "72"),
    ("tags", "<start_working_out>48+24<end_working_out>\n<SOLUTION> 72 </SOLUTION>\n", "72"),
    ("tags", "72, so <SOLUTION>72</SOLUTION>", "72"),
    ("answer", "48 + 24\nAnswer: 72", "72"),
    ("answer", "Answer:72 clips\n", "72 clips"),
]

NOT_IN_FORM = [
    ("hashes", "72"),
    ("hashes", "####"),
    ("hashes", "#### \n"),
    ("hashes", "### 72"),
    ("hashes", "##### 72"),
    ("hashes", "#### 71\n#### 72"),
    ("hashes", "#### 72 ####"),
    ("hashes", "#### 72\nQuestion: and now?"),
    ("hashes", "#### " + "7" * 301),
    ("boxed", "72"),
    ("boxed", "\\boxed{72"),
    ("boxed", "\\boxed{}"),
    ("boxed", "\\boxed{71} or \\boxed{72}"),
    ("boxed", "\\boxed 72"),
    ("tags", "<SOLUTION>72"),
    ("tags", "<SOLUTION></SOLUTION>"),
    ("tags", "<SOLUTION>71</SOLUTION><SOLUTION>72</SOLUTION>"),
    ("tags", "<SOLUTION>72</SOLUTION> or 71"),
    ("tags", "</SOLUTION>72<SOLUTION>"),
    ("tags", "<solution>72</solution>"),
    ("answer", "72"),
    ("answer", "Answer:"),
    ("answer", "Answer: 71\nAnswer: 72"),
    ("answer", "Answer: 72\nand more"),
    ("answer", "The Answer: 72"),
    ("answer", "answer: 72"),
]


@pytest.mark.parametrize(("style", "text", "answer"), IN_FORM)
def test_extract(style: str, text: str, answer: str) -> None:
    assert STYLES[style].extract(text) == answer


@pytest.mark.parametrize(("style", "text"), NOT_IN_FORM)
def test_extract_refuses(style: str, text: str) -> None:
    assert STYLES[style].extract(text) == ""
    assert not STYLES[style].well_formed(text)


@pytest.mark.parametrize(
    "text",
    [
        "<SOLUTION>72</SOLUTION>",
        "Well: <start_working_out>48+24<end_working_out><SOLUTION>72</SOLUTION>",
        "<start_working_out>48+24<end_working_out> so <SOLUTION>72</SOLUTION>",
        "<start_working_out><end_working_out><SOLUTION>72</SOLUTION>",
        "<end_working_out>48<start_working_out><SOLUTION>72</SOLUTION>",
        "<start_working_out><start_working_out>4<end_working_out><SOLUTION>72</SOLUTION>",
    ],
)
def test_tags_need_the_whole_form_to_be_well_formed(text: str) -> None:
    assert STYLES["tags"].extract(text) == "72"
    assert not STYLES["tags"].well_formed(text)


PIECES = ["####", "#### 7\n", "Answer: ", "Answer:", "\\boxed{", "\\boxed{7}", "{", "}", "\n", " 12 ", "\\", *TAGS]
SOLUTIONS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@given(
    SOLUTIONS,
    st.sampled_from(["18", "1,080", "-7", "\\frac{1}{2}", "9 (apples)"]),
    st.sampled_from(sorted(STYLES.keys() - {"code"})),
)
def test_rendered_gold_is_always_in_form(solution: str, answer: str, style: str) -> None:
    """Whatever marks of the form the data set's solution holds itself."""
    text = STYLES[style].render(solution, answer)
    assert STYLES[style].extract(text) == answer
    assert STYLES[style].well_formed(text)


@given(SOLUTIONS.map(lambda text: f"x{text.strip()}\nend"))
def test_a_rendered_program_is_always_in_form(code: str) -> None:
    for text in (code, f"begin\n```\n{code}\n```\nend", f"begin\n````python\n{code}\nend"):
        assert STYLES["code"].extract(STYLES["code"].render(text, "")) == text


def test_render_by_hand() -> None:
    assert STYLES["hashes"].render("48 + 24 = 72", "72") == "48 + 24 = 72\n#### 72"
    assert STYLES["hashes"].render("", "72") == "#### 72"
    assert STYLES["boxed"].render("so \\boxed{072} it is", "72") == "so 072 it is\nThe answer is $\\boxed{72}$."
    assert STYLES["answer"].render("48 + 24 = 72", "72") == "48 + 24 = 72\nAnswer: 72"
    assert STYLES["tags"].render("48 + 24 = 72", "72") == (
        "<start_working_out>\n48 + 24 = 72\n<end_working_out>\n<SOLUTION>72</SOLUTION>"
    )


def test_boxes_are_outermost_and_balanced() -> None:
    assert [text[slice(*span)] for text in ["\\boxed{a\\boxed{b}c} {\\boxed{d}}"] for span in boxes(text)] == [
        "a\\boxed{b}c",
        "d",
    ]
    assert last_box("\\boxed{1} \\boxed{\\boxed{2}") == "2"
    assert boxes("\\boxed{" * 20_000) == []


def test_instructions_are_short_and_name_the_form() -> None:
    for name, mark in {
        "hashes": "####",
        "boxed": "\\boxed{}",
        "tags": "<SOLUTION></SOLUTION>",
        "answer": "Answer:",
    }.items():
        assert mark in STYLES[name].instruction
        assert len(STYLES[name].instruction) < 250
    assert "\n " not in STYLES["tags"].instruction
