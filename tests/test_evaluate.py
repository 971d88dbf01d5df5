"""Held-out measurement in a run: the same problems and draws before and after, stored as they were judged."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.evaluate import evaluate
from slimrl.machine.signals import Stopped
from slimrl.measures import Tally
from slimrl.preflight.setup import Setup, prepare
from slimrl.tasks import Task
from slimrl.tasks.answers import Grade
from tests.test_train import SMALL, run


def test_evaluation_is_paired_and_stored(tmp_path: Path) -> None:
    summary = run(tmp_path, "a", *SMALL, "evaluation.samples=2")
    before, after = (
        [json.loads(line) for line in (Path(summary.run) / "evals" / name).read_text().splitlines()]
        for name in ("step-00000000.jsonl", "step-00000003.jsonl")
    )
    assert [(r["id"], r["mode"], r["sample"]) for r in before] == [(r["id"], r["mode"], r["sample"]) for r in after]
    assert len(before) == (8 + 4) * (2 + 1)
    drawn = [r["strict"] for r in before if r["split"] == "test" and r["mode"] == "sampled"]
    assert summary.before["accuracy"] == pytest.approx(sum(drawn) / 16)
    assert {r["id"].split("/")[1] for r in before} == {"test", "harder"}


@pytest.fixture
def prepared(tmp_path: Path) -> Setup[TrainConfig]:
    """Six groups of three completions in three slots, so that they end one after the other."""
    more = ("rollout.slots=3", "rollout.max_new_tokens=8", "evaluation.problems=4", "evaluation.harder_problems=2")
    return prepare(load_config(TrainConfig, [], [*more, "evaluation.samples=2", f"output={tmp_path}"]))


def beside(prepared: Setup[TrainConfig], monkeypatch: pytest.MonkeyPatch, graded: threading.Event) -> list[bool]:
    """Sampling that waits, after its third group, for a group to be graded; tells in the list whether one was."""
    generate, found, handed = prepared.engine.generate, [], itertools.count(1)

    def watched(*given: Any, on_group: Any, **more: Any) -> Any:
        def handed_over(index: int, completions: Any) -> None:
            on_group(index, completions)
            if next(handed) == 3:
                found.append(graded.wait(30))

        return generate(*given, on_group=handed_over, **more)

    monkeypatch.setattr(prepared.engine, "generate", watched)
    return found


def test_groups_are_graded_while_others_are_sampled(
    prepared: Setup[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    graded, grade = threading.Event(), Task.grade

    def seen(self: Task, text: str, answer: str) -> Grade:
        found = grade(self, text, answer)
        graded.set()
        return found

    alone = evaluate(prepared, step=0)
    monkeypatch.setattr(Task, "grade", seen)
    found = beside(prepared, monkeypatch, graded)
    watched = evaluate(prepared, step=0)
    assert found == [True]
    assert watched == alone
    assert [(r.id, r.mode, r.sample) for r in watched.test.rows] == [
        *((p.id, "sampled", n) for p in prepared.held_out for n in (0, 1)),
        *((p.id, "greedy", 0) for p in prepared.held_out),
    ]


def test_progress_counts_problems_and_votes_tell_answers_apart(
    prepared: Setup[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    verdicts = Grade(False, False, "8", "8"), Grade(False, False, "8.0", "8.0"), Grade(False, False, "", "9")
    given = itertools.cycle(verdicts)
    monkeypatch.setattr(Task, "grade", lambda *_: next(given))
    found = evaluate(prepared, step=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(7)]
    votes = [row.vote for row in (*found.test.rows, *found.harder.rows)]
    assert votes == [0, 0] * 4 + [None] * 4 + [0, 0] * 2 + [None] * 2
    assert [*found.test.tallies().values()] == [Tally(0, (2,))] * 4
    assert [*found.test.tallies("greedy").values()] == [Tally(0, (), 1)] * 4


def test_what_fails_in_grading_ends_the_evaluation(
    prepared: Setup[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Grade:
        raise RuntimeError("a defect in the checker")

    monkeypatch.setattr(Task, "grade", fail)
    with pytest.raises(RuntimeError, match="a defect in the checker"):
        evaluate(prepared, step=0)


def test_a_stop_waits_for_no_grading(prepared: Setup[TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first completion is graded as long as the evaluation lasts, and those behind it never are."""
    begun, over, grade, count = threading.Event(), threading.Event(), Task.grade, []

    def slow(self: Task, text: str, answer: str) -> Grade:
        count.append(text)
        begun.set()
        assert over.wait(30)
        return grade(self, text, answer)

    def stopped_once_begun() -> None:
        if begun.is_set():
            raise Stopped("SIGTERM", 75)

    monkeypatch.setattr(Task, "grade", slow)
    monkeypatch.setattr(prepared.stop, "check", stopped_once_begun)
    with pytest.raises(Stopped):
        evaluate(prepared, step=0)
    over.set()
    prepared.grading.shutdown()
    assert len(count) == 1, "the completion that was being graded"
