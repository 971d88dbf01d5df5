"""Measuring from Python: the numbers of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import slimrl
from slimrl.api.screen import SECONDS, Brief
from tests.api.conftest import SMALL
from tests.api.test_runs import ROWS, command

FEW = {"evaluation": {"problems": 4, "harder_problems": 0, "greedy": False}}


def test_an_evaluation_is_that_of_the_command_line(tmp_path: Path, finished: slimrl.Result) -> None:
    found = slimrl.evaluate(finished, quiet=True)
    told = json.loads(command(tmp_path, "eval", str(finished.path), "--json", "--quiet").stdout)
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
