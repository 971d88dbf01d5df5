"""`slimrl grade` as a function."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from slimrl.api.stored import read_outputs as read_verdicts
from slimrl.config.sandbox import SandboxConfig
from slimrl.config.task import TaskConfig
from slimrl.errors import DataError
from slimrl.records import Answer
from slimrl.results import Evaluation, GradedCompletion, Mode, SplitEvaluation
from slimrl.sandbox import working
from slimrl.tasks.answers import Grader
from slimrl.tasks.code import Suite
from slimrl.tasks.grade import UNREAD, grade_file
from slimrl.tasks.styles import STYLES
from slimrl.tasks.symbolic import SymbolicWorker
from slimrl.tasks.votes import ASKED, votes


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
    assert (summary.problems, summary.samples) == (4, 1), "an id with two gold answers is two problems"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {
        "id": "a", "strict": True, "lenient": True, "extracted_strict": "72", "extracted_lenient": "72", "answer": "72", "vote": 0,
    }  # fmt: skip
    assert rows[1] == {
        "id": "a", "strict": False, "lenient": True, "extracted_strict": "", "extracted_lenient": "1080", "answer": "1,080", "vote": None,
    }  # fmt: skip
    assert rows[2] == {
        "id": 7, "strict": False, "lenient": False, "extracted_strict": "17", "extracted_lenient": "17", "answer": "18", "vote": 0,
    }  # fmt: skip


def test_samples_of_a_problem_are_measured_together(tmp_path: Path) -> None:
    """Two of three problems, each with its own number of samples, in any order of rows."""
    drawn = {
        "a": ["#### 7", "#### 7.0", "#### 8", "8"],
        "b": ["#### 5", "#### 6", "#### 6.0", "#### 7"],
        "c": ["#### 1"] * 5,
    }
    answers = {"a": "7", "b": "7", "c": "2"}
    rows = [
        {"id": name, "answer": answers[name], "completion": text} for name, texts in drawn.items() for text in texts
    ]
    summary = grade_file(TaskConfig(name="gsm8k"), _file(tmp_path, *reversed(rows)), None)
    assert (summary.n, summary.problems, summary.samples) == (13, 3, 4)
    assert summary.strict == 3 / 13
    assert summary.accuracy == pytest.approx((0.5 + 0.25 + 0) / 3)
    table = summary.table()
    assert [*table["pass@k"]] == [*table["maj@k"]] == ["1", "2", "4"]
    assert (summary.low, summary.high) == (table["pass@k"]["1"]["low"], table["pass@k"]["1"]["high"])
    assert table["pass@k"]["4"]["value"] == pytest.approx(2 / 3)
    assert table["maj@k"]["4"]["value"] == pytest.approx(1 / 3), "6 and 6.0 outvote 7"
    assert "at_k" not in table
    json.dumps(table)


ADD = {"task_id": 1, "text": "Add two numbers.", "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}
TWICE = {
    "task_id": "HumanEval/0",
    "prompt": "def twice(x):\n",
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
PROGRAMS = [
    (1, "```python\ndef add(a, b): return a + b\n```", True, True),
    (1, "```python\ndef add(a, b): return a - b\n```", False, False),
    ("HumanEval/0", "Sure.\n```python\ndef twice(x): return x + x\n```", True, True),
    ("HumanEval/0", "def twice(x): return x + x", False, True),
    (1, "", False, False),
]  # fmt: skip


@pytest.mark.skipif(not any(working(one)[0] for one in ("bubblewrap", "namespaces")), reason="no isolation works here")
@pytest.mark.parametrize("tests", ["answer", "row", "task.path"])
def test_programs_are_graded_by_their_tests(tests: str, tmp_path: Path) -> None:
    """Which are the gold answer of a row, stand in it as in the data, or are those of the problem of its id."""
    problems = {1: ADD, "HumanEval/0": TWICE}
    gold = {
        1: Suite("", tuple(ADD["test_list"])).answer,
        "HumanEval/0": Suite("", (f"{TWICE['test'].strip()}\ncheck(twice)",)).answer,
    }  # type: ignore[attr-defined, arg-type]
    more = {
        "answer": lambda name: {"answer": gold[name]},
        "row": lambda name: problems[name],
        "task.path": lambda _: {},
    }[tests]
    file = _file(tmp_path, *({**more(name), "id": name, "completion": text} for name, text, _, _ in PROGRAMS))  # type: ignore[operator]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (ADD, TWICE)))
    path = str(tmp_path / "data.jsonl") if tests == "task.path" else UNREAD
    out = tmp_path / "verdicts.jsonl"
    summary = grade_file(TaskConfig(name="code", path=path), file, str(out), SandboxConfig(cpu_seconds=1, seconds=5.0))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["strict"], row["lenient"]) for row in rows] == [
        (strict, lenient) for _, _, strict, lenient in PROGRAMS
    ]
    assert [row["answer"] for row in rows] == [gold[name] for name, *_ in PROGRAMS]
    assert (summary.n, summary.problems, summary.samples) == (5, 2, 2)


@pytest.mark.parametrize(
    ("row", "path", "sentence"),
    [
        ({"id": 1, "completion": "x"}, UNREAD, "no field 'answer' .*, or name the file of the problems in task.path"),
        ({"id": 2, "completion": "x"}, "data.jsonl", "outputs.jsonl:1: task.path=.* has no problem of the id '2'"),
        ({"id": 1, "completion": "x", "test_list": []}, UNREAD, "field 'test_list' has no tests"),
    ],
)
def test_a_program_without_tests_is_refused(
    row: object, path: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text(json.dumps(ADD))
    with pytest.raises(DataError, match=sentence):
        grade_file(TaskConfig(name="code", path=path), _file(tmp_path, row), None, SandboxConfig(isolation="limits"))


def _completion(name: str, mode: Mode, sample: int, text: str, answer: str = "7", **more: Any) -> GradedCompletion:
    grade = Grader("numeric").grade(text, answer, STYLES["hashes"])
    verdicts = {
        "strict": grade.strict,
        "lenient": grade.lenient,
        "extracted_strict": grade.extracted_strict,
        "extracted_lenient": "",
    }
    known: dict[str, Any] = (
        {"well_formed": True, "finish": "stop", "tokens": 3, "question": "?", "vote": None} | verdicts | more
    )
    return GradedCompletion(id=name, mode=mode, sample=sample, answer=answer, text=text, **known)


def test_the_file_of_an_evaluation_is_graded_as_it_was(tmp_path: Path) -> None:
    """Greedy completions are no samples, several answers may be right, and an episode that broke off is wrong."""
    said = (("assistant", "6?"), ("user", "no"), ("assistant", "#### 7"))
    rows = (
        _completion("a", "sampled", 0, "#### 7"), _completion("a", "sampled", 1, "so 7"), _completion("b", "sampled", 0, "#### 8", Answer("7", ["8"])),
        _completion("b", "sampled", 1, "#### 7", strict=False, lenient=False, turns=2, said=said, failed="the environment raised KeyError"),
        _completion("a", "greedy", 0, "#### 7"), _completion("b", "greedy", 0, "9"),
    )  # fmt: skip
    stored = Evaluation(0, SplitEvaluation(rows), SplitEvaluation(())).table()
    out = tmp_path / "verdicts.jsonl"
    summary = grade_file(
        TaskConfig(name="gsm8k"), _file(tmp_path, *({"task": "gsm8k", **row} for row in stored)), str(out)
    )
    found = [json.loads(line) for line in out.read_text().splitlines()]
    for key in ("task", "split", "id", "mode", "sample", "strict", "lenient", "extracted_strict"):
        assert [row[key] for row in found] == [row.get(key, "gsm8k") for row in stored], key
    assert (summary.n, summary.problems, summary.samples, summary.strict, summary.greedy) == (4, 2, 2, 0.5, 0.5)
    assert summary.table()["greedy"] == 0.5
    splits = read_verdicts(str(out))
    assert splits["gsm8k", "test"].by_problem("sampled") == {"a": 0.5, "b": 0.5}, "as slimrl compare reads it"


@pytest.mark.parametrize(
    ("checker", "answers", "expected"),
    [
        ("numeric", [("7", True), ("8", False), ("7.0", True), ("8.0", False), ("", False), ("8 or 9", False)], [0, 1, 0, 1, None, 5]),
        ("numeric", [("a", False), ("b", False), ("a", False)], [0, 1, 0]),
        ("symbolic", [("x/2", False), ("0.5x", False), ("\\frac{x}{2}", False), ("x", False)], [0, 0, 0, 3]),
    ],
)  # fmt: skip
def test_equal_answers_are_one_vote(checker: str, answers: list[tuple[str, bool]], expected: list[int | None]) -> None:
    if checker == "symbolic":
        pytest.importorskip("math_verify")
    with closing(Grader(checker)) as grader:  # type: ignore[arg-type]
        assert votes(grader, answers).cast == expected


def test_a_slow_checker_is_asked_about_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    with closing(Grader("symbolic")) as grader:
        asked: list[str] = []
        monkeypatch.setattr(SymbolicWorker, "same", lambda _, guess, __: asked.append(guess))  # no verdict in time
        answers = [(f"x^{{{i}}}", False) for i in range(30)]
        assert votes(grader, answers).cast == list(range(30))
        assert len(asked) == ASKED
        assert votes(grader, [*answers, answers[20]]).cast[-1] == 20, "equal texts need no checker"


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
