"""One way in: files of every format and splits of the Hub become rows that keep their values and their places."""

from __future__ import annotations

import gzip
import json
import math
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from slimrl.config.task import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Rejected
from slimrl.tasks.files import Splits, load
from slimrl.tasks.rows import Row, plain
from slimrl.tasks.sources import read_rows, scan_rows

ROWS: list[dict[str, object]] = [{"question": f"What is {i}+7?", "answer": f"00{i + 7}"} for i in range(9)]


def written(folder: Path, name: str, data: str | bytes) -> str:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return str(folder / name)


def parquet(rows: list[dict[str, object]], folder: Path, name: str = "rows.parquet") -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    return str(folder / name)


def table(delimiter: str, end: str = "\n") -> str:
    return end.join(delimiter.join(map(str, row)) for row in [tuple(ROWS[0]), *(row.values() for row in ROWS)])


def values(file: str) -> list[object]:
    return [plain(dict(row.fields)) for row in read_rows(file)]


FORMS = {
    "rows.csv": table(","), "rows.tsv": table("\t"), "semicolons.csv": table(";"), "bars.txt": table("|"), "crlf.csv": table(",", "\r\n"),
    "cr.csv": table(",", "\r"), "named as nothing": table(","), "bom.csv": "\ufeff" + table(","),
    "rows.jsonl": "\n".join(map(json.dumps, ROWS)), "rows.json": json.dumps(ROWS), "wrapped.json": json.dumps({"data": ROWS}),
    "columns.json": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}),
    "columns, spread.json": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}, indent=1),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, packed: bool) -> None:
    data = FORMS[name].encode()
    assert values(written(tmp_path, name + (".gz" if packed else ""), gzip.compress(data) if packed else data)) == ROWS


def test_parquet_gives_the_same_rows_also_packed(tmp_path: Path) -> None:
    file = parquet(ROWS, tmp_path)
    assert values(file) == ROWS
    assert values(written(tmp_path, "rows.gz", gzip.compress(Path(file).read_bytes()))) == ROWS


def test_cells_of_tables_are_text_as_it_stands(tmp_path: Path) -> None:
    file = written(tmp_path, "rows.csv", 'question,answer,difficulty\n" a ""b"",\nc",007,2\nd,"1,080",\ne,NaN,1e1\n')
    rows = read_rows(file)
    assert [dict(row.fields) for row in rows] == [
        {"question": ' a "b",\nc', "answer": "007", "difficulty": "2"},
        {"question": "d", "answer": "1,080", "difficulty": ""},
        {"question": "e", "answer": "NaN", "difficulty": "1e1"},
    ]
    assert [row.where for row in rows] == [f"{file}:2", f"{file}:4", f"{file}:5"]
    assert [row.number("difficulty") for row in rows] == [2.0, 0.0, 10.0]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("Unnamed: 0,question,answer", ["Unnamed: 0", "question", "answer"]),
        (",question,answer", ["question", "answer"]),
        ("question (en);answer/EUR;share in %", ["question (en)", "answer/EUR", "share in %"]),
    ],
)
def test_names_of_columns_in_a_file_of_a_table(header: str, names: list[str], tmp_path: Path) -> None:
    delimiter = ";" if ";" in header else ","
    file = written(tmp_path, "rows.csv", f"{header}\n{delimiter.join('abc')}\n")
    assert [[*row.fields] for row in read_rows(file)] == [names]


def test_bad_rows_of_tables_keep_their_lines(tmp_path: Path) -> None:
    lines = ["question,answer", '"two\nlines",1', "b", "c,2,3", "", "caf\xe9,5", "d,"]
    file = written(tmp_path, "rows.csv", "\n".join(lines).encode("latin-1"))
    test = written(tmp_path, "test.csv", "question,answer\nheld out?,2\n")
    found = load(TaskConfig(path=file, test_path=test, on_bad_row="skip"))
    assert [problem.question for problem in found.train] == ["two\nlines"]
    assert [(bad.where, bad.row) for bad in found.rejected] == [
        (f"{file}:4", '["b"]'), (f"{file}:5", '["c", "2", "3"]'), (f"{file}:7", '["caf\\xe9", "5"]'),
        (f"{file}:8", '{"question": "d", "answer": ""}'),
    ]  # fmt: skip
    for bad, what in zip(
        found.rejected, ("1 cells, but", "3 cells, but", "0xe9 is not UTF-8", "'answer' is empty"), strict=True
    ):
        assert what in bad.reason


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("What is 1+1?,2\nWhat is 1+2?,3\n", ":1: the first line names no columns; begin the file with a line such as"),
        ("question,question\na,b\n", ":1: column 'question' is there twice"),
        ('question,answer\na,1\n"b,2\n', ":3: not a row of a table (unexpected end of data)"),
        ("question,answer\n", " has no rows"),
        ("\n", " has no rows"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, sentence: str) -> None:
    file = written(tmp_path, "rows.csv", text)
    with pytest.raises(DataError) as caught:
        read_rows(file)
    assert str(caught.value).startswith(file + sentence)


def test_parquet_keeps_types_and_counts_rows(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"question": "a?", "answer": 7, "extra": {"day": date(2026, 1, 2), "list": [1.5, None]}, "blob": b"x"},
        {"question": None, "answer": 8, "extra": None, "blob": None},
        {"question": "held out", "answer": 9, "extra": None, "blob": None},
    ]
    found = load(TaskConfig(path=parquet(rows, tmp_path), on_bad_row="skip"))
    (problem,) = [p for p in (*found.train, *found.test) if p.question == "a?"]
    assert (problem.answer, problem.columns) == (
        "7",
        {"extra": {"day": "2026-01-02", "list": [1.5, None]}, "blob": b"x"},
    )
    (bad,) = found.rejected
    assert bad.where == f"{tmp_path}/rows.parquet row 1"
    assert bad.reason == "field 'question' must be a string, but is null; put it in quotes"
    (odd,) = read_rows(parquet([{"x": math.nan}], tmp_path))
    with pytest.raises(DataError, match="'x' must be a string or a number, but is not finite"):
        odd.answer("x")


def test_columns_of_json_refuse_what_rows_of_json_refuse(tmp_path: Path) -> None:
    for text, what in [
        ('{"question": ["a"], "question": ["b"]}', ":1: key 'question' is there twice"),
        ('{"question": ["a", "b"], "answer": [1, NaN]}', ":1: NaN is not a number"),
        (b'{"question": ["a"],\n"answer": ["\xe9"]}', ":2: byte 0xe9 is not UTF-8"),
    ]:
        with pytest.raises(DataError) as caught:
            read_rows(written(tmp_path, "rows.json", text))
        assert what in str(caught.value)
    bad = scan_rows(written(tmp_path, "rows.json", '{"question": ["a", 5], "answer": [1, 2]}'))
    assert [row.where for row in bad] == [f"{tmp_path}/rows.json row 0", f"{tmp_path}/rows.json row 1"]


def test_a_row_whose_fields_are_chat_messages_is_no_file_of_columns(tmp_path: Path) -> None:
    (row,) = read_rows(
        written(tmp_path, "rows.jsonl", '{"prompt": [{"role": "user", "content": "q"}], "answers": ["1"]}')
    )
    assert row.where.endswith(":1")


def test_paths_reach_into_rows_and_a_field_of_that_name_comes_first() -> None:
    row = Row("f:1", {"a": {"b": [{"c": "1"}]}, "a.b": "whole"})
    assert row.text("a.b") == "whole"
    assert row.text("a.b.0.c") == "1"
    for name in ("a.b.1.c", "a.c", "a.b.c", "x", "a.b.0.c.d"):
        with pytest.raises(DataError, match=f"the row has no field '{name}'"):
            row.text(name)


# --- the Hub -----------------------------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """Stands for `datasets`; the calls that were made."""
    calls = []

    def load_dataset(repository: str, subset: str | None, *, split: str) -> list[dict[str, object]]:
        calls.append((repository, subset, split))
        return [{"problem": f"{split} {i}?", "solution": f"so \\boxed{{{i}}}", "n": {"steps": i}} for i in range(9)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def splits(**settings: object) -> Splits:
    return load(TaskConfig.model_validate(settings))


def test_a_name_of_the_hub_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = hub(monkeypatch)
    found = splits(path="org/name", subset="main", split="train[:9]", columns={"difficulty": "n.steps"})
    assert calls == [("org/name", "main", "train[:9]")]
    assert len(found.train) + len(found.test) == 9
    assert {p.difficulty for p in (*found.train, *found.test)} == {*map(float, range(9))}
    assert found.train[0].answer == found.train[0].question[-2]
    calls.clear()
    found = splits(path="org/name", subset="main", test_split="validation")
    assert calls == [("org/name", "main", "train"), ("org/name", "main", "validation")]
    assert found.test[0].id == "jsonl/test/00000"
    calls.clear()
    splits(path="org/name", subset="main", test_path="other/name")
    assert calls == [("org/name", "main", "train"), ("other/name", None, "test")], "a subset is one of its data set"
    calls.clear()
    found = splits(path="org/name", test_path=written(tmp_path, "test.jsonl", '{"question": "q?", "answer": "1"}'))
    assert calls == [("org/name", None, "train")]
    assert len(found.test) == 1


def test_bad_rows_of_the_hub_have_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch)
    with pytest.raises(
        DataError, match=r"^org/name train row 0: field 'n' must be a string or a number, but is an object"
    ):
        splits(path="org/name", columns={"answer": "n"})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"path": "rows.jsonl", "subset": "main"},
            r"task\.subset=main has no effect, since task\.path names no data set on the Hub",
        ),
        ({"path": "rows.jsonl", "split": "train"}, r"task\.split=train has no effect"),
        ({"name": "gsm8k", "split": "train"}, r"task\.split=train has no effect"),
        (
            {"path": "rows.jsonl", "test_split": "test"},
            r"task\.test_split=test has no effect, since task\.path names no",
        ),
        ({"path": "org/name", "test_path": "t.csv", "test_split": "test"}, r"since task\.test_path names no data set"),
    ],
)
def test_settings_of_the_hub_are_refused_for_files(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        splits(**settings)


def test_a_data_set_that_cannot_be_loaded_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ValueError("BuilderConfig 'x' not found\nAvailable: main")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError) as caught:
        splits(path="org/name", subset="x")
    assert str(caught.value) == (
        "data set org/name could not be read from the Hub (ValueError: BuilderConfig 'x' not found); "
        "check task.path, task.subset and task.split, or give a local file"
    )


def test_a_path_that_is_none_of_the_hub_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a folder, also one that does not exist, is never looked for on the Hub."""
    calls = hub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for path in ("data/none.jsonl", "data/none.csv.gz", "data/none.parquet", "./data/none"):
        with pytest.raises(DataError, match="cannot be read"):
            splits(path=path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows").write_text("\n".join(map(json.dumps, ROWS)))
    assert splits(path="data/rows").train
    assert calls == []
    assert all(not isinstance(row, Rejected) for row in scan_rows("data/rows"))
