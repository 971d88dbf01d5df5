"""Local files come in unchanged, and every complaint names file:line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slimrl.config.files import build, load_config
from slimrl.config.schema import EvalConfig
from slimrl.config.task import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Problem
from slimrl.tasks import load_task
from slimrl.tasks.files import Splits, load
from slimrl.tasks.formats import by_column
from slimrl.tasks.rows import plain
from slimrl.tasks.sources import read_rows
from tests.conftest import ROOT

GOOD = '{"question": "q?", "answer": "1"}'


def _jsonl(folder: Path, text: str | bytes, name: str = "train.jsonl") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def _load(folder: Path, text: str | bytes, test: str | bytes = '{"question": "held out?", "answer": "2"}') -> Splits:
    train_path, test_path = _jsonl(folder, text), _jsonl(folder, test, "test.jsonl")
    return load(TaskConfig(name="jsonl", path=train_path, test_path=test_path))


def test_strings_and_spellings_stay(tmp_path: Path) -> None:
    text = "\n".join(
        f'{{"question": "q{i}", "answer": {answer}}}'
        for i, answer in enumerate(
            ['"007"', '"1.50"', "1.50", "12345678901234567890123", "1e3", '" 5 "', '"1,080"', "-0.0"]
        )
    )
    answers = [problem.answer for problem in _load(tmp_path, text).train]
    assert answers == ["007", "1.50", "1.50", "12345678901234567890123", "1e3", " 5 ", "1,080", "-0.0"]


def test_fields_ids_and_columns(tmp_path: Path) -> None:
    row = '{"question": "p", "answer": "1", "solution": null, "id": 7, "difficulty": 2, "tag": {"a": [1, 2.5, true]}}'
    first, second = _load(tmp_path, row + "\n\n" + GOOD + "\n").train
    assert first == Problem("7", "p", "1", "", 2.0, {"tag": {"a": [1, 2.5, True]}})
    assert second.id == "jsonl/train/00001"


def test_byte_order_mark_crlf_and_line_separators(tmp_path: Path) -> None:
    text = '\ufeff{"question": "a\u2028b", "answer": "1"}\r\n\r\n{"question": "c", "answer": "2"}\r\n'
    assert [problem.question for problem in _load(tmp_path, text).train] == ["a\u2028b", "c"]


BAD = {
    "{": "not valid JSON",
    "{'question': 1}": "not valid JSON",
    GOOD + GOOD: "more than one JSON value",
    "[1": "not valid JSON",
    '"text"': "found a string",
    "3": "found a number",
    "null": "found null",
    '{"question": "q"}': "no field 'answer'",
    '{"answer": "1"}': "no field 'question'",
    "{}": "it has: none",
    '{"question": "", "answer": "1"}': "'question' is empty",
    '{"question": "  ", "answer": "1"}': "'question' is empty",
    '{"question": 5, "answer": "1"}': "'question' must be a string, but is a number",
    '{"question": "q", "answer": null}': "'answer' must be a string or a number, but is null",
    '{"question": "q", "answer": [true]}': "'answer.0' must be a string or a number, but is a boolean",
    '{"question": "q", "answer": []}': "'answer' is an empty list",
    '{"question": "q", "answer": [["1"]]}': "'answer.0' must be a string or a number, but is a list",
    '{"question": ["q"], "answer": "1"}': "'question' must be a string, but is a list; write it as one text",
    '{"question": "q", "answer": {"a": 1}}': "is an object",
    '{"question": "q", "answer": " "}': "'answer' is empty",
    '{"question": "q", "answer": NaN}': "NaN is not a number",
    '{"question": "q", "answer": -Infinity}': "-Infinity is not a number",
    '{"question": "q", "answer": 1e999}': "too large",
    '{"question": "q", "answer": "1", "answer": "2"}': "key 'answer' is there twice",
    '{"question": "q", "answer": "1", "solution": 5}': "'solution' must be a string",
    '{"question": "q", "answer": "1", "difficulty": "hard"}': "'difficulty' must be a number, but is a string; write difficulties as numbers, or set task.columns.difficulty=none",
    '{"question": "q", "answer": "1", "completions": 1}': "'completions' is a name",
    '{"question": "\\ud800", "answer": "1"}': "surrogate",
    '{"question": "q", "answer": "1", "x": ' + "[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize(("line", "what"), BAD.items(), ids=range(len(BAD)))
def test_bad_rows_name_file_and_line(tmp_path: Path, line: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        _load(tmp_path, f"\n{GOOD}\n{line}\n")
    assert str(caught.value).startswith(f"{tmp_path}/train.jsonl:3: ")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:2: byte 0xe9 is not UTF-8"):
        _load(tmp_path, GOOD.encode() + b'\n{"question": "caf\xe9", "answer": "1"}\n')


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load(TaskConfig(name="jsonl", path=str(tmp_path / "none.jsonl")))
    with pytest.raises(DataError, match="cannot be read"):
        load(TaskConfig(name="jsonl", path=str(tmp_path)))
    for empty in ("", "\n \n", "[]"):
        with pytest.raises(DataError, match="has no rows"):
            _load(tmp_path, empty)
    with pytest.raises(DataError, match="has one row"):
        load(TaskConfig(name="jsonl", path=_jsonl(tmp_path, GOOD)))


def test_json_arrays_name_the_line_of_the_element(tmp_path: Path) -> None:
    good = _jsonl(tmp_path, '\n[\n {"a": 1,\n  "b": 2}\n ,{"a": 3}]\n')
    assert [(row.where, plain(dict(row.fields))) for row in read_rows(good)] == [
        (f"{good}:3", {"a": 1, "b": 2}),
        (f"{good}:5", {"a": 3}),
    ]
    for text, line, what in [
        ('[\n{"a": 1},\n5]', 3, "expected an object"),
        ('[\n{"a": 1}\n{"a": 2}]', 3, "expected ',' or ']'"),
        ('[\n{"a": 1},\n', 3, "not valid JSON"),
        ('[\n{"a": 1},\n]', 3, "not valid JSON"),
        ('[\n{"a": 1}]\n[]', 2, "something follows"),
    ]:
        with pytest.raises(DataError) as caught:
            read_rows(_jsonl(tmp_path, text))
        assert str(caught.value).startswith(f"{tmp_path}/train.jsonl:{line}: ")
        assert what in str(caught.value)


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(),
                lambda inner: st.lists(inner, max_size=3),
                max_leaves=5,
            ),
            max_size=4,
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
    st.booleans(),
)
def test_whatever_json_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], array: bool, ascii_only: bool
) -> None:
    def dump(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii_only)

    text = dump(rows) if array else "\n".join(map(dump, rows))
    assume(not by_column(text))  # one object of lists alone is a file of columns
    file = _jsonl(tmp_path_factory.getbasetemp(), text, "any.jsonl")
    assert [plain(dict(row.fields)) for row in read_rows(file)] == rows


def test_repeated_ids_and_overlap_are_refused(tmp_path: Path) -> None:
    rows = '{"question": "a", "answer": "1", "id": "x"}\n{"question": "b", "answer": "1", "id": "x"}'
    with pytest.raises(DataError, match=r"train\.jsonl:2: id 'x' is also that of .*train\.jsonl:1"):
        _load(tmp_path, rows)
    with pytest.raises(
        DataError, match=r"train\.jsonl:1: the training question is also the held-out question .*test\.jsonl:2"
    ):
        _load(tmp_path, GOOD, '{"question": "b", "answer": "1"}\n' + GOOD)


def test_gsm8k_rows(tmp_path: Path) -> None:
    row = {"question": "clips?", "answer": "48/2 = <<48/2=24>>24 clips\nIn all <<48+24=72>>72.\n#### 1,072"}
    other = {"question": "held?", "answer": "#### 5"}
    train, test = _jsonl(tmp_path, json.dumps(row)), _jsonl(tmp_path, json.dumps(other), "test.jsonl")
    splits = load(TaskConfig(name="gsm8k", path=train, test_path=test))
    assert splits.train == (Problem("gsm8k/train/00000", "clips?", "1,072", "48/2 = 24 clips\nIn all 72.", 2.0, {}),)
    assert splits.test[0].id == "gsm8k/test/00000"
    with pytest.raises(DataError, match=r"test\.jsonl:1: field 'answer' has no last line '#### number'"):
        load(TaskConfig(name="gsm8k", path=train, test_path=_jsonl(tmp_path, GOOD, "test.jsonl")))


def test_aime_rows_of_both_families(tmp_path: Path) -> None:
    train = _jsonl(tmp_path, '[{"problem": "p", "answer": "025", "solution": "s", "difficulty": 4.0, "year": 1983}]')
    test = _jsonl(
        tmp_path, '{"id": "aime24-0", "problem": "q", "expected_answer": "73", "reference_solution": "r"}', "test.jsonl"
    )
    splits = load(TaskConfig(name="aime", path=train, test_path=test))
    assert splits.train == (Problem("aime/train/00000", "p", "025", "s", 4.0, {"year": 1983}),)
    assert splits.test == (Problem("aime/test/00000", "q", "73", "r", 0.0, {}),)


def test_math_rows(tmp_path: Path) -> None:
    rows = [
        {"problem": f"p{i}", "answer": "\\frac{1}{2}", "solution": "s", "level": level, "subject": "Algebra"}
        for i, level in enumerate([2, "Level 5", "Level ?", None])
    ]
    file = _jsonl(tmp_path, "\n".join(map(json.dumps, rows)))
    held_out = _jsonl(tmp_path, '{"problem": "held out", "answer": "1"}', "test.jsonl")
    splits = load(TaskConfig(name="math", path=file, test_path=held_out))
    assert [problem.difficulty for problem in splits.train] == [2.0, 5.0, 0.0, 0.0]
    assert splits.train[0].answer == "\\frac{1}{2}"
    assert splits.train[0].columns == {"subject": "Algebra"}


def test_svamp_rows(tmp_path: Path) -> None:
    text = """[{"Body": "He has 76", "Question": "How many?", "Equation": "( 76.0 - 25.0 )",
     "Answer": 51.0, "Type": "S"}]"""
    other = '{"Body": "He has 7.", "Question": "How many?", "Equation": "7.0", "Answer": 7.5}'
    held_out = _jsonl(tmp_path, other, "test.jsonl")
    splits = load(TaskConfig(name="svamp", path=_jsonl(tmp_path, text), test_path=held_out))
    assert splits.train[0] == Problem(
        "svamp/train/00000", "He has 76. How many?", "51", "( 76.0 - 25.0 )", 1.0, {"Type": "S"}
    )
    assert (splits.test[0].question, splits.test[0].answer) == ("He has 7. How many?", "7.5")


def _fake_hub(monkeypatch: pytest.MonkeyPatch, load_dataset: object) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_hub_rows_go_through_the_same_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(repository: str, _: str | None, *, split: str) -> list[dict[str, object]]:
        if repository == "di-zhang-fdu/AIME_1983_2024":
            return [{"ID": f"{year}-1", "Year": year, "Question": f"q{year}", "Answer": 25} for year in (1983, 2024)]
        return [{"id": 60, "problem": "held out", "answer": "204", "solution": split}]

    _fake_hub(monkeypatch, load_dataset)
    splits = load(TaskConfig(name="aime"))
    assert splits.train == (Problem("aime/train/00000", "q1983", "25", "", 0.0, {"ID": "1983-1", "Year": 1983}),)
    assert splits.test == (Problem("aime/test/00000", "held out", "204", "train", 0.0, {}),)


def test_an_evaluation_needs_no_training_problems_of_the_hub_where_the_held_out_ones_are_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As AIME 2025's recipe has it, whose columns are these."""
    asked = []

    def load_dataset(repository: str, _: str | None, *, split: str) -> list[dict[str, object]]:
        asked.append((repository, split))
        return [{"id": "0", "problem": "q", "answer": "70"}]

    _fake_hub(monkeypatch, load_dataset)
    recipe = load_config(EvalConfig, [str(ROOT / "recipes" / "eval" / "aime-2025.yaml")]).task
    found = load_task(recipe, instruction="", seed=0, training=False)
    assert asked == [("math-ai/aime25", "test")]
    assert (len(found.train), found.test) == (0, (Problem("aime/test/00000", "q", "70"),))
    file = _jsonl(tmp_path, '{"problem": "q", "answer": "70"}\n{"problem": "q", "answer": "7"}')
    skipping = recipe.model_copy(update={"test_path": file, "on_bad_row": "skip", "answers": "shuffled"})
    offline = load_task(skipping, instruction="", seed=0, training=False)
    assert (offline.test, len(offline.rejected), len(asked)) == (found.test, 1, 1)


def test_an_evaluation_measures_a_whole_file_that_is_given_as_held_out(tmp_path: Path) -> None:
    file = _jsonl(tmp_path, "\n".join(f'{{"question": "q{n}", "answer": "{n}"}}' for n in range(30)))
    whole = build(EvalConfig, {"task": {"test_path": file}}).task
    assert whole.name == "jsonl"
    found = load_task(whole, instruction="", seed=0, training=False)
    assert (len(found.train), len(found.test), found.notes) == (0, 30, ())
    part = load_task(TaskConfig(name="jsonl", path=file), instruction="", seed=0, training=False)
    assert len(part.test) < 10
    assert f"measures the {len(part.test)} of its problems that are held out" in part.notes[0]
    with pytest.raises(SettingsError, match=r"task\.name=jsonl has no data set .*; set task\.path to a local file"):
        load(whole)


def test_no_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    _fake_hub(monkeypatch, load_dataset)
    with pytest.raises(DataError) as caught:
        load(TaskConfig(name="gsm8k"))
    assert str(caught.value) == (
        "data set openai/gsm8k could not be read from the Hub (ConnectionError: no route); "
        "set task.path to a local file"
    )
    with pytest.raises(DataError, match=r"; set task\.test_path to a local file of held-out problems$"):
        load_task(TaskConfig(name="gsm8k"), instruction="", seed=0, training=False)
    with pytest.raises(SettingsError, match=r"task\.test_path is set but task\.path is not"):
        load(TaskConfig(name="gsm8k", test_path=_jsonl(tmp_path, '{"question": "q", "answer": "#### 1"}')))


def test_of_data_that_are_not_there_nothing_is_noted(tmp_path: Path) -> None:
    """As of training rows where only held-out ones are given."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "1+1?", "answer": "2"}\n{"question": "1+2?", "answer": "3"}\n')
    found = load(TaskConfig(test_path=str(file)), training=False)
    assert (len(found.test), found.notes) == (2, ())
