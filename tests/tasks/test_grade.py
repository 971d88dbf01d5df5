"""`slimrl grade` as a function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimrl.config.sections import TaskConfig
from slimrl.errors import DataError
from slimrl.tasks.grade import grade_file


def _file(folder: Path, *rows: object) -> str:
    path = folder / "outputs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_grades_and_writes_rows(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        {"id": "a", "answer": "72", "completion": "48+24\n#### 72"},
        {"id": "a", "answer": "1,080", "completion": "so 1080."},
        {"id": 7, "answer": 18, "completion": "#### 17"},
        {"id": "c", "answer": "5", "completion": ""},
    )
    out = tmp_path / "rows.jsonl"
    summary = grade_file(TaskConfig(name="gsm8k"), file, str(out))
    assert (summary.n, summary.strict, summary.lenient) == (4, 0.25, 0.5)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {"id": "a", "strict": True, "lenient": True, "extracted_strict": "72", "extracted_lenient": "72"}
    assert rows[1] == {"id": "a", "strict": False, "lenient": True, "extracted_strict": "", "extracted_lenient": "1080"}
    assert rows[2] == {"id": 7, "strict": False, "lenient": False, "extracted_strict": "17", "extracted_lenient": "17"}


def test_thinking_and_end_tokens_of_stored_outputs_are_passed_over(tmp_path: Path) -> None:
    texts = [
        "#### 18<|im_end|>",
        "<think>#### 17</think>\n#### \\boxed{18}</s>",
        "<think>#### 18",
        "#### 18<|im_end|>17",
    ]
    file = _file(tmp_path, *({"id": str(i), "answer": "18", "completion": text} for i, text in enumerate(texts)))
    summary = grade_file(TaskConfig(name="gsm8k"), file, None)
    assert (summary.n, summary.strict, summary.lenient) == (4, 0.5, 0.5)


def test_style_comes_from_the_task(tmp_path: Path) -> None:
    file = _file(tmp_path, {"id": "a", "answer": "72", "completion": "\\boxed{72}"})
    assert grade_file(TaskConfig(name="aime", style="boxed"), file, None).strict == 1.0
    assert grade_file(TaskConfig(name="aime", style="hashes"), file, None).strict == 0.0


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"id": "a", "answer": "72"}, "no field 'completion'"),
        ({"answer": "72", "completion": "x"}, "no field 'id'"),
        ({"id": "a", "completion": "x"}, "no field 'answer'"),
        ({"id": "a", "answer": "72", "completion": None}, "'completion' must be a string, but is null"),
        ({"id": "a", "answer": "x+1", "completion": "x"}, "task.checker=symbolic"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, row: object, what: str) -> None:
    file = _file(tmp_path, {"id": "a", "answer": "72", "completion": ""}, row)
    with pytest.raises(DataError) as caught:
        grade_file(TaskConfig(name="gsm8k"), file, None)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert what in str(caught.value)


def test_every_row_counts(tmp_path: Path) -> None:
    file = _file(tmp_path, {"id": "a", "answer": "72", "completion": ""}, {"id": "b"}, 3)
    with pytest.raises(DataError, match=r"outputs\.jsonl:3: expected an object"):
        grade_file(TaskConfig(name="gsm8k"), file, None)
    with pytest.raises(DataError, match=r"outputs\.jsonl:3: expected an object"):
        grade_file(TaskConfig(name="gsm8k", on_bad_row="skip"), file, None)


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    file = _file(tmp_path, {"id": "a", "answer": "72", "completion": ""})
    with pytest.raises(DataError, match="cannot be written"):
        grade_file(TaskConfig(name="gsm8k"), file, str(tmp_path / "missing" / "rows.jsonl"))
