"""The built-in task: right, reproducible, held out by construction; demonstrators do what their names say."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import pytest

from slimrl.config.task import ArithmeticConfig
from slimrl.tasks import arithmetic, arithmetic_texts
from slimrl.tasks.styles import STYLES

CONFIG = ArithmeticConfig()
SPLITS = arithmetic.load(CONFIG, seed=0)
TRAIN = SPLITS.train[:3000]
TEXTS = arithmetic.demonstrators(CONFIG, STYLES["hashes"])
FLAWED = ("slip", "skips_step", "misreads", "bare", "stops_early", "rambles")


def worked(text: str) -> list[tuple[int, str, int, int]]:
    """Every "a op b = c" of a text, by a reader that shares nothing with the task."""
    found = re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", text)
    return [(int(a), op, int(b), int(c)) for a, op, b, c in found]


def holds(a: int, op: str, b: int, c: int) -> bool:
    return {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}[op]


def final(text: str) -> str | None:
    """The number after `####` at the end, or None where the form is not kept."""
    match = re.search(r"\n#### (\d+)$", text)
    return match and match[1]


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def test_worked_solution_leads_to_the_answer() -> None:
    for problem in [*TRAIN, *SPLITS.test[:200], *SPLITS.harder[:200]]:
        steps = worked(problem.solution)
        assert all(holds(*step) for step in steps), problem
        assert [b[0] for b in steps[1:]] == [a[3] for a in steps[:-1]], problem
        assert str(steps[-1][3]) == problem.answer, problem
        assert len(steps) == problem.difficulty, problem


def test_question_gives_the_numbers_that_the_solution_uses() -> None:
    for problem in TRAIN:
        twos = re.findall(r"half|twice|as many again", problem.question)
        given = Counter([*numbers(problem.question), *(2 for _ in twos)])
        steps = worked(problem.solution)
        assert given == Counter([steps[0][0], *(b for _, _, b, _ in steps)]), problem.question


@pytest.mark.parametrize("limit", [10, 20, 999])
def test_every_number_is_within_the_limit(limit: int) -> None:
    splits = arithmetic.load(ArithmeticConfig(max_number=limit), seed=3)
    for problem in [*splits.train[:500], *splits.harder[:200]]:
        assert all(1 <= n <= limit for n in numbers(problem.question + " " + problem.solution)), problem


def test_questions_read_well() -> None:
    for problem in TRAIN:
        assert re.fullmatch(r"([A-Z][a-z]+ [^.?]+\. )+How many [^.?]+\?", problem.question), problem.question
        assert not re.search(r"[{}]|\b1 (?:" + "|".join(arithmetic_texts.THINGS) + ")", problem.question)


def test_problems_depend_on_seed_and_index_only() -> None:
    again = arithmetic.load(CONFIG, seed=0)
    assert again.train[5] == TRAIN[5]
    assert again.train[:10] == TRAIN[:10]
    assert SPLITS.train[-1] == SPLITS.train[len(SPLITS.train) - 1]
    other = arithmetic.load(CONFIG, seed=1)
    assert sum(a.question == b.question for a, b in zip(other.train[:300], TRAIN, strict=False)) < 3
    assert (other.test[:50], other.harder[:50]) == (SPLITS.test[:50], SPLITS.harder[:50])
    with pytest.raises(IndexError):
        SPLITS.test[len(SPLITS.test)]


def test_problems_are_the_same_in_every_version() -> None:
    # Stored evaluations are paired by id, so what stands behind an id must never change.
    digest = hashlib.blake2b(digest_size=8)
    for problem in [*SPLITS.test[:200], *SPLITS.harder[:200], *TRAIN[:200]]:
        digest.update(f"{problem.id}\n{problem.question}\n{problem.solution}\n".encode())
    assert digest.hexdigest() == "7f2f402711b6038e"


def test_splits_are_disjoint() -> None:
    held_out = {p.question for p in SPLITS.test[:10_000]}
    harder = {p.question for p in SPLITS.harder[:3_000]}
    seen = {p.question for seed in (0, 1) for p in arithmetic.load(CONFIG, seed=seed).train[:10_000]}
    assert not seen & (held_out | harder)
    assert not held_out & harder
    assert {arithmetic.split_of(q) for q in seen} == {"train"}


def test_steps_are_uniform_and_every_kind_occurs() -> None:
    counts = Counter(p.difficulty for p in TRAIN)
    assert set(counts) == {1.0, 2.0, 3.0}
    assert max(counts.values()) < 1.2 * min(counts.values())
    assert {p.difficulty for p in SPLITS.harder[:200]} == {4.0}
    kinds = Counter(kind for p in TRAIN for kind in p.columns["kinds"])  # type: ignore[attr-defined]
    assert set(kinds) == {kind.name for kind in (*arithmetic_texts.OPENINGS, *arithmetic_texts.KINDS)}
    assert min(kinds.values()) > 50


def test_demonstrators_are_pure_and_in_the_style() -> None:
    problem = TRAIN[2]
    for text in TEXTS.values():
        assert text(problem, 7) == text(problem, 7)
    boxed = arithmetic.demonstrators(CONFIG, STYLES["boxed"])
    assert boxed["solution"](problem, 0) == STYLES["boxed"].render(problem.solution, problem.answer)
    assert set(TEXTS) == {"solution", *FLAWED}


@pytest.mark.parametrize("name", ["slip", "misreads"])
def test_slips_and_misreadings_are_carried_on(name: str) -> None:
    changed = 0
    for problem in TRAIN:
        text = TEXTS[name](problem, 1)
        steps, right = worked(text), worked(problem.solution)
        assert final(text) == str(steps[-1][3])
        assert len(steps) == len(right)
        assert [b[0] for b in steps[1:]] == [a[3] for a in steps[:-1]]
        assert sum(not holds(*step) for step in steps) == (name == "slip")
        readings = sum(a[1] != b[1] for a, b in zip(steps, right, strict=True))
        assert readings <= (name == "misreads")
        changed += final(text) != problem.answer
    assert changed > {"slip": 0.99, "misreads": 0.7}[name] * len(TRAIN)


def test_skipping_leaves_the_last_step_out() -> None:
    for problem in TRAIN:
        steps = worked(TEXTS["skips_step"](problem, 0))
        right = worked(problem.solution)
        assert steps == (right[:-1] or right)
        assert final(TEXTS["skips_step"](problem, 0)) == str(steps[-1][3])


def test_bare_texts_are_right_and_out_of_form() -> None:
    for problem in TRAIN[:500]:
        text = TEXTS["bare"](problem, 2)
        assert final(text) is None
        assert str(numbers(text)[-1]) == problem.answer


def test_stopping_early_leaves_a_step_open() -> None:
    for problem in TRAIN[:500]:
        text = TEXTS["stops_early"](problem, 2)
        assert text.endswith("=")
        assert final(text) is None
        assert problem.solution.startswith(text)


def test_rambling_overruns_the_budget() -> None:
    for problem in TRAIN[:500]:
        text = TEXTS["rambles"](problem, 0)
        symbols = re.findall(r"\d|[-+*/=]|\n|Again|####", text)
        assert symbols.index("####") > 64
