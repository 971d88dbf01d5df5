"""Measuring from Python: the numbers of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import slimrl
from slimrl.api import verbs
from slimrl.api.measuring import measuring_settings
from slimrl.api.screen import SECONDS, Brief
from slimrl.config.schema import EvalConfig
from slimrl.config.task import TaskConfig
from slimrl.results import SplitEvaluation
from tests.api.conftest import SMALL
from tests.api.test_runs import ROWS
from tests.conftest import Ended
from tests.forks import studies_fork as studies_fork
from tests.judges import serving

FEW = {"evaluation": {"problems": 4, "harder_problems": 0, "greedy": False}}


def test_an_evaluation_is_that_of_the_command_line(finished: slimrl.Result, command_line: Callable[..., Ended]) -> None:
    found = slimrl.evaluate(finished, quiet=True)
    told = json.loads(command_line("eval", str(finished.path), "--json", "--quiet").out)
    assert found.measures()["test"] == told["test"]
    assert found.summaries() == finished.after.summaries()
    assert slimrl.evaluate(finished, limit=2, quiet=True).test.summary()["n"] == 2


def test_every_row_is_measured_and_every_reward(
    tmp_path: Path, finished: slimrl.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def brief(completions: list[str], **_: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    monkeypatch.chdir(tmp_path)
    found = slimrl.evaluate(finished, ROWS, rewards=["correct", brief], quiet=True)
    assert len(found.test.by_problem("sampled")) == len(ROWS)
    assert found.test.summary()["rewards/brief"] < 0
    assert [*tmp_path.iterdir()] == [], "nothing stays"
    assert len(slimrl.evaluate("builtin", ROWS, limit=7, quiet=True).test.by_problem("greedy")) == 7
    with pytest.raises(slimrl.DataError, match=r"^data\[1\]: the row has no field"):
        slimrl.evaluate("builtin", [ROWS[0], {"answer": 3}, ROWS[1]], quiet=True)


DATA_OF_A_RUN: dict[str, Any] = {
    "subset": "main", "split": "all", "test_split": "validation", "test_path": "b.jsonl", "checker": "choice",
    "columns": {"question": "ask", "choices": "c"}, "on_bad_row": "skip", "answers": "shuffled", "rates": "r.jsonl",
    "success_rate": [0.1, 0.9],
}  # fmt: skip
"""Settings of a task that are of its data; those left go with the model."""
FORM_OF_A_RUN: dict[str, Any] = {
    "style": "boxed", "instruction": "Think.", "template": "plain", "template_arguments": {"enable_thinking": False}, "date": "2026-01-05",
}  # fmt: skip


@pytest.mark.parametrize("data", ["rows", "file", "hub"])
def test_the_settings_of_a_run_s_data_are_not_those_of_other_data(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {*DATA_OF_A_RUN, *FORM_OF_A_RUN, "name", "path", "arithmetic"} == {*TaskConfig.model_fields}
    run = tmp_path / "run"
    run.mkdir()
    task = {"path": "owner/name", **DATA_OF_A_RUN, **FORM_OF_A_RUN}
    (run / "config.yaml").write_text(json.dumps({"task": task, "rollout": {"max_new_tokens": 99}}))
    (run / "run.json").write_text('{"chosen": {"rollout.max_new_tokens": 99}}')
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    given: Any = {"rows": ROWS, "file": tmp_path / "rows.jsonl", "hub": "owner/other"}[data]
    measured: list[EvalConfig] = []

    def measure(_model: str, config: EvalConfig, *_: Any, **_more: Any) -> slimrl.Evaluation:
        measured.append(config)
        return slimrl.Evaluation(0, SplitEvaluation(()), SplitEvaluation(()))

    monkeypatch.setattr(verbs, "evaluation_of", measure)
    slimrl.evaluate(str(run), given, task={"on_bad_row": "skip"}, quiet=True)
    (config,) = measured
    own = {"path", "test_path", "on_bad_row", "name"}
    for key in {*DATA_OF_A_RUN} - own:
        assert getattr(config.task, key) == getattr(TaskConfig(), key), key
    assert {key: getattr(config.task, key) for key in FORM_OF_A_RUN} == FORM_OF_A_RUN
    assert (config.task.name, config.task.on_bad_row) == ("jsonl", "skip"), "what is given beside the data stays"
    assert config.task.test_path == ("owner/other" if data == "hub" else "")
    assert config.rollout.max_new_tokens == "auto", "it was chosen for the other data"
    assert measuring_settings(str(run), {}).task.columns.question == "ask", "the run's own data"


def test_answers_that_no_completion_can_match_are_said(
    finished: slimrl.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"Is {i} even?", "answer": ["yes", "no"][i % 2]} for i in range(6)]
    refused = (
        "none of the 6 held-out answers can be matched by any completion: answer '(yes|no)' is not one number; set task"
    )
    with pytest.raises(slimrl.DataError, match=refused):
        slimrl.evaluate(finished, rows, quiet=True)
    mixed = [*rows, *ROWS]
    slimrl.evaluate(finished, mixed, **FEW)
    said = " ".join(capsys.readouterr().err.split())
    assert "6 of the 31 held-out answers cannot be matched by any completion: answer '" in said
    slimrl.evaluate(finished, mixed, task={"checker": "exact"}, **FEW)
    assert "matched" not in capsys.readouterr().err


def test_a_function_of_the_program_is_named_where_it_is_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def brief(completions: list[str], **_: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    result = slimrl.train(rewards=["correct", brief], output=tmp_path, **SMALL)
    assert "rewards/brief" in result.after.test.summary()
    assert "rewards/brief" not in slimrl.evaluate(result).test.summary()
    assert "__main__:brief is a function of the Python program that began the run" in capsys.readouterr().err
    assert "rewards/brief" in slimrl.evaluate(result, rewards=["correct", brief], quiet=True).test.summary()


def test_two_models_are_compared_on_what_they_share(finished: slimrl.Result) -> None:
    stored = slimrl.compare(finished, finished.after, quiet=True)
    assert stored.change.value == 0.0
    assert stored.change.n == 4
    assert stored.parts["test"]["sampled"].verdict == "equal"
    measured = slimrl.compare("builtin", finished, ROWS, limit=5, quiet=True, **FEW)
    assert measured.names == ("builtin", finished.path.name)
    assert measured.parts["test"]["sampled"].n == 5
    assert f"<slimrl.Compared {finished.path.name} against builtin>" in repr(measured)
    with pytest.raises(slimrl.DataError, match="have no problem in common"):
        slimrl.compare(finished, slimrl.evaluate("builtin", ROWS, limit=3, quiet=True))


@pytest.mark.usefixtures("studies_fork")
def test_a_study_of_settings_in_python(tmp_path: Path) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "quiet"}
    plan = {"arms": {"kl": "algorithm.kl_coef=0.1"}, "seeds": 1}
    done = slimrl.study(plan, name="s", output=tmp_path, quiet=True, **settings)
    assert (done.path / "report.html").is_file()
    assert next(effect.name for effect in done.results.effects) == "kl"
    assert repr(done).startswith(f"<slimrl.Study {tmp_path / 's'}>\n{done.answer[0]}")
    again = slimrl.study(plan, name="s", output=tmp_path, quiet=True, **settings)
    assert again.results.runs == done.results.runs, "nothing was left to do"
    with pytest.raises(slimrl.SettingsError, match=r"^rewards: no other process can load lambda"):
        slimrl.study(plan, name="t", output=tmp_path, rewards=[lambda **_: []], **settings)
    assert not (tmp_path / "t").exists()


def test_the_brief_screen_says_little(capsys: pytest.CaptureFixture[str], finished: slimrl.Result) -> None:
    screen, metrics = Brief(), {"time/total": 5.0, "reward": 0.25}
    for step in range(50):
        screen.step(step, 50, metrics, None, None)  # type: ignore[arg-type]
    screen.note("once")
    screen.note("once")
    screen.evaluation(finished.before)
    screen.say("a\x1b[2Jb")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert SECONDS > 1
    assert lines[:3] == ["step 1/50, reward 0.250, 4m05s left", "step 50/50, reward 0.250, 0s left", "note: once"]
    assert lines[3].startswith("held out (test) after step 0: ")
    assert lines[4:] == ["a\\x1b[2Jb"]


REFUSALS: dict[str, tuple[Any, str]] = {
    "a wrong model": (
        (404, {}, b'{"error": "no model nope"}'),
        """was answered 404 Not Found by its judge ({"error": "no model nope"}); correct endpoint, model or api_key_env of rewards.judge.q""",
    ),
    "a wrong key": ((401, {}, b""), "was answered 401 Unauthorized by its judge; correct endpoint, model or api_key_env of rewards.judge.q"),
    "no score": ("I like it.", "ask for a last line like Score: 7 in rewards.judge.q.prompt, or set its pattern"),
}  # fmt: skip


@pytest.mark.parametrize("weight", [0.5, 0])
@pytest.mark.parametrize("what", REFUSALS)
@pytest.mark.parametrize("in_python", [False, True])
def test_a_judge_that_gives_no_score_is_told_once_with_the_way_out(
    what: str,
    weight: float,
    in_python: bool,
    tmp_path: Path,
    command_line: Callable[..., Ended],
    capsys: pytest.CaptureFixture[str],
) -> None:
    reply, way_out = REFUSALS[what]
    with serving(lambda *_: reply) as server:
        judge = {
            "endpoint": server.endpoint,
            "model": "nope",
            "prompt": "{completion}",
            "low": 0,
            "high": 1,
            "weight": weight,
        }
        rewards: dict[str, Any] = {"judge": {"q": judge | {"cache": str(tmp_path / "cache"), "retries": 0}}}
        rewards |= {} if weight else {"watched": ["q"]}
        if not in_python:
            few = ("evaluation.problems=4", "evaluation.harder_problems=0", "evaluation.greedy=false")
            (tmp_path / "judge.yaml").write_text(json.dumps({"rewards": rewards}))
            said = command_line("eval", "builtin", "judge.yaml", *few).err
        else:
            slimrl.evaluate("builtin", **FEW, **{f"rewards.{key}": value for key, value in rewards.items()})
            said = capsys.readouterr().err
    said = " ".join(said.split())
    assert said.count("warning: 4 of 4 held-out completions (test) without a score: reward q ") == 1
    assert said.count(way_out) == 1
