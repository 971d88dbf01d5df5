"""Files in other formats: read where nothing has to be guessed, else named for what they are, with the way out."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from slimrl.config.task import TaskConfig
from slimrl.errors import DataError
from slimrl.tasks import load_task
from slimrl.tasks.files import load
from slimrl.tasks.grade import grade_file
from slimrl.tasks.rows import plain
from slimrl.tasks.sources import read_rows
from tests.conftest import SHARED

ROWS = [{"id": str(i), "question": f"What is {i}+1?", "answer": str(i + 1), "completion": "#### 3"} for i in range(9)]
JSONL = "\n".join(map(json.dumps, ROWS))
CASES = SHARED.parent / "cases" / "data"


def zipped(name: str = "rows.jsonl") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, JSONL)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("rows.jsonl")
        info.size = len(JSONL)
        archive.addfile(info, io.BytesIO(JSONL.encode()))
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    return buffer.getvalue()


def database(folder: Path) -> bytes:
    file = folder / "rows.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table rows (question, answer)")
    return file.read_bytes()


def by_column(**more: object) -> dict[str, object]:
    return {key: [row[key] for row in ROWS] for key in ROWS[0]} | more


FOREIGN: dict[str, tuple[bytes | str, str]] = {
    "parquet, torn": (b"PAR1\x15\x04", "is Parquet that pyarrow cannot read"),
    "gzip, torn": (gzip.compress(JSONL.encode())[:-9], "is gzip that cannot be unpacked"),
    "zip in gzip": (gzip.compress(zipped()), "is a zip archive"),
    "bzip2": (bz2.compress(JSONL.encode()), "is bzip2"),
    "xz": (lzma.compress(JSONL.encode()), "is xz"),
    "zip": (zipped(), "is a zip archive"),
    "workbook": (zipped("xl/workbook.xml"), "is an Excel workbook (xlsx), which is not read; save its sheet as CSV"),
    "tar": (tarred(), "is a tar archive"),
    "zstandard": (b"\x28\xb5\x2f\xfd\x04", "is Zstandard"),
    "feather": (b"ARROW1\x00\x00\xff", "is Arrow (Feather)"),
    "arrow stream": (b"\xff\xff\xff\xff\x10\x00\x00\x00", "is an Arrow stream"),
    "numpy": (array(), "is a NumPy array"),
    "pickle": (pickle.dumps(ROWS), "is a Python pickle"),
    "web page": (" <!DOCTYPE html>\n<html></html>", "is a web page"),
    "xml": ("<?xml version='1.0'?><rows/>", "is XML"),
    "git lfs": ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git lfs pull"),
    "utf-16": (JSONL.encode("utf-16"), ":1: this is UTF-16 text; save the file as UTF-8"),
    "utf-16 without a mark": (JSONL.encode("utf-16-be"), ":1: this is UTF-16 text"),
    "utf-32": (JSONL.encode("utf-32"), ":1: this is UTF-32 text"),
    "python": ("\n".join(map(repr, ROWS)), "holds Python dictionaries"),
    "python list": (repr(ROWS), "holds Python dictionaries"),
    "yaml": ("- question: a\n  answer: 1\n", "looks like YAML"),
    "spread objects": ("\n".join(json.dumps(row, indent=1) for row in ROWS), "spread over several lines"),
    "by column, uneven": (json.dumps(by_column(answer=["1"])), "have different lengths (id 9, question 9, answer 1, completion 9)"),
    "several lists": (json.dumps({"train": ROWS, "test": ROWS}), "holds rows in train, test, each of which needs a file"),
    "a list and more": (json.dumps({"version": "1", "data": ROWS}), "holds rows in data"),
    "by column and row": (json.dumps({"question": {"0": "a"}, "answer": {"0": "1"}}), "an object of objects (question, answer)"),
    "a comma behind each row": (JSONL.replace("\n", ",\n"), ":1: a comma follows the object; remove it"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "sentence"), FOREIGN.values(), ids=FOREIGN)
def test_other_formats_are_named(tmp_path: Path, data: bytes | str, sentence: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    for read in (
        lambda: load(TaskConfig(name="jsonl", path=str(file), on_bad_row="error")),
        lambda: load(TaskConfig(name="jsonl", path=str(file), on_bad_row="skip")),
        lambda: grade_file(TaskConfig(), str(file), None),
    ):
        with pytest.raises(DataError) as caught:
            read()
        said = str(caught.value)
        assert sentence in said
        assert said.startswith(str(file))
        assert said.isprintable()
        assert "on_bad_row=skip" not in said or "comma" in said
        assert "row is left" not in said or "comma" in said, "another format has no rows to mend"


def test_sqlite_is_named(tmp_path: Path) -> None:
    database(tmp_path)
    with pytest.raises(DataError, match="is an SQLite database"):
        read_rows(str(tmp_path / "rows.db"))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("key", ["data", "train", 'a "name": [', "rows"])
def test_an_object_with_one_list_of_rows_is_that_list(tmp_path: Path, key: str, indent: int | None) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({key: ROWS}, indent=indent) + "\n")
    assert [plain(dict(row.fields)) for row in read_rows(str(file))] == ROWS
    bad = '{"data": [\n{"question": "a", "answer": "1"},\n{"question": "b"},\n{"question": "c", "answer": 1}\n]}'
    file.write_text(bad)
    with pytest.raises(DataError, match=r"rows\.json:3: the row has no field 'answer' \(it has: question\)"):
        load(TaskConfig(name="jsonl", path=str(file)))


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\r\r\n\n"])
@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8])
def test_lines_may_end_in_cr_alone(tmp_path: Path, bom: bytes, end: bytes) -> None:
    """Also where a tool has put another line end behind the last of them."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(bom + JSONL.strip().replace("\n", "\r").encode() + end)
    assert [(row.where, plain(dict(row.fields))) for row in read_rows(str(file))] == [
        (f"{file}:{i}", row) for i, row in enumerate(ROWS, start=1)
    ]
    file.write_bytes(b'{"question": "a", "answer": "1"}\r{"question": "b"}\r')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the row has no field 'answer'"):
        load(TaskConfig(name="jsonl", path=str(file)))
    file.write_bytes(b'{"question": "a", "answer": "1"}\r\n\r{"question": "c", "answer": "1"}\n{"question": "b"}\r')
    with pytest.raises(DataError, match=r"rows\.jsonl:4: the row has no field 'answer'"):
        load(TaskConfig(name="jsonl", path=str(file)))
    file.write_bytes(b'[\r{"question": "a", "answer": "1"},\r{"question": "b"}\r]\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the row has no field 'answer'"):
        load(TaskConfig(name="jsonl", path=str(file)))


def test_a_few_bad_lines_make_no_other_format(tmp_path: Path) -> None:
    """As long as one row is read, the others are bad rows, whatever they look like."""
    file = tmp_path / "rows.jsonl"
    file.write_text("question,answer\na,1\n{'question': 'b'}\n- question: c\n" + JSONL)
    splits = load(TaskConfig(name="jsonl", path=str(file), on_bad_row="skip"))
    assert len(splits.rejected) == 4
    assert len(splits.train) + len(splits.test) == len(ROWS)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the project (shared/cases)")
def test_the_shared_cases() -> None:
    """Every shape that people have loads, and its gold answers are right in their own form."""
    checkers = {"letters.jsonl": "choice", "textans.jsonl": "exact"}
    files = sorted(CASES.iterdir())
    assert len(files) == 15
    for file in files:
        config = {"path": str(file), "checker": checkers.get(file.name, "numeric")}
        task = load_task(TaskConfig.model_validate(config), instruction="", seed=0)
        assert len(task.train) + len(task.test) == (200 if file.name == "sorted2.jsonl" else 20)
        for problem in (*task.train, *task.test):
            assert "Mia has" in problem.question
            assert task.grade(task.gold_text(problem), problem.answer).strict
