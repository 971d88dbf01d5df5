"""The runs of a study: their folders, and the record of each."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from slimrl.errors import DataError
from slimrl.study.runs import LONGEST_NAME, Planned, planned_runs, read_run, run_folder
from slimrl.study.spec import Expanded, load_study
from tests.study.folders import write_run


@pytest.fixture
def expanded(tmp_path: Path) -> Expanded:
    (tmp_path / "study.yaml").write_text("seeds: 2\narms: {kl: algorithm.kl_coef=0}\n")
    return load_study([str(tmp_path / "study.yaml")])


@pytest.fixture
def run(expanded: Expanded, tmp_path: Path) -> Planned:
    return planned_runs(expanded, tmp_path)[0]


def test_a_finished_run_has_all_measures(run: Planned) -> None:
    write_run(run, [1, 2], steps=3, tokens=100)
    found = read_run(run, "test/sampled")
    assert (found.arm, found.index, found.seed, found.status, found.folder) == ("base", 0, 0, "finished", "runs/base-0")
    assert (found.steps, found.tokens, found.seconds) == (3, 300, 6.0)
    assert (found.before["test/sampled"], found.value("test/sampled")) == (0.1, 0.2)
    cells = [found.after[key] for key in ("right", "right_out_of_form", "wrong_in_form", "wrong_out_of_form")]
    assert cells == pytest.approx([0.2, 0.0, 0.7, 0.1]), "problem 0 is out of form, and wrong"
    assert found.held_out == [(0.0, 0.0, 0.1), (300.0, 6.0, 0.2)]
    assert found.curves["tokens"] == [100.0, 200.0, 300.0]
    assert all(math.isnan(x) for x in found.curves["kl"]), "never logged"


def test_a_run_that_has_not_ended_has_no_measures(run: Planned) -> None:
    assert read_run(run, "test/sampled").status == "missing"
    write_run(run, [1, 2], status="preempted")
    found = read_run(run, "test/sampled")
    assert (found.status, found.counts, found.steps, found.after, found.before) == ("missing", False, 0, {}, {})
    write_run(run, [1, 2], status="failed")
    assert read_run(run, "test/sampled").status == "failed"


def test_damaged_metrics_of_a_result_are_named(run: Planned) -> None:
    write_run(run, [1, 2])
    (run.folder / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"base-0/metrics\.jsonl is damaged"):
        read_run(run, "test/sampled")


def test_a_completion_with_line_ends_of_other_kinds_loses_no_row(expanded: Expanded, tmp_path: Path) -> None:
    run = planned_runs(expanded, tmp_path)[0]
    write_run(run, [1, 2])
    whole = read_run(run, "test/sampled")
    path = run.folder / "evals" / "step-00000003.jsonl"
    path.write_text(path.read_text().replace("text of 2", "\u2028\u2029\x85"))
    assert read_run(run, "test/sampled").items == whole.items
    assert len(whole.items) == 10


def test_folders_of_long_names_stay_short_and_apart(tmp_path: Path) -> None:
    names = {
        run_folder(tmp_path, "+".join([*parts, "x" * 30]), 0).name for parts in (["a" * 40], ["a" * 40, "b"], ["b"])
    }
    assert len(names) == 3
    assert max(map(len, names)) <= LONGEST_NAME + 2
