"""Five hundred broken files: what is loaded is what a second reader finds in them, and what is not is named file:line."""

from __future__ import annotations

import json
import math
import random
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from slimrl.config.task import TaskConfig
from slimrl.errors import DataError
from slimrl.records import Problem
from slimrl.tasks.files import Splits, load
from tests.tasks.corruptions import HELD_OUT, KINDS

FILES = 500
ANSWERS = {  # as the file spells them -> as they are loaded
    '"007"': "007", '"1.50"': "1.50", "1.50": "1.50", "-0.0": "-0.0", "1e3": "1e3", '"1e400"': "1e400", "12345678901234567890123": "12345678901234567890123",
    '"1,080"': "1,080", '" 5 "': " 5 ", r'"\\frac{1}{2}"': r"\frac{1}{2}", '"5\\u2028\u20285"': "5\u2028\u20285", '"\U0001f600é"': "\U0001f600é", r'"\u0000"': "\0",
}  # fmt: skip
EXTRA = '"tag": {"a": [1, 2.5, true, null, "x"]}'
COLUMNS = {"tag": {"a": [1, 2.5, True, None, "x"]}}
GOOD: dict[bytes, Problem] = {
    f'{{"question": "Wie viele? «{i}»", "answer": {spelled}, "solution": "s{i}", "difficulty": {i}, {EXTRA}}}'.encode():
    Problem("", f"Wie viele? «{i}»", answer, f"s{i}", float(i), COLUMNS)
    for i, (spelled, answer) in enumerate(ANSWERS.items())
}  # fmt: skip
"""Lines that no corruption touched, and what they say, known without any reader."""


class Number(str):
    """A number of the second reader, as it is spelt."""


BAD = object()
"""What the second reader finds in place of what no row may hold."""


def second_reader(text: str) -> object:
    def pairs(items: list[tuple[str, object]]) -> object:
        return dict(items) if len(dict(items)) == len(items) else BAD

    return json.loads(text, object_pairs_hook=pairs, parse_constant=lambda _: BAD, parse_int=Number, parse_float=Number)


def sound(value: object) -> bool:
    """Nothing in it that no row may hold."""
    if isinstance(value, Number):
        digits = value.lstrip("-")
        return len(digits) <= 4300 if digits.isdigit() else math.isfinite(float(value))
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(sound(key) and sound(item) for key, item in value.items())
    return all(map(sound, value)) if isinstance(value, list) else value is not BAD


def as_python(value: object) -> object:
    if isinstance(value, Number):
        return int(value) if value.lstrip("-").isdigit() else float(value)
    if isinstance(value, dict):
        return {key: as_python(item) for key, item in value.items()}
    return [as_python(item) for item in value] if isinstance(value, list) else value


def problem_of(value: object) -> Problem | None:
    """What a row of the kind `jsonl` says, by the second reader; None where it is bad."""
    if not isinstance(value, dict) or not sound(value) or {"prompts", "completions", "completion_ids"} & value.keys():
        return None
    answer = value.get("answer")
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    texts = [value.get("question"), answer, value.get("solution") or "", value.get("id") or "given"]
    if not all(isinstance(text, str) for text in texts) or not all(text.strip() for text in (*texts[:2], texts[3])):
        return None
    difficulty = value.get("difficulty") or Number("0")
    if any(isinstance(value.get(key), Number) for key in ("question", "solution")) or not isinstance(
        difficulty, Number
    ):
        return None
    if not math.isfinite(float(difficulty)):
        return None
    columns = {
        k: as_python(v) for k, v in value.items() if k not in ("question", "answer", "solution", "id", "difficulty")
    }
    own = "" if value.get("id") is None else str(value["id"])
    return Problem(own, str(texts[0]), str(texts[1]), str(texts[2]), float(difficulty), columns)


def line_problem(line: bytes) -> Problem | None:
    known = GOOD.get(line.removesuffix(b"\r"))
    try:
        return known or problem_of(second_reader(line.decode().strip()))
    except (ValueError, RecursionError):
        return None


def as_file(found: list[tuple[int, Problem | None]]) -> tuple[list[str], list[int]]:
    """(line, row) -> the training problems written out with their types, and the lines of the bad rows."""
    kept: list[str] = []
    bad: list[int] = []
    asked = {HELD_OUT.lower()}
    ids: set[str] = set()
    for index, (line, problem) in enumerate(found):
        name = (problem and problem.id) or f"jsonl/train/{index:05d}"
        question = problem and " ".join(unicodedata.normalize("NFC", problem.question).casefold().split())
        if problem is None or question in asked or name in ids:
            bad.append(line)
            continue
        asked.add(str(question))
        ids.add(name)
        rest = (problem.question, problem.answer, problem.solution, problem.difficulty, problem.columns)
        kept.append(repr(Problem(name, *rest)))
    return kept, bad


def expected(data: bytes) -> tuple[list[str], list[int]] | None:
    """What a file must be loaded as; None where it must be refused whole."""
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    text = data.decode("utf-8", "replace")
    if not text.lstrip().startswith("["):
        lines = [line for line in enumerate(data.split(b"\n"), start=1) if line[1].decode("utf-8", "replace").strip()]
        return as_file([(number, line_problem(line)) for number, line in lines]) if lines else None
    try:
        rows = second_reader(data.decode())
    except (ValueError, RecursionError):
        return None
    assert isinstance(rows, list)
    first = text[: text.index("[")].count("\n") + 2  # these arrays have a row a line, from the second line on
    return as_file([(first + index, problem_of(row)) for index, row in enumerate(rows)]) if rows else None


def load_from(folder: Path, data: bytes, on_bad_row: str) -> Splits:
    (folder / "train.jsonl").write_bytes(data)
    (folder / "test.jsonl").write_text(json.dumps({"question": HELD_OUT, "answer": "1"}))
    files = {"path": str(folder / "train.jsonl"), "test_path": str(folder / "test.jsonl")}
    return load(TaskConfig.model_validate({"name": "jsonl", "on_bad_row": on_bad_row, **files}))


def refusal(folder: Path, data: bytes, on_bad_row: str) -> int:
    """The line that the error names, 0 for a file without any row."""
    with pytest.raises(DataError) as caught:
        load_from(folder, data, on_bad_row)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 1500
    if "has no rows" in sentence:
        return 0
    place = re.match(re.escape(f"{folder}/train.jsonl") + r":(\d+): \S", sentence)
    assert place, sentence
    return int(place[1])


def check(folder: Path, data: bytes) -> int:
    """Number of bad rows, -1 for a file that is refused whole."""
    wanted = expected(data)
    if wanted is None:
        line = refusal(folder, data, "skip")
        assert refusal(folder, data, "error") == line
        assert line <= data.count(b"\n") + 1
        return -1
    kept, bad = wanted
    if bad:
        assert refusal(folder, data, "error") in bad
    else:
        splits = load_from(folder, data, "error")
        assert [repr(problem) for problem in splits.train] == kept
        assert splits.rejected == ()
    if not kept:
        assert refusal(folder, data, "skip") in bad
        return len(bad)
    splits = load_from(folder, data, "skip")
    assert [repr(problem) for problem in splits.train] == kept
    assert sorted(row.where for row in splits.rejected) == sorted(f"{folder}/train.jsonl:{line}" for line in bad)
    lines = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "backslashreplace").split("\n")
    for row in splits.rejected:
        assert 0 < len(row.row) <= 2000
        assert row.row in lines[int(row.where.rpartition(":")[2]) - 1][:2100]
        assert row.reason
    return len(bad)


@pytest.mark.parametrize("name", KINDS)
def test_broken_files_give_right_rows_or_an_error_with_file_and_line(name: str, tmp_path: Path) -> None:
    outcome, corrupt = KINDS[name]
    for seed in range(FILES // len(KINDS)):
        rng = random.Random(f"{name} {seed}")
        bad = check(tmp_path, corrupt(rng, list(GOOD)))
        assert outcome == "any" or (bad != 0) == (outcome == "some"), (seed, bad)


def test_the_files_are_five_hundred() -> None:
    assert FILES % len(KINDS) == 0


def written(answers: list[str], array: bool, escaped: bool) -> bytes:
    rows = [json.dumps({"question": f"{i}?", "answer": a}, ensure_ascii=escaped) for i, a in enumerate(answers)]
    return (f"[{','.join(rows)}]" if array else "\n".join(rows)).encode()


NASTY = [
    "007",
    "1.50",
    "1e400",
    "-0",
    "NaN",
    "null",
    "\u20285\u2028",
    "\0",
    "\ufeff",
    "5\r\n",
    "\x85 5",
    "\U0001f600",
    '"',
    "\\",
    "\\u0041",
    "''",
    "½",
    " 5 ",
]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=100, max_size=100),
    st.booleans(),
    st.booleans(),
)
@example(NASTY, True, False)
@example(NASTY, False, False)
@example(NASTY, False, True)
def test_answers_survive_unchanged(
    tmp_path_factory: pytest.TempPathFactory, answers: list[str], array: bool, escaped: bool
) -> None:
    loaded = load_from(tmp_path_factory.getbasetemp(), written(answers, array, escaped), "error")
    assert [problem.answer for problem in loaded.train] == answers
