"""The case study's four rewards against points worked out by hand: published defects, and mended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrl.rewards import case_study
from slimrl.tasks.styles import STYLES, TAGS

S, E, O, C = TAGS  # noqa: E741
GOLD = f"{S}\n48+24\n{E}\n{O}72{C}"

# text, gold answer, published (exact, approximate, answer, numbers), mended
TABLE = {
    "gold": (GOLD, "72", (3, 2, 3, 1.5), (3, 2, 3, 1.5)),
    "nothing": ("", "72", (0, -2, 0, 0), (0, -2, 0, 0)),
    "no tags": ("72", "72", (0, -2, 0, 0), (0, -2, 0, 0)),
    "wrong": (f"{S}w{E}{O}5{C}", "72", (3, 2, -1, 0), (3, 2, -1, 0)),
    "spaces": (f"{S}w{E}{O} 72 {C}", "72", (3, 2, 1.5, 1.5), (3, 2, 3, 1.5)),
    "within a tenth": (f"{S}w{E}{O}79{C}", "72", (3, 2, 0.5, 0), (3, 2, 0.5, 0)),
    "exactly a tenth above": (f"{S}w{E}{O}11{C}", "10", (3, 2, 0.5, 0), (3, 2, 0.5, 0)),
    "exactly a tenth below": (f"{S}w{E}{O}9{C}", "10", (3, 2, 0.5, 0), (3, 2, 0.5, 0)),
    "within a fifth": (f"{S}w{E}{O}86{C}", "72", (3, 2, 0.25, 0), (3, 2, 0.25, 0)),
    "exactly a fifth above": (f"{S}w{E}{O}12{C}", "10", (3, 2, 0.25, 0), (3, 2, 0.25, 0)),
    "exactly a fifth below": (f"{S}w{E}{O}8{C}", "10", (3, 2, 0.25, 0), (3, 2, 0.25, 0)),
    "negated": (f"{S}w{E}{O}-72{C}", "72", (3, 2, -1, 1.5), (3, 2, -1, 0)),
    "words": (f"{S}w{E}{O}many{C}", "72", (3, 2, -0.5, 0), (3, 2, -0.5, 0)),
    "decimals": (f"{S}w{E}{O}72.0{C}", "72", (3, 2, 0.5, 1.5), (3, 2, 3, 1.5)),
    "a unit": (f"{S}w{E}{O}72 clips{C}", "72", (3, 2, -0.5, 1.5), (3, 2, 3, 1.5)),
    "a sentence": (f"{S}w{E}{O}It is 72.{C}", "72", (3, 2, -0.5, 1.5), (3, 2, -0.5, 1.5)),
    "comma in the gold": (f"{S}w{E}{O}1,080{C}", "1,080", (3, 2, 3, 0), (3, 2, 3, 1.5)),
    "comma only in the gold": (f"{S}w{E}{O}1080{C}", "1,080", (3, 2, -0.5, 0), (3, 2, 3, 1.5)),
    "comma only in the guess": (f"{S}w{E}{O}1,080{C}", "1080", (3, 2, -0.5, 0), (3, 2, 3, 1.5)),
    "dollars and a comma": (f"{S}w{E}{O}$144,000{C}", "144", (3, 2, -0.5, 1.5), (3, 2, -1, 0)),
    "negative gold": (f"{S}w{E}{O}-7{C}", "-7", (3, 2, 3, 0), (3, 2, 3, 1.5)),
    "gold of zero": (f"{S}w{E}{O}0{C}", "0", (3, 2, 3, 1.5), (3, 2, 3, 1.5)),
    "wrong where gold is zero": (f"{S}w{E}{O}5{C}", "0", (3, 2, -0.5, 0), (3, 2, -1, 0)),
    "a lone point": (f"{S}w{E}{O}.{C}", "72", (3, 2, -0.5, 0), (3, 2, -0.5, 0)),
    "two numbers": (f"{S}w{E}{O}72 or 80{C}", "72", (3, 2, -0.5, 1.5), (3, 2, -0.5, 0)),
    "junk around": (f"Well.\n{GOLD}\nBye.", "72", (3, 2, 3, 1.5), (0, 0, 0, 1.5)),
    "junk between": (f"{S}w{E} so {O}72{C}", "72", (3, 2, 3, 1.5), (0, 1, 3, 1.5)),
    "solution only": (f"{O}72{C}", "72", (0, 0, 0, 1.5), (0, 0, 3, 1.5)),
    "tag not closed": (f"{S}w{E}{O}72", "72", (0, 1, 0, 1.5), (0, 1, 0, 1.5)),
    "tags named in prose": (f"I use {S} and {E} and {O}{C}: 72", "72", (0, 2, 0, 1.5), (0, -1, 0, 0)),
    "two solutions": (f"{S}w{E}{O}5{C}{O}72{C}", "72", (3, 0, -0.5, 0), (0, 0, 0, 0)),
    "answer on the next line": (f"{S}w{E}{O}\n72\n{C}", "72", (3, 2, 1.5, 0), (3, 2, 3, 1.5)),
    "digits of another script": (f"{S}w{E}{O}\uff17\uff12{C}", "72", (3, 2, 0.5, 1.5), (3, 2, -0.5, 0)),
    "wrong order": (f"{O}72{C}{S}w{E}", "72", (0, 2, 0, 1.5), (0, -1, 0, 1.5)),
}
NAMES = ("match_format_exactly", "match_format_approximately", "check_answer", "check_numbers")


def _points(text: str, gold: str, suffix: str) -> tuple[float, ...]:
    functions: list[Callable[..., list[float]]] = [getattr(case_study, name + suffix) for name in NAMES]
    return tuple(function([text], answer=[gold], question=["q"])[0] for function in functions)


@pytest.mark.parametrize("case", TABLE)
def test_published_points(case: str) -> None:
    text, gold, published, _ = TABLE[case]
    assert _points(text, gold, "_published") == published


@pytest.mark.parametrize("case", TABLE)
def test_mended_points(case: str) -> None:
    text, gold, _, mended = TABLE[case]
    assert _points(text, gold, "") == mended


def test_the_maximum_is_nine_and_a_half() -> None:
    assert sum(_points(GOLD, "72", "")) == sum(_points(GOLD, "72", "_published")) == 9.5


@given(
    st.lists(st.sampled_from([*TAGS, "72", "-7", "1,080", " ", "\n", "so ", ".", "0"]), max_size=10).map("".join),
    st.sampled_from(["72", "-7", "1,080", "0"]),
    st.sampled_from(["", "_published"]),
)
def test_points_stay_in_their_bounds(text: str, gold: str, suffix: str) -> None:
    exact, approximate, answer, numbers = _points(text, gold, suffix)
    assert exact in (0, 3)
    assert approximate in (-2, -1, 0, 1, 2)
    assert answer in (-1, -0.5, 0, 0.25, 0.5, 3) or (suffix and answer == 1.5)
    assert numbers in (0, 1.5)


@given(st.text(max_size=40), st.integers(-(10**6), 10**6))
def test_rendered_gold_earns_all_mended_points(solution: str, gold: int) -> None:
    for spelling in (str(gold), f"{gold:,}", f" {gold}.0 "):
        assert sum(_points(STYLES["tags"].render(solution, spelling), f"{gold:,}", "")) == 9.5


def test_rows_are_scored_one_by_one() -> None:
    assert case_study.check_answer([GOLD, GOLD, ""], answer=["72", "5", "72"]) == [3.0, -1.0, 0.0]
