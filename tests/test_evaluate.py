"""Held-out measurement in a run: the same problems and draws before and after, stored as they were judged."""

from __future__ import annotations

import itertools
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from slimrl.api.comparing import Outputs, matched
from slimrl.api.stored import read_outputs
from slimrl.config.files import load_config
from slimrl.config.schema import EvalConfig, TrainConfig
from slimrl.errors import SettingsError
from slimrl.evaluate import bounds_of, declared_bounds, evaluate
from slimrl.machine.signals import Stopped
from slimrl.measures import Tally
from slimrl.preflight.price import measuring_notes
from slimrl.preflight.setup import Setup, prepare, prepare_measuring
from slimrl.results import Evaluation
from slimrl.runs.files import write_jsonl
from slimrl.runs.measured import read_evaluations
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


REWARDS = """
import time

def tone(completions, **_):
    return [-0.5 if "#" in text else None for text in completions]

def slow(completions, **_):
    time.sleep(0.1 * len(completions))
    return [1.0] * len(completions)

def hangs(completions, **_):
    time.sleep(600)

def fails(completions, **_):
    return [float(len(text) / 0) for text in completions]


def long(completions, **columns):
    return [float(len(text)) for text in completions]


def free(completions, **columns):
    return [float(len(text) % 7) for text in completions]
"""
FEW = ("rollout.max_new_tokens=16", "evaluation.problems=4", "evaluation.harder_problems=0", "evaluation.samples=2")


def measured(*settings: str) -> Evaluation:
    """Of the built-in model, with rewards and twins."""
    setup = prepare_measuring(load_config(EvalConfig, [], [*FEW, *settings]))
    assert setup.scorer is not None
    with setup.scorer:
        found = evaluate(setup, step=0)
    setup.grading.shutdown()
    return found


def custom(tmp_path: Path, *names: str) -> str:
    (tmp_path / "mine.py").write_text(REWARDS)
    return "rewards.custom={" + ", ".join(f"{tmp_path}/mine.py:{name}: {{low: -1, high: 1}}" for name in names) + "}"


def test_every_paid_reward_scores_every_held_out_completion(tmp_path: Path) -> None:
    settings = ("rewards.format=0.1", "rewards.random=1", custom(tmp_path, "tone"))
    found = measured(*settings)
    assert measured(*settings, "rewards.workers=0") == found, "in processes or not"
    assert len(found.test.rows) == 4 * (2 + 1)
    for row in found.test.rows:
        assert {*row.scores} == {"format", "random", "tone"}, "correct is the strict verdict"
        assert row.scores["format"] == float(row.well_formed)
        assert row.scores["random"] in (0.0, 1.0)
        assert row.scores["tone"] == (-0.5 if "#" in row.text else None), "None: it does not apply"
        assert row.unscorable == ""
        assert row.independent is row.lenient, "on plain sums both read the last number"
    assert found.test.bounds == {"format": (0.0, 1.0), "random": (0.0, 1.0), "tone": (-1.0, 1.0)}
    summary = found.summaries()["test"]
    drawn = [row.scores["format"] for row in found.test.rows if row.mode == "sampled"]
    assert summary["rewards/format"] == summary["format"] == pytest.approx(sum(filter(None, drawn)) / 8)


def test_a_function_that_hangs_or_fails_costs_its_own_scores_and_no_evaluation(tmp_path: Path) -> None:
    found = measured(
        "evaluation.problems=2",
        "rewards.format=1",
        "rewards.deadline=0.5",
        custom(tmp_path, "hangs", "fails"),
    )
    for row in found.test.rows:
        assert row.scores == {"format": float(row.well_formed), "hangs": None, "fails": None}
        assert row.unscorable == "reward hangs took longer than rewards.deadline=0.5 s"
    summary = found.summaries()["test"]
    assert summary["unscorable"] == 1.0
    assert "rewards/format" in summary
    assert "rewards/hangs" not in summary


BROKEN = {
    "gone.py:f": "there is no file",
    "no_such_package.rewards:f": "there is no module no_such_package.rewards",
    "broken.py:f": "running the file raised ZeroDivisionError",
    "ends.py:f": "ended its worker by exit code 3 while it was loaded",
    "mine.py:other": "defines no other",
}


@pytest.mark.parametrize("workers", ["auto", "0"])
def test_rewards_that_cannot_be_loaded_are_left_out_before_anything_is_sampled(tmp_path: Path, workers: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "ends.py").write_text("import os\nos._exit(3)")
    broken = {**BROKEN} if workers == "auto" else {key: why for key, why in BROKEN.items() if "ends" not in key}
    places = [f"{tmp_path}/{spec}" if ".py" in spec else spec for spec in broken]
    judge = "rewards.judge.tone={endpoint: 'http://h', model: m, prompt: '{completion}', low: 0, high: 1, api_key_env: NO_KEY}"
    given = [*FEW, custom(tmp_path, "tone"), *(f"rewards.custom.{place}=1" for place in places), judge]
    setup = prepare_measuring(load_config(EvalConfig, [], [*given, "rewards.format=1", f"rewards.workers={workers}"]))
    assert setup.scorer is not None
    with setup.scorer:
        found = evaluate(setup, step=0)
    left_out = [note for note in setup.notes if note.startswith("not measured: ")]
    assert len(left_out) == len(broken) + 1
    for spec, why in {**broken, "rewards.judge.tone": "there is no such environment variable"}.items():
        (note,) = [note for note in left_out if spec in note]
        assert why in note
    assert not any("calls" in note for note in setup.notes), "a judge that is not asked has no price"
    assert found.test.rewards == ["format", "tone"]
    assert {row.unscorable for row in found.test.rows} == {""}


def test_rewards_that_are_not_measured() -> None:
    setup = prepare_measuring(load_config(EvalConfig, [], [*FEW]))
    assert setup.scorer is None, "correct alone is the accuracy, and costs nothing more"
    with pytest.raises(SettingsError, match=r"task\.style=tags"):
        prepare_measuring(load_config(EvalConfig, [], [*FEW, "rewards.check_answer=1"]))


def test_a_deadline_is_for_a_group_and_grows_with_the_completions(tmp_path: Path) -> None:
    """Two groups of 3 completions and a rest of one take what would be too long for a group."""
    settings = (
        "evaluation.samples=6",
        "evaluation.problems=1",
        "rewards.deadline=0.5",
        custom(tmp_path, "slow", "hangs"),
    )
    config = load_config(EvalConfig, [], [*FEW, *settings])
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"group_size": 3})})
    setup = prepare_measuring(config)
    assert setup.scorer is not None
    with setup.scorer:
        found = evaluate(setup, step=0)
    assert {row.scores["slow"] for row in found.test.rows} == {1.0}
    assert {row.unscorable for row in found.test.rows} == {
        "reward hangs took longer than 3 times rewards.deadline=0.5 s"
    }


def test_bounds_and_judges_calls_are_known_from_the_settings(tmp_path: Path) -> None:
    judge = "rewards.judge.tone={endpoint: 'http://127.0.0.1:9', model: m, prompt: '{completion}', low: 0, high: 10}"
    own = f"rewards.custom={{{tmp_path}/mine.py:free: 0.5, {tmp_path}/mine.py:bound: {{low: -1}}}}"
    config = load_config(EvalConfig, [], [*FEW, "rewards.cosine_length=1", "rewards.cosine_right_short=3", judge, own])
    assert declared_bounds(config.rewards) == {
        "correct": (0.0, 1.0), "cosine_length": (-10.0, 3.0), "free": (-math.inf, math.inf), "bound": (-1.0, math.inf),
        "tone": (0.0, 10.0),
    }  # fmt: skip
    assert measuring_notes(config, 4) == ["judge tone: at most 12 calls, without retries"]
    assert measuring_notes(load_config(EvalConfig, [], []), 4) == []


def test_stored_completions_know_the_bounds_of_their_rewards(tmp_path: Path) -> None:
    """Every number of an evaluation is the same from its file, with known, half-known and unknown bounds."""
    (tmp_path / "mine.py").write_text(REWARDS)
    own = f"{{{tmp_path}/mine.py:tone: {{low: -1, high: 1}}, {tmp_path}/mine.py:long: {{low: 0}}, {tmp_path}/mine.py:free: 1}}"
    found = measured(f"rewards.custom={own}", "rewards.cosine_length=1")
    assert found.test.bounds == {
        "cosine_length": (-10.0, 2.0), "tone": (-1.0, 1.0), "long": (0.0, math.inf), "free": (-math.inf, math.inf),
    }  # fmt: skip
    file = tmp_path / "out.jsonl"
    write_jsonl(file, [{"task": "arithmetic", **row} for row in found.table()])
    (stored,) = read_outputs(str(file)).values()
    assert stored.bounds == found.test.bounds
    assert stored.measures() == found.test.measures()
    assert {row.thinking for row in stored.rows} == {row.thinking for row in found.test.rows}
    sides = [Outputs(name, {("", "test"): rows}) for name, rows in (("here", found.test), ("stored", stored))]
    assert matched(sides[0], sides[0], None)[0] == matched(sides[1], sides[1], None)[0]
    assert "Infinity" not in file.read_text()


def test_twins_are_a_split_of_their_own() -> None:
    setup = prepare(load_config(EvalConfig, [], [*FEW, "evaluation.twins=3", "evaluation.greedy=false"]))
    found = evaluate(setup, step=0)
    assert [row.id for row in found.twins.rows[::2]] == [f"{p.id}/twin" for p in setup.held_out[:3]]
    assert {*found.drops()} == {p.id for p in setup.held_out[:3]}
    assert found.summaries()["twins"]["n"] == 3
    asked = {row.id: row.question for row in (*found.test.rows, *found.twins.rows)}
    assert all(asked[name] != asked[f"{name}/twin"] for name in found.drops())
    one_more = prepare(load_config(EvalConfig, [], [*FEW, "evaluation.twins=5"]))
    assert any("4 of 4 held-out problems have a twin, fewer than evaluation.twins=5" in note for note in one_more.notes)
    with pytest.raises(SettingsError, match=r"evaluation\.twins has no effect.*gsm8k"):
        load_config(EvalConfig, [], ["task.name=gsm8k", "evaluation.twins=5"])


def test_a_run_has_its_rewards_before_and_after_and_reads_them_back(tmp_path: Path) -> None:
    more = ("evaluation.twins=4", "rewards.format=0.5", "rewards.random=0.5")
    summary = run(tmp_path, "a", *SMALL, *more)
    assert {*summary.difference["test"]} == {
        "sampled", "greedy", "disputed", "rewards/format", "greedy_rewards/format", "rewards/random", "greedy_rewards/random",
    }  # fmt: skip
    change = summary.difference["test"]["rewards/format"]
    assert change["change"] == pytest.approx(summary.after["rewards/format"] - summary.before["rewards/format"])
    assert summary.difference["test"]["rewards/random"]["change"] == 0.0, "the same coins before and after"
    assert {*summary.twins} == {"before", "after"}
    assert summary.difference["twins"]["drop"]["n"] == 4
    assert summary.findings == []
    setup = prepare_measuring(load_config(EvalConfig, [], [*SMALL[-2:], *more]))
    assert setup.scorer is not None
    setup.scorer.close()
    back = [*read_evaluations(Path(summary.run), up_to=99)]
    assert back[0].test.bounds == bounds_of(setup), "which are in the rows"
    assert [one.step for one in back] == [0, 3]
    assert back[0].summaries()["test"] == summary.before
    assert back[1].summaries()["twins"] == summary.twins["after"]
