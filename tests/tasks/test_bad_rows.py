"""What becomes of bad rows: all are named, `skip` leaves them out and changes nothing else."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from slimrl.config.task import TaskConfig
from slimrl.errors import DataError
from slimrl.records import Rejected
from slimrl.tasks import load_task
from slimrl.tasks.files import Splits, load
from tests.tasks.test_files import BAD, GOOD

HELD_OUT = '{"question": "held out?", "answer": "2"}'


def row(question: str, **more: object) -> str:
    return json.dumps({"question": question, "answer": "1", **more}, ensure_ascii=False)


def load_lines(folder: Path, train: list[str], test: list[str] | None, on_bad_row: str = "skip") -> Splits:
    files = {"path": str(folder / "train.jsonl")}
    (folder / "train.jsonl").write_bytes("\n".join(train).encode())
    if test is not None:
        files["test_path"] = str(folder / "test.jsonl")
        (folder / "test.jsonl").write_text("\n".join(test))
    return load(TaskConfig.model_validate({"name": "jsonl", "on_bad_row": on_bad_row, **files}))


def questions(splits: Splits) -> tuple[list[str], list[str]]:
    return [problem.question for problem in splits.train], [problem.question for problem in splits.test]


@pytest.mark.parametrize(("line", "what"), BAD.items(), ids=range(len(BAD)))
def test_any_bad_row_can_be_left_out(tmp_path: Path, line: str, what: str) -> None:
    splits = load_lines(tmp_path, [GOOD, f"  {line}\r", row("after")], [HELD_OUT])
    assert questions(splits) == (["q?", "after"], ["held out?"])
    (rejected,) = splits.rejected
    assert (rejected.where, rejected.row) == (f"{tmp_path}/train.jsonl:2", line[:2000])
    assert what in rejected.reason
    with pytest.raises(DataError) as caught:
        load_lines(tmp_path, [GOOD, line, row("after")], [HELD_OUT], "error")
    assert str(caught.value).startswith(f"{rejected.where}: {rejected.reason}; ")
    assert str(caught.value).endswith("; task.on_bad_row=skip leaves it out")


def test_the_error_counts_the_others_and_names_four(tmp_path: Path) -> None:
    lines = ["{", GOOD, "{}", GOOD, "3", "[]", "null", "true"]
    with pytest.raises(DataError) as caught:
        load_lines(tmp_path, lines, [HELD_OUT], "error")
    train = f"{tmp_path}/train.jsonl"
    assert str(caught.value) == (
        f"{train}:1: not valid JSON (Expecting property name enclosed in double quotes); write one object a line, or one array; "
        f"6 more rows are bad ({train}:3, {train}:4, {train}:5, {train}:6, ...); task.on_bad_row=skip leaves them out"
    )
    with pytest.raises(DataError, match=rf"; 1 more row is bad \({train}:2\); task"):
        load_lines(tmp_path, ["{", "{}", GOOD], [HELD_OUT], "error")


def test_bytes_that_are_no_text_are_shown(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(GOOD.encode() + b'\n{"question": "caf\xe9"}\n' + row("b").encode())
    splits = load(TaskConfig(name="jsonl", path=str(tmp_path / "train.jsonl"), on_bad_row="skip"))
    reason = "byte 0xe9 is not UTF-8; save the file as UTF-8"
    assert splits.rejected == (Rejected(f"{tmp_path}/train.jsonl:2", reason, '{"question": "caf\\xe9"}'),)


def test_elements_of_an_array_can_be_left_out_but_a_broken_array_cannot(tmp_path: Path) -> None:
    bad = [
        '{"question": "n?", "answer": NaN}',
        "7",
        '{"a": 1, "a": [2]}',
        '{"question":\n"n?"}',
        r'{"question": "\ud800"}',
    ]
    text = "[\n" + ",\n".join([GOOD, *bad, row("after")]) + "\n]"
    splits = load_lines(tmp_path, [text], [HELD_OUT])
    assert questions(splits)[0] == ["q?", "after"]
    assert [r.row for r in splits.rejected] == bad
    assert [r.where.rpartition(":")[2] for r in splits.rejected] == ["3", "4", "5", "6", "8"]
    assert splits.train[1].id == "jsonl/train/00006"
    for broken, line in (
        (text[:-2], 9),
        (text.replace("7,", "7"), 5),
        (text.replace("NaN", "nan"), 3),
        (text + "x", 10),
    ):
        with pytest.raises(DataError, match=rf"train\.jsonl:{line}: ") as caught:
            load_lines(tmp_path, [broken], [HELD_OUT])
        assert "skip" not in str(caught.value)
    (tmp_path / "train.jsonl").write_bytes(text.replace("after", "é").encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.jsonl:9: byte 0xe9 is not UTF-8; save the file as UTF-8$"):
        load(TaskConfig(name="jsonl", path=str(tmp_path / "train.jsonl"), on_bad_row="skip"))


SAME = ["What is 2+3 of it?", "What is 2 + 3 of it?", " what IS\t2+3 \n of it?", "What is 2+3\u00a0of it?"]


@pytest.mark.parametrize("again", SAME)
def test_a_question_counts_once_however_it_is_written(tmp_path: Path, again: str) -> None:
    train, test = f"{tmp_path}/train.jsonl", f"{tmp_path}/test.jsonl"
    splits = load_lines(tmp_path, [row(SAME[0]), row("other"), row(again, answer="3")], [HELD_OUT])
    assert questions(splits)[0] == [SAME[0], "other"]
    reason = f"the question is also that of {train}:1; remove one of them"
    assert splits.rejected == (Rejected(f"{train}:3", reason, row(again, answer="3")),)
    splits = load_lines(tmp_path, [row("other"), row(again)], [HELD_OUT, row(SAME[0])])
    assert questions(splits) == (["other"], ["held out?", SAME[0]])
    (rejected,) = splits.rejected
    assert rejected.where == f"{train}:2"
    assert f"also the held-out question {test}:2" in rejected.reason


def test_questions_that_only_look_alike_stay(tmp_path: Path) -> None:
    alike = ["What is 2+3?", "What is 2-3?", "What is 23?", "What is 2 3?", "What is 2.3?", "Whatis 2+3?"]
    assert questions(load_lines(tmp_path, [*map(row, alike)], [HELD_OUT]))[0] == alike


def test_a_row_that_is_left_out_keeps_no_other_out(tmp_path: Path) -> None:
    """The second row goes for its question, so its id is free for the third."""
    rows = [row("a", id="x"), row("a", id="y"), row("b", id="y"), row("c", id="x")]
    splits = load_lines(tmp_path, rows, [HELD_OUT])
    assert [problem.id for problem in splits.train] == ["x", "y"]
    assert [r.where[-1] for r in splits.rejected] == ["2", "4"]


def test_bad_rows_change_neither_ids_nor_splits_of_the_others(tmp_path: Path) -> None:
    lines = [row(f"q{i}") for i in range(60)]
    whole = load_lines(tmp_path, lines, None, "error")
    trained, tested = whole.train[5].question, whole.test[1].question
    lines[lines.index(row(trained))], lines[lines.index(row(tested))] = "{", "{}"
    holed = load_lines(tmp_path, lines, None)
    assert holed.train == tuple(p for p in whole.train if p.question != trained)
    assert holed.test == tuple(p for p in whole.test if p.question != tested)
    assert len(holed.test) > 1


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    for train, test, split, name in (
        (["{"], [HELD_OUT], "training", "train"),
        ([GOOD], ["{"], "held-out", "test"),
        ([GOOD, "{"], None, "held-out", "train"),
        ([HELD_OUT], [HELD_OUT], "training", "train"),
    ):
        with pytest.raises(DataError, match=rf"{name}\.jsonl:[12]: .*; no {split} row is left") as caught:
            load_lines(tmp_path, train, test)
        assert "skip" not in str(caught.value)


def test_long_rows_and_names_are_cut_and_control_characters_shown(tmp_path: Path) -> None:
    long = json.dumps({"\x1b[2J" + "k" * 5000: "x" * 5000})
    (rejected,) = load_lines(tmp_path, [GOOD, long], [HELD_OUT]).rejected
    assert rejected.row == long[:2000]
    assert rejected.reason.isprintable()
    assert len(rejected.reason) < 250


def test_difficulties_beyond_floats_are_bad_rows(tmp_path: Path) -> None:
    lines = [
        GOOD,
        f'{{"question": "n?", "answer": "1", "difficulty": {"9" * 400}}}',
        f'{{"question": "n?", "answer": {"9" * 5000}}}',
    ]
    first, second = load_lines(tmp_path, lines, [HELD_OUT]).rejected
    assert first.reason == "field 'difficulty' is not a finite number; correct it"
    assert second.reason == f"{'9' * 57}... is too large; change the row"


def test_the_task_carries_what_was_left_out(tmp_path: Path) -> None:
    splits = load_lines(tmp_path, [GOOD, "{"], [HELD_OUT])
    config = TaskConfig(
        name="jsonl", path=f"{tmp_path}/train.jsonl", test_path=f"{tmp_path}/test.jsonl", on_bad_row="skip"
    )
    assert load_task(config, instruction="", seed=0).rejected == splits.rejected
    assert len(splits.rejected) == 1


def test_rows_of_the_hub_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(repository: str, _: str | None, *, split: str) -> list[dict[str, object]]:
        if "MATH-500" in repository:
            return [{"problem": "held out", "answer": "1"}]
        return [
            {"problem": "p", "answer": "1", "score": math.nan},
            {"problem": "n", "answer": math.nan},
            {"problem": split},
        ]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    splits = load(TaskConfig(name="math", on_bad_row="skip"))
    assert questions(splits) == (["p"], ["held out"])
    first, second = splits.rejected
    assert first.where == "nlile/hendrycks-MATH-benchmark train row 1"
    assert first.reason == "field 'answer' must be a string or a number, but is not finite"
    assert second.row == '{"problem": "train"}'


ROWS: dict[str, dict[str, object]] = {
    "gsm8k": {"question": "q", "answer": "1+1=<<1+1=2>>2\n#### 2"},
    "aime": {"problem": "q", "answer": "025", "solution": "s", "difficulty": 4.0},
    "math": {"problem": "q", "answer": "1", "solution": "s", "level": "Level 3"},
    "svamp": {"Body": "He has 7.", "Question": "How many?", "Answer": 7.0, "Equation": "( 7.0 - 0.0 )"},
    "jsonl": {"question": "q", "answer": "1", "solution": "s", "id": "x", "difficulty": 2},
}
ODD = (None, True, 0, -1.5, 10**400, "", " ", "####", "<<>>", "\0", [], ["1"], {}, {"a": None}, "x" * 10_000)


@pytest.mark.parametrize("name", ROWS)
def test_no_odd_value_of_any_field_breaks_any_reader(tmp_path: Path, name: str) -> None:
    """Each is a row or is left out, and the row before it stays; a field that is not there is left out or optional."""
    good = ROWS[name] | ({"id": "first"} if name == "jsonl" else {})
    (first,) = (field for field in good if field.lower() in ("question", "problem"))
    (tmp_path / "test.jsonl").write_text(json.dumps(good | {first: "held out?"}))
    config = TaskConfig.model_validate(
        {"name": name, "path": f"{tmp_path}/train.jsonl", "test_path": f"{tmp_path}/test.jsonl", "on_bad_row": "skip"}
    )
    changed = [ROWS[name] | {first: "other", field: odd} for field in ROWS[name] for odd in ODD]
    missing = [{k: v for k, v in (ROWS[name] | {first: "other"}).items() if k != field} for field in ROWS[name]]
    kept = 0
    for other in (*changed, *missing):
        (tmp_path / "train.jsonl").write_text(json.dumps(good | {first: "good"}) + "\n" + json.dumps(other))
        splits = load(config)
        assert "good" in splits.train[0].question
        assert [r.where for r in splits.rejected] == [f"{tmp_path}/train.jsonl:2"] * (2 - len(splits.train))
        kept += len(splits.train) - 1
    assert 0 < kept < len(changed) + len(missing)
