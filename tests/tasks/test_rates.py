"""Files of success rates: what is read, what is refused with its place, and which problems are chosen by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.task import EVERY_RATE, TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Problem
from slimrl.tasks import load_task
from slimrl.tasks.rates import Rate, question_digest, rated, read_rates, summary

PROBLEMS = [Problem(f"p{right}", f"What is {right} + 1?", str(right + 1)) for right in range(9)]
"""The n-th is right in n of 8 samples."""
HEADER = {"task": "gsm8k", "model": "./m", "weights": "ab", "style": "hashes", "checker": "numeric", "samples": 8}


def rows() -> list[dict[str, Any]]:
    return [Rate(p.id, question_digest(p), right, 8).row() for right, p in enumerate(PROBLEMS)]


def written(folder: Path, found: list[Any]) -> str:
    file = folder / "rates.jsonl"
    file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in found))
    return str(file)


def task(file: str, interval: list[float] = EVERY_RATE, **more: Any) -> TaskConfig:
    return TaskConfig(name="gsm8k", rates=file, success_rate=interval, **more)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert rows()[3] == {"id": "p3", "question": rows()[3]["question"], "right": 3, "samples": 8, "rate": 0.375}
    found = read_rates(written(tmp_path, [HEADER, *rows()]))
    assert found.origin == HEADER
    assert [rate.row() for rate in found.by_id.values()] == rows()
    assert found.places["p0"] == f"{tmp_path}/rates.jsonl:2"


def test_a_file_of_ones_own_needs_counts_only(tmp_path: Path) -> None:
    file = written(tmp_path, [{"id": 7, "right": 1, "samples": 4}, {"id": "b", "right": 0, "samples": 1, "note": "x"}])
    found = read_rates(file)
    assert found.origin == {}
    assert {name: (one.rate, one.question) for name, one in found.by_id.items()} == {"7": (0.25, ""), "b": (0.0, "")}
    kept, rates, notes = rated([Problem("7", "?", "1"), Problem("c", "!", "1")], task(file))
    assert [(p.id, p.difficulty, rates[p.id].samples) for p in kept] == [("7", 0.75, 4)]
    assert notes[0].startswith("task.rates: success rates, 12.5% on average")


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ("{", ":3: "),
        ({"id": "x", "samples": 8}, ":3: the row has no field 'right'"),
        ({"id": "x", "right": 1}, ":3: the row has no field 'samples'"),
        ({"right": 1, "samples": 8}, ":3: the row has no field 'id'"),
        ({"id": "x", "right": 9, "samples": 8}, ":3: 9 right of 8 samples is no success rate"),
        ({"id": "x", "right": 0, "samples": 0}, ":3: 0 right of 0 samples is no success rate"),
        ({"id": "x", "right": -1, "samples": 8}, ":3: -1 right of 8"),
        ({"id": "x", "right": 0.5, "samples": 8}, ":3: 0.5 right of 8"),
        ({"id": "x", "right": "many", "samples": 8}, ":3: field 'right' must be a number"),
        (rows()[0], ":3: id 'p0' is also that of {place}:2; remove one of them"),
    ],
)
def test_a_bad_row_is_named(bad: Any, sentence: str, tmp_path: Path) -> None:
    file = written(tmp_path, [HEADER, rows()[0], bad])
    with pytest.raises(DataError) as refused:
        read_rates(file)
    assert f"{file}{sentence.format(place=file)}" in str(refused.value)


def test_the_interval_has_both_ends_and_rates_are_difficulties(tmp_path: Path) -> None:
    file = written(tmp_path, [HEADER, *rows()])
    kept, rates, notes = rated(PROBLEMS, task(file, [0.125, 0.875]))
    assert [p.id for p in kept] == [f"p{right}" for right in range(1, 8)]
    assert [p.difficulty for p in kept] == [1 - right / 8 for right in range(1, 8)]
    assert {name: rate.right for name, rate in rates.items()} == {f"p{right}": right for right in range(1, 8)}
    assert notes == (
        "task.rates: success rates of ./m, 50.0% on average; difficulty is 1 minus the rate",
        "7 of 9 training problems have a success rate from 0.125 to 0.875 (task.success_rate)",
    )
    assert [p.id for p in rated(PROBLEMS, task(file, [0.5, 0.5]))[0]] == ["p4"]
    everything, _, said = rated(PROBLEMS, task(file))
    assert [p.id for p in everything] == [p.id for p in PROBLEMS]
    assert len(said) == 1
    with pytest.raises(
        SettingsError, match=r"none of 9 training problems .* from 0\.3 to 0\.32 .* widen task\.success_rate"
    ):
        rated(PROBLEMS, task(file, [0.3, 0.32]))


def test_problems_without_a_rate_are_left_out_and_counted(tmp_path: Path) -> None:
    file = written(tmp_path, [HEADER, *rows()[:7]])
    kept, _, notes = rated(PROBLEMS, task(file))
    assert len(kept) == 7
    assert notes[-1] == (
        f"2 of 9 training problems have no rate in {file} and are left out, the first of them p7; slimrl difficulty measures "
        "the rest"
    )
    with pytest.raises(SettingsError, match=r"has none of the 1 training problems \(the first is other\)"):
        rated([Problem("other", "?", "1")], task(file))


def test_the_rate_of_another_question_ends_the_run(tmp_path: Path) -> None:
    file = written(tmp_path, [HEADER, *rows()])
    spelled = [Problem(p.id, p.question.replace("What is", "  what IS "), p.answer) for p in PROBLEMS]
    assert len(rated(spelled, task(file))[0]) == 9, "a difference that means nothing"
    other = [*PROBLEMS[:2], Problem("p2", "What is 3 - 1?", "2"), *PROBLEMS[3:]]
    with pytest.raises(DataError, match=r"rates\.jsonl:4: p2 asked something else when its rate was measured"):
        rated(other, task(file))
    turns = (("user", "What is 1 + 1?"), ("assistant", "2"), ("user", PROBLEMS[2].question))
    with pytest.raises(DataError, match=r"rates\.jsonl:4: "):
        rated([Problem("p2", PROBLEMS[2].question, "3", turns=turns)], task(file))


def test_rates_of_another_form_of_answers_are_noted(tmp_path: Path) -> None:
    file = written(tmp_path, [HEADER, *rows()])
    notes = rated(PROBLEMS, task(file, style="boxed", checker="symbolic"))[2]
    assert notes[1:] == (
        "the rates were measured with task.style=hashes, and answers are read with boxed",
        "the rates were measured with task.checker=numeric, and answers are read with symbolic",
    )


def test_a_task_has_the_chosen_problems_and_its_held_out_ones(tmp_path: Path) -> None:
    data = [{"id": p.id, "question": p.question, "answer": p.answer} for p in PROBLEMS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    file = written(tmp_path, [HEADER, *rows()])
    path = str(tmp_path / "rows.jsonl")
    plain = load_task(TaskConfig(name="jsonl", path=path), instruction="", seed=0)
    chosen = load_task(TaskConfig(name="jsonl", path=path, rates=file, success_rate=[0.5, 1.0]), instruction="", seed=0)
    assert chosen.test == plain.test
    assert [p.id for p in chosen.train] == [p.id for p in plain.train if int(p.id[1:]) >= 4]
    assert {*chosen.rates} == {p.id for p in chosen.train}
    assert any("task.success_rate" in note for note in chosen.notes)
    assert plain.rates == {}


def test_a_summary_by_hand() -> None:
    found = summary([Rate("a", "", 0, 4), Rate("b", "", 1, 4), Rate("c", "", 4, 4), Rate("d", "", 4, 4)])
    assert found["histogram"] == [1, 1, 0, 0, 2]
    assert (found["n"], found["samples"], found["at_0"], found["at_1"]) == (4, 4, 0.25, 0.5)
    assert found["mean"] == 9 / 16
    assert 0 <= found["low"] < 9 / 16 < found["high"] <= 1
