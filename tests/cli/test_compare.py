"""`slimrl compare`: stored outputs, runs and models, matched by problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import slimrl as slimrl_api
from slimrl.errors import SettingsError
from slimrl.measures import Tally, paired
from tests.cli.test_cli import SMALL

Rows = list[dict[str, Any]]


def rows(shares: dict[str, tuple[int, int]], **more: Any) -> Rows:
    """Rows of `slimrl eval --out`: by problem the right samples and all of them."""
    return [
        {"task": "gsm8k", "split": "test", "id": name, "mode": "sampled", "sample": i, "strict": i < right, "lenient": i < right,
         "question": f"What is {name}?", "answer": "1", "extracted_strict": "1" if i < right else "2", "vote": 0 if i < right else right,
         **more}
        for name, (right, n) in shares.items()
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[str, Rows], Path]:
    def write(name: str, lines: Rows) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


FIRST = {f"p{i}": (i % 5, 4) for i in range(20)}
SECOND = {name: (min(4, right + (name in ("p0", "p1", "p7"))), 4) for name, (right, _) in FIRST.items()}


def test_two_files(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    a, b = stored("a.jsonl", rows(FIRST)), stored("b.jsonl", rows(SECOND))
    result = slimrl("compare", a, b, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    tallies = [{n: Tally(r, (k - r,) if k > r else ()) for n, (r, k) in shares.items()} for shares in (FIRST, SECOND)]
    expected = json.loads(json.dumps(paired(*tallies).table()))
    assert {key: found[key] for key in expected} == expected
    assert found["models"] == [str(a), str(b)]
    assert (found["n"], found["verdict"]) == (20, "undecided")
    assert found["difference"] == pytest.approx(3 / 80)
    assert {*found["won"]} == {"p0", "p1", "p7"}
    assert found["lost"] == {}
    assert (found["part"], found["mode"], found["parts"], found["others"], found["notes"]) == (
        "test",
        "sampled",
        [],
        [],
        [],
    )
    for text in (
        f"{b} against {a} on 20 problems of test",
        "pass@4",
        "maj@2",
        "won 3",
        "lost 0; 17 alike",
        "undecided",
    ):
        assert text in result.err
    assert slimrl("compare", a, b, "--quiet").err == ""


def test_a_file_equals_itself(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    a = stored("a.jsonl", rows(FIRST))
    result = slimrl("compare", a, a, "--json")
    found = json.loads(result.out)
    assert (found["verdict"], found["difference"], found["won"], found["lost"]) == ("equal", 0, {}, {})
    assert "sampled: equal, every problem has the same share of right answers" in result.err


def test_several_models_are_each_compared_with_the_first(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    a, b, c = (stored(f"{i}.jsonl", rows(shares)) for i, shares in enumerate((FIRST, SECOND, FIRST)))
    found = json.loads(slimrl("compare", a, b, c, "--json").out)
    (other,) = found["others"]
    assert other["models"] == [str(a), str(c)]
    assert other["verdict"] == "equal"
    assert {*other} == {*found} - {"others"}


def test_the_fewer_samples_and_the_shared_problems_decide(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    fewer = {name: (min(right, 2), 2) for name, (right, _) in FIRST.items() if name not in ("p0", "p1")}
    a, b = stored("a.jsonl", rows(FIRST)), stored("b.jsonl", rows(fewer | {"new": (1, 2)}))
    result = slimrl("compare", a, b, "--json")
    found = json.loads(result.out)
    assert found["n"] == 18
    assert [*found["pass@k"]] == [*found["maj@k"]] == ["1", "2"]
    assert f"18 problems are in both and compared; {a} has 20, {b} 19" in result.err
    assert f"{a} has 4 samples a problem, {b} 2: pass@k and maj@k are compared up to k = 2" in result.err
    assert len(found["notes"]) == 2
    limited = json.loads(slimrl("compare", a, b, "--limit", 5, "--json").out)
    assert limited["n"] == 5


def test_rewards_are_compared_where_both_have_them(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    def scored(score: float, **more: Any) -> Rows:
        return [row | {"scores": {"tone": score if row["id"] != "p3" else None, **more}} for row in rows(FIRST)]

    a, b = stored("a.jsonl", scored(0.5, only=1.0)), stored("b.jsonl", scored(0.75))
    result = slimrl("compare", a, b, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["rewards"]
    assert {*found} == {"tone"}
    assert (found["tone"]["first"], found["tone"]["second"], found["tone"]["difference"]) == (0.5, 0.75, 0.25)
    assert found["tone"]["low"] < 0.25 <= found["tone"]["high"]
    assert "tone, sampled" in result.err
    assert json.loads(slimrl("compare", a, stored("c.jsonl", rows(FIRST)), "--json").out)["rewards"] == {}
    for wrong in ({"scores": [1]}, {"scores": {"tone": "high"}}, {"independent": 1}):
        result = slimrl("compare", a, stored("d.jsonl", [row | wrong for row in rows(FIRST)]))
        assert result.code == 3
        assert "d.jsonl:1" in result.err


def test_greedy_answers_and_the_harder_split_stand_apart(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    def all_rows(shares: dict[str, tuple[int, int]]) -> Rows:
        greedy = {name: (int(right > 1), 1) for name, (right, _) in shares.items()}
        return [*rows(shares, split="harder"), *rows(greedy, mode="greedy"), *rows(shares)]

    a, b = stored("a.jsonl", all_rows(FIRST)), stored("b.jsonl", all_rows(SECOND))
    found = json.loads(slimrl("compare", a, b, "--json").out)
    assert found["part"] == "test", "it stands first, wherever its rows are"
    assert found["greedy"]["difference"] == pytest.approx(1 / 20), "p1 alone"
    assert [(part["part"], part["difference"]) for part in found["parts"]] == [("harder", found["difference"])]
    only = [line for line in all_rows(FIRST) if line["mode"] == "greedy"]
    assert json.loads(slimrl("compare", a, stored("g.jsonl", only), "--json").out)["mode"] == "greedy"


def test_several_tasks_are_compared_task_by_task(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    a = stored("a.jsonl", rows(FIRST) + rows(FIRST, task="svamp"))
    b = stored("b.jsonl", rows(FIRST) + rows(SECOND, task="svamp"))
    found = json.loads(slimrl("compare", a, b, "--json").out)
    assert [found["part"], *(part["part"] for part in found["parts"])] == ["gsm8k", "svamp"]
    assert (found["difference"], found["parts"][0]["difference"]) == (0, pytest.approx(3 / 80))
    nameless = [{key: value for key, value in line.items() if key != "task"} for line in rows(FIRST)]
    result = slimrl("compare", a, stored("c.jsonl", nameless))
    assert result.code == 3
    assert "does not say which task" in result.err
    renamed = stored("d.jsonl", rows(FIRST, task="eval-gsm8k"))
    single = json.loads(slimrl("compare", stored("e.jsonl", rows(FIRST)), renamed, "--json").out)
    assert single["verdict"] == "equal", "one task needs no name"


def test_verdicts_of_grade_are_compared(slimrl, stored: Callable[[str, Rows], Path], tmp_path: Path) -> None:
    for name, answers in {"a": ("7", "8", "8"), "b": ("7", "7", "7.0")}.items():
        lines = [{"id": 1, "answer": "7", "completion": f"#### {answer}"} for answer in answers]
        graded = stored(f"{name}-outputs.jsonl", [*lines, {"id": 2, "answer": "5", "completion": "?"}])
        assert slimrl("grade", graded, "--task", "gsm8k", "--out", tmp_path / f"{name}.jsonl").code == 0
    found = json.loads(slimrl("compare", "a.jsonl", "b.jsonl", "--json").out)
    assert found["difference"] == pytest.approx(1 / 3)
    assert found["won"] == {"1": [pytest.approx(1 / 3), 1.0]}


def test_several_right_answers_are_one_gold_answer(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    a, b = (
        stored(f"{name}.jsonl", rows(FIRST, answer=answer))
        for name, answer in (("a", ["1", "one"]), ("b", ["1", "two"]))
    )
    assert json.loads(slimrl("compare", a, a, "--json").out)["verdict"] == "equal"
    assert "has another answer in" in slimrl("compare", a, b).err


def test_files_of_versions_without_votes(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    shares = dict.fromkeys(FIRST, (1, 4))
    old = [{key: value for key, value in line.items() if key != "vote"} for line in rows(shares)]
    a, b = stored("a.jsonl", rows(shares)), stored("b.jsonl", old)
    found = json.loads(slimrl("compare", a, b, "--json").out)
    assert found["maj@k"]["4"] == found["maj@k"]["4"] | {"first": 0.0, "second": 0.0, "difference": 0.0}


@pytest.mark.parametrize(
    ("lines", "code", "sentence"),
    [
        ([{"id": "p0"}], 3, "a.jsonl:1: the row has no verdict (strict: true or false); score the file first: slimrl grade"),
        ([{"id": "p0", "strict": True, "mode": "beam"}], 3, "is neither sampled nor greedy"),
        ([{"id": "p0", "strict": True, "vote": "a"}], 3, "vote is neither a whole number nor null"),
        ([{"id": "p0", "strict": True, "scores": {"t": 1}, "bounds": [0, 1]}], 3, "a.jsonl:1: bounds is no object of [lowest, highest]"),
        ([{"id": "p0", "strict": True, "scores": {"t": 1}, "bounds": {"t": [1, 0]}}], 3, "a.jsonl:1: bounds is no object of [lowest, highest]"),
        ([{"id": "p0", "strict": True, "scores": {"t": 1}, "bounds": {"t": [True, "1"]}}], 3, "a.jsonl:1: bounds is no object of [lowest, highest]"),
        ([{"id": "p0", "strict": True, "answer": "1"}, {"id": "p0", "strict": True, "answer": "2"}], 3, "a.jsonl:2: id 'p0' stood for another"),
        ([{"id": "p0", "strict": True, "answer": "2"}], 3, "p0 has another answer in"),
        ([{"id": "p0", "strict": True, "question": "What?"}], 3, "p0 has another question in"),
        ([{"id": "q", "strict": True}], 3, "have no problem in common"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(
    lines: Rows, code: int, sentence: str, slimrl, stored: Callable[[str, Rows], Path]
) -> None:
    result = slimrl("compare", stored("a.jsonl", lines), stored("b.jsonl", rows(FIRST)))
    assert result.code == code
    assert sentence in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_bounds_of_rewards_are_in_the_rows(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    """Of two files with other bounds for a reward both must hold: a change may reach from the lowest to the highest."""

    def scored(score: float, *bounds: float | None) -> Rows:
        return [row | {"scores": {"tone": score}, "bounds": {"tone": [*bounds]}} for row in rows(FIRST)]

    def interval(first: Path, second: Path) -> tuple[float, float]:
        estimate = json.loads(slimrl("compare", first, second, "--json").out)["rewards"]["tone"]
        return estimate["low"], estimate["high"]

    narrow, wide = stored("narrow.jsonl", scored(0.5, 0, 1)), stored("wide.jsonl", scored(0.5, -4, 6))
    unknown, half = stored("unknown.jsonl", scored(0.5, None, None)), stored("half.jsonl", scored(0.5, -9.5, None))
    assert interval(unknown, unknown) == (0, 0)
    assert interval(narrow, narrow) == interval(narrow, unknown) == interval(unknown, narrow)
    assert interval(narrow, wide) == interval(wide, narrow) == interval(wide, wide) == interval(half, half)
    assert interval(wide, wide)[1] > 2 * interval(narrow, narrow)[1] > 0


def test_arguments_that_make_no_sense(slimrl, stored: Callable[[str, Rows], Path]) -> None:
    a = stored("a.jsonl", rows(FIRST))
    for arguments, sentence in (
        ((a,), "takes two or more of runs, models and files"),
        ((a, a, "evaluation.samples=2"), "evaluation.samples=2 has no effect on stored outputs"),
        ((a, a, "--task", "gsm8k"), "--task gsm8k has no effect on stored outputs"),
        ((a, "none.jsonl"), "none.jsonl"),
        ((a, a, "@eval/gsm8k"), "gsm8k.yaml has no effect on stored outputs"),
    ):
        result = slimrl("compare", *arguments)
        assert result.code == 2, result.err
        assert sentence in result.err
    with pytest.raises(
        SettingsError, match=r"^devices has no effect on stored outputs, which are compared as they are"
    ):
        slimrl_api.compare(a, a, devices=2)
    with pytest.raises(SettingsError, match=r"^data has no effect on stored outputs"):
        slimrl_api.compare(str(a), a, [{"question": "What is 1 + 1?", "answer": "2"}])


def test_nothing_is_measured_while_another_side_is_not_there(
    slimrl, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torn.jsonl").write_text("{\n")
    for other, code, sentence in (
        ("runs/none", 2, "no such run and no such folder"),
        (tmp_path / "torn.jsonl", 3, "torn.jsonl:1"),
    ):
        result = slimrl("compare", tiny_folder, other, "--limit", 2, "rollout.max_new_tokens=4")
        assert (result.code, sentence in result.err) == (code, True), result.err
        assert "held out" not in result.err
    monkeypatch.setattr("slimrl.api.verbs._evaluation", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(SettingsError, match="no such run and no such folder"):
        slimrl_api.compare(str(tiny_folder), "runs/none", quiet=True)


def test_runs_and_models(slimrl, tiny_folder: Path, tmp_path: Path) -> None:
    """A run goes by what it stored; a model is measured on the same problems with the same draws."""
    made = ("train", f"model.path={tiny_folder}", "name=r", *SMALL, "evaluation.samples=2", "rewards.format=0.1")
    assert slimrl(*made, "--quiet").code == 0
    result = slimrl("compare", "runs/r", "runs/r", "--json")
    assert (json.loads(result.out)["verdict"], result.code) == ("equal", 0)
    reward = json.loads(result.out)["rewards"]["format"]
    assert reward["low"] < reward["difference"] == 0.0 < reward["high"], "the settings know the bounds"
    assert "runs/r goes by its stored evaluation after step 2" in result.err
    before = tmp_path / "runs" / "r" / "evals" / "step-00000000.jsonl"
    result = slimrl("compare", before, tiny_folder, "runs/r", "--json", "--limit", 5)
    found = json.loads(result.out)
    assert (found["verdict"], found["n"]) == ("equal", 5), "the untrained model, under the settings of the run"
    assert [part["part"] for part in found["parts"]] == ["harder"]
    again = json.loads(slimrl("compare", "runs/r", tiny_folder, "evaluation.samples=1", "--limit", 3, "--json").out)
    assert [*again["pass@k"]] == ["1"]
    assert again["n"] == 3
