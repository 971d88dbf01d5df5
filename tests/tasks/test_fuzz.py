"""Five hundred broken files: what is loaded is what a second reader finds in them, and what is not is named file:line."""

from __future__ import annotations

import json
import math
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from slimrl.config import TaskConfig
from slimrl.errors import DataError
from slimrl.records import Problem
from slimrl.tasks.files import Splits, load

FILES = 500
ANSWERS = {  # as the file spells them -> as they are loaded
    '"007"': "007", '"1.50"': "1.50", "1.50": "1.50", "-0.0": "-0.0", "1e3": "1e3", '"1e400"': "1e400", "12345678901234567890123": "12345678901234567890123",
    '"1,080"': "1,080", '" 5 "': " 5 ", r'"\\frac{1}{2}"': r"\frac{1}{2}", '"5\\u2028\u20285"': "5\u2028\u20285", '"\U0001f600é"': "\U0001f600é", r'"\u0000"': "\0",
}  # fmt: skip
HELD_OUT = "Which one is held out?"
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
    texts = [value.get("question"), value.get("answer"), value.get("solution") or "", value.get("id") or "given"]
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
        question = problem and " ".join(unicodedata.normalize("NFKC", problem.question).casefold().split())
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
    data = data.removeprefix(b"\xef\xbb\xbf")
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


Corruption = Callable[[random.Random, list[bytes]], bytes]
KINDS: dict[str, tuple[str, Corruption]] = {}
"""name -> (whether it leaves bad rows: some, none, or any number; what it does to the lines of a good file)"""


def kind(outcome: str) -> Callable[[Corruption], Corruption]:
    def add(function: Corruption) -> Corruption:
        KINDS[function.__name__] = (outcome, function)
        return function

    return add


def whole(lines: list[bytes]) -> bytes:
    return b"\n".join(lines) + b"\n"


def array(lines: list[bytes]) -> bytes:
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


def put(rng: random.Random, lines: list[bytes], *more: bytes) -> list[bytes]:
    place = rng.randrange(len(lines) + 1)
    return [*lines[:place], *more, *lines[place:]]


def flipped(rng: random.Random, data: bytes, bits: int) -> bytes:
    changed = bytearray(data)
    for _ in range(bits):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def spoil(rng: random.Random) -> bytes:
    """A row that is JSON, of objects and arrays that end, and still no row."""
    number = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 5000, "9" * 400 + ".0"])
    other = rng.choice(["null", "true", "[]", "{}", '["7"]', '"  "', '""'])
    return rng.choice(
        [
            f'{{"question": "n?", "answer": {number}}}',
            f'{{"question": "n?", "answer": "1", "tag": [{{"deep": {number}}}]}}',
            f'{{"question": {rng.choice([other, "5"])}, "answer": "1"}}',
            f'{{"question": "n?", "answer": {other}}}',
            '{"question": "n?", "answer": "1", "difficulty": "hard"}',
            f'{{"question": "n?", "answer": "1", "difficulty": {"9" * 400}}}',
            '{"question": "n?", "answer": "1", "solution": 5}',
            '{"question": "n?", "answer": "1", "completions": []}',
            '{"question": "n?", "answer": "1", "answer": "2"}',
            '{"question": "n?", "answer": "1", "tag": {"a": 1, "\\u0061": 2}}',
            '{"question": "n?", "answer": "\\ud83d"}',
            rng.choice(['{"question": "n?"}', '{"answer": "1"}', "{}", '{"q\\n\\u001b[2J": "n?"}']),
            rng.choice(['["question", "answer"]', '"question"', "3", "null", "true"]),
            f'{{"question": "{HELD_OUT.upper()}", "answer": "1"}}',
        ]
    ).encode()


@kind("any")
def cut_short(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole(lines)[: rng.randrange(len(whole(lines)))]


@kind("any")
def array_cut_short(rng: random.Random, lines: list[bytes]) -> bytes:
    return array(lines)[: rng.randrange(len(array(lines)))]


@kind("any")
def bits(rng: random.Random, lines: list[bytes]) -> bytes:
    return flipped(rng, whole(lines), rng.choice([1, 1, 2, 30]))


@kind("any")
def bytes_lost_and_gained(rng: random.Random, lines: list[bytes]) -> bytes:
    data = whole(lines)
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.randrange(4)) + data[place + rng.randrange(40) :]


@kind("none")
def byte_order_mark_crlf_and_blank_lines(rng: random.Random, lines: list[bytes]) -> bytes:
    blank = rng.choice([b"", b" \t", "\u2028".encode(), b"\r"])
    return b"\xef\xbb\xbf" + b"\r\n".join(put(rng, lines, blank, blank))


@kind("some")
def byte_order_mark_in_the_middle(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole([lines[0], *put(rng, lines[1:], b"\xef\xbb\xbf" + spoil(rng))])


@kind("some")
def nul_bytes(rng: random.Random, lines: list[bytes]) -> bytes:
    broken = bytearray(rng.choice(lines).replace(b"Wie", b"Wer"))
    place = rng.randrange(1, len(broken))
    broken[place:] = bytes(rng.randrange(1, 2000))
    return whole([lines[0], *put(rng, lines[1:], bytes(broken))])


@kind("some")
def not_utf8(rng: random.Random, lines: list[bytes]) -> bytes:
    foreign = rng.choice([b"\xe9", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x82", b"\xf4\x90\x80\x80"])
    return whole(put(rng, lines, b'{"question": "caf' + foreign + b'", "answer": "1"}'))


@kind("some")
def another_encoding(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole(lines).decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1"]), "replace")


@kind("some")
def spoilt_rows(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole([lines[0], *put(rng, lines[1:], *(spoil(rng) for _ in range(rng.randrange(1, 9))))])


@kind("some")
def spoilt_elements(rng: random.Random, lines: list[bytes]) -> bytes:
    return array(put(rng, lines, *(spoil(rng) for _ in range(rng.randrange(1, 9)))))


@kind("none")
def sound_array(rng: random.Random, lines: list[bytes]) -> bytes:
    rng.shuffle(lines)
    return rng.choice([b"", b"\xef\xbb\xbf", b"\n \n"]) + array(lines)


@kind("any")
def array_out_of_shape(rng: random.Random, lines: list[bytes]) -> bytes:
    data = array(lines)
    place = rng.choice([i for i in range(len(data)) if data[i : i + 1] in b"[]{},:\n"])
    return data[:place] + rng.choice([b"", b"[", b"]", b",", b"}", b"\xff", b"\0"]) + data[place + 1 :]


@kind("some")
def array_with_more_behind(rng: random.Random, lines: list[bytes]) -> bytes:
    return array(lines[1:]) + rng.choice([b"]", b",", b"[]", b"x", lines[0]])


@kind("some")
def array_without_utf8(rng: random.Random, lines: list[bytes]) -> bytes:
    return array(put(rng, lines, b'{"question": "\xff", "answer": "1"}'))


@kind("none")
def lines_swapped(rng: random.Random, lines: list[bytes]) -> bytes:
    rng.shuffle(lines)
    return whole(lines)


@kind("some")
def question_again(rng: random.Random, lines: list[bytes]) -> bytes:
    again = rng.choice(lines)
    for change in rng.sample([(b"Wie", b"WIE"), (b"Wie", "Ｗｉｅ".encode()), (b"? ", b"?  \\n")], rng.randrange(4)):
        again = again.replace(*change)
    return whole(put(rng, lines, again))


@kind("some")
def id_again(rng: random.Random, lines: list[bytes]) -> bytes:
    twins = [
        f'{{"question": "{q}", "answer": "1", "id": {i}}}'.encode() for q, i in (("a", '"7"'), ("b", "7"), ("c", "8"))
    ]
    return whole([*put(rng, lines, *twins), b'{"question": "d", "answer": "1", "id": "jsonl/train/00000"}'])


@kind("some")
def lines_joined(rng: random.Random, lines: list[bytes]) -> bytes:
    place = rng.randrange(1, len(lines))
    glue = rng.choice([b"", b" ", b"\r", b",", "\u2028".encode()])
    return whole([*lines[: place - 1], lines[place - 1] + glue + lines[place], *lines[place + 1 :]])


@kind("some")
def line_split(rng: random.Random, lines: list[bytes]) -> bytes:
    place, at = rng.randrange(len(lines)), rng.randrange(1, 40)
    return whole([*lines[:place], lines[place][:at], lines[place][at:], *lines[place + 1 :]])


@kind("some")
def too_deep(rng: random.Random, lines: list[bytes]) -> bytes:
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    deep = rng.choice([2_000, 100_000])
    tail = rng.choice([b"", b"1" + closing * deep + b"}"])
    return whole(put(rng, lines, b'{"question": "n?", "answer": "1", "tag": ' + opening * deep + tail))


def many(rng: random.Random) -> str:
    """Fields of more than a megabyte."""
    filler = rng.choice(["x" * 6, "\\u0000", "é" * 3, "\u2028" * 2, "«\\\\»"]) * 200_000
    return ", ".join([f'"k": "{filler}"', *(f'"k{i}": {i}' for i in range(5000))])


@kind("none")
def megabyte(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole(put(rng, lines, f'{{"question": "n?", "answer": "{"7" * 4000}", {many(rng)}}}'.encode()))


@kind("some")
def broken_megabyte(rng: random.Random, lines: list[bytes]) -> bytes:
    end = rng.choice([", ", "", ', "k4999": 1}', "} {}", ', "question": ""}', f', "{"k" * 300_000}": NaN}}', "\0}"])
    return whole(put(rng, lines, f'{{"question": "n?", {many(rng)}{end}'.encode()))


@kind("none")
def long_integers(rng: random.Random, lines: list[bytes]) -> bytes:
    digits = "-" * rng.randrange(2) + "9" * rng.choice([19, 20, 309, 310, 4300])
    return whole(put(rng, lines, f'{{"question": "n?", "answer": {digits}, "tag": [{digits}]}}'.encode()))


@kind("some")
def nothing_but_bad_rows(rng: random.Random, lines: list[bytes]) -> bytes:
    first = b'{"question": "n?"}'
    return whole([first, *(spoil(rng) for _ in range(len(lines)))])


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
