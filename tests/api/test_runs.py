"""Runs from Python: the same as those of the command line, and guests in the program that calls."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import slimrl
from slimrl.report.record import read_run
from slimrl.report.run_tables import remarks
from slimrl.runs.reader import read_status
from slimrl.text import counted
from tests.api.conftest import OVERRIDES, SMALL
from tests.conftest import Ended

ROWS = [{"question": f"How many is {a} plus {b}?", "answer": a + b} for a in range(2, 7) for b in range(2, 7)]


def lengths(completions: list[str], **_: Any) -> list[float]:
    """A reward that a worker can load: this module is imported."""
    return [float(len(text)) for text in completions]


def test_weights_are_those_of_the_command_line_and_of_a_second_call(
    tmp_path: Path, finished: slimrl.Result, command_line: Callable[..., Ended]
) -> None:
    second = slimrl.train(output=tmp_path, **SMALL)
    told = json.loads(command_line("train", *OVERRIDES, "--json", "--quiet").out)
    assert second.path != finished.path
    assert told["weights"] == second.summary["weights"] == finished.summary["weights"]
    assert told["optimizer"] == second.summary["optimizer"]
    assert told["after"] == second.after.summaries()["test"]


def test_the_bar_of_a_plain_script_without_a_guard(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(
        "def short(completions, **_):\n    return [-len(c) / 100 for c in completions]\n"
    )
    (tmp_path / "script.py").write_text(
        "import slimrl\nfrom beside import short\n\n"
        "open('runs.txt', 'a').write('x')\n\n"
        "def brief(completions, **_):\n    return [-len(c) / 100 for c in completions]\n\n"
        f"rows = {ROWS!r}\n"
        'result = slimrl.train(model="builtin", data=rows, rewards=["correct", (brief, 0.1), (short, 0.2)], steps=2, '
        '**{"rollout.problems": 2, "rollout.group_size": 2, "rollout.max_new_tokens": 16, "evaluation.problems": 4})\n'
        "print(result.path, list(result.records[0]).count('rewards/short/mean'))\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path, found = done.stdout.split()
    assert found == "1", "nothing of ours is on stdout"
    assert (tmp_path / "runs.txt").read_text() == "x", "no worker runs the script"
    assert "note: brief: no worker can load this part of the program" in done.stderr
    written = (tmp_path / path / "config.yaml").read_text()
    assert written.startswith("# The rewards __main__:... are functions of the Python program")
    assert f"{tmp_path / 'beside.py'}:short:" in written
    assert [json.loads(line) for line in (tmp_path / path / "data.jsonl").read_text().splitlines()] == ROWS


def test_an_interrupted_run_goes_on_with_the_function_and_not_without(
    tmp_path: Path, command_line: Callable[..., Ended]
) -> None:
    calls: list[int] = []
    settings = SMALL | {"steps": 3, "output": tmp_path, "checkpoint": {"every": 0}}

    def odd(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        if len(calls) == stop_at:
            signal.raise_signal(signal.SIGINT)
        return [float(sum(map(ord, text)) % 7) for text in completions]

    stop_at = 0
    whole = slimrl.train(rewards=[odd], name="whole", **settings)
    # in the second step: behind the last look at the stop, in the last evaluation, the run just ends
    stop_at = 2 * len(calls) - 7
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(
        KeyboardInterrupt,
        match=r'^stopped by SIGINT after step \d; resume with slimrl\.train\(resume=".*cut", rewards=\[\.\.\.\]\)$',
    ):
        slimrl.train(rewards=[odd], name="cut", **settings)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (tmp_path / "cut" / "checkpoints").is_dir()
    with pytest.raises(
        slimrl.SettingsError, match=r"'__main__:odd' is a function of the Python program that began the run"
    ):
        slimrl.train(resume=tmp_path / "cut", quiet=True)
    refused = command_line("train", "--resume", str(tmp_path / "cut"))
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "resume it there with slimrl.train(resume=RUN, rewards=[...])" in refused.err
    stop_at = 0
    resumed = slimrl.train(resume=tmp_path / "cut", rewards=[odd], quiet=True)
    assert resumed.summary["weights"] == whole.summary["weights"]
    assert slimrl.train(rewards=[odd], name="cut", resume=True, **settings).summary == resumed.summary, "it is finished"


class Slow:
    """A tracker that is told of its end."""

    name = "slow"

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def __getattr__(self, name: str) -> Any:
        return lambda *_: name == "close" and self.told.append("tracker")


@pytest.mark.parametrize("state", ["preempted", "failed"])
def test_the_last_page_is_made_after_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """Checkpoint, trackers, state of the run, page: a grace period is not spent on what matters least."""
    told: list[str] = []

    def page(path: Path) -> Path:
        kept = len([*path.glob("checkpoints/step-*")])
        told.append(f"page of a {read_status(path)} run with {counted(kept, 'checkpoint')}")
        return path / "report.html"

    def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    def paid(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        if trainer_state.global_step == 1:
            if state == "failed":
                monkeypatch.setattr(import_module("slimrl.train"), "record_step", fail)
            else:
                signal.raise_signal(signal.SIGTERM)
        return [float(len(text)) for text in completions]

    monkeypatch.setattr("slimrl.report.run.write_run_page", page)
    monkeypatch.setattr("slimrl.api.runs.open_trackers", lambda *_: (Slow(told),))
    settings = SMALL | {"output": tmp_path, "name": "cut", "steps": 3}
    with pytest.raises(slimrl.StoppedError if state == "preempted" else RuntimeError):
        slimrl.train(rewards=[paid], **settings)
    kept = "1 checkpoint" if state == "preempted" else "0 checkpoints"
    assert told == ["page of a running run with 0 checkpoints", "tracker", f"page of a {state} run with {kept}"]


def test_another_function_does_not_go_on_with_a_run_by_accident(tmp_path: Path) -> None:
    settings = SMALL | {"output": tmp_path, "name": "cut", "steps": 3}

    def made(factor: float, stops: bool) -> Any:
        def paid(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
            if stops and trainer_state.global_step == 2:
                signal.raise_signal(signal.SIGINT)
            return [len(text) % 5 * (1.0 if stops else factor) for text in completions]

        return paid

    folder = re.escape(str(tmp_path / "cut"))
    with pytest.raises(
        KeyboardInterrupt, match=rf'resume with slimrl\.train\(resume="{folder}", rewards=\[\.\.\.\]\)$'
    ):
        slimrl.train(rewards=[made(1.0, True)], **settings)

    def paid(completions: list[str], **_: Any) -> list[float]:
        return [1.0 - len(text) % 3 for text in completions]

    forced = rf'of rewards\.custom changed.* with slimrl\.train\(resume="{folder}", rewards=\[\.\.\.\], force=True\)$'
    with pytest.raises(slimrl.SettingsError, match=forced):
        slimrl.train(resume=tmp_path / "cut", rewards=[paid], quiet=True)


def test_what_a_function_does_wrong_is_counted_and_never_paid(tmp_path: Path) -> None:
    def failing(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        if trainer_state.global_step == 1:
            raise ValueError("no score today")
        return [1.0] * len(completions)

    result = slimrl.train(rewards=["correct", failing], output=tmp_path, **SMALL, **{"rewards.unscorable_limit": 1.0})
    assert result.summary["unscorable"] == {"reward failing raised ValueError: no score today": 4}
    unpaid = slimrl.train(rewards=["correct", (failing, 0)], output=tmp_path, **SMALL)
    assert unpaid.summary["unmeasured"] == result.summary["unscorable"]
    assert (unpaid.summary["unscorable"], result.summary["unmeasured"]) == ({}, {})
    kinds = dict(remarks(read_run(unpaid.path)))
    assert kinds["unmeasured"] == "4 completions: reward failing raised ValueError: no score today"
    with pytest.raises(slimrl.SettingsError, match=r"reward Bad raised KeyError"):
        slimrl.train(rewards=[Bad()], output=tmp_path, **SMALL)


class Bad:
    """A callable object, whose class gives it a name."""

    def __call__(self, **columns: Any) -> Any:
        return columns["nothing"]


def test_a_run_that_does_not_begin_leaves_nothing(tmp_path: Path) -> None:
    rows = [*ROWS, {"question": "", "answer": 3}]
    with pytest.raises(slimrl.DataError, match=r"^data\[25\]: field 'question' is empty"):
        slimrl.train("builtin", rows, output=tmp_path, **SMALL)
    assert [*tmp_path.iterdir()] == []


def test_rows_that_differ_do_not_go_on_with_a_run(tmp_path: Path, command_line: Callable[..., Ended]) -> None:
    result = slimrl.train(data=ROWS, output=tmp_path, name="mine", **SMALL)
    assert read_status(result.path) == "finished"
    with pytest.raises(slimrl.SettingsError, match="was begun with other rows than these"):
        slimrl.train(data=ROWS[1:], output=tmp_path, name="mine", resume=True, **SMALL)
    told = command_line("train", "--resume", "mine", "--quiet", "--json")
    assert json.loads(told.out)["weights"] == result.summary["weights"], "the folder is all that a run needs"


def test_a_loaded_model_is_stored_with_the_run(tmp_path: Path, finished: slimrl.Result) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = [kind.from_pretrained("slimrl/builtin") for kind in (AutoModelForCausalLM, AutoTokenizer)]
    result = slimrl.train(model=tuple(loaded), output=tmp_path, **SMALL)
    assert result.summary["weights"] == finished.summary["weights"]
    assert {file.name for file in (result.path / "model").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_another_thread_and_the_state_of_the_process(tmp_path: Path, finished: slimrl.Result) -> None:
    before = dict(os.environ), signal.getsignal(signal.SIGINT), torch.get_num_threads()
    found: list[slimrl.Result] = []
    thread = threading.Thread(target=lambda: found.append(slimrl.train(output=tmp_path, **SMALL)))
    thread.start()
    thread.join()
    assert found[0].summary["weights"] == finished.summary["weights"]
    assert (dict(os.environ), signal.getsignal(signal.SIGINT), torch.get_num_threads()) == before


def test_sft(tmp_path: Path) -> None:
    rows = [{**row, "solution": f"The sum is {row['answer']}."} for row in ROWS]
    result = slimrl.sft(
        data=rows, steps=2, output=tmp_path, quiet=True, sft={"batch_size": 2}, evaluation={"problems": 4}
    )
    assert result.verb == "sft"
    assert list(result.metrics["loss"]) == [row["loss"] for row in result.records]
    assert result.change.n == len(result.after.test.by_problem("sampled"))
    with pytest.raises(slimrl.SettingsError, match=r"is a run of slimrl\.sft, which resumes it"):
        slimrl.train(resume=result)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: slimrl.train(stepz=3), r"stepz.*did you mean steps\?"),
        (lambda: slimrl.train(recipe="dappo"), r"@dappo is none of the recipes.*did you mean @dapo\?"),
        (lambda: slimrl.train(model="builtin", **{"model.path": "x"}), r"^model\.path is set twice, by model="),
        (lambda: slimrl.train(data="a.jsonl", task={"path": "b.jsonl"}), r"^task\.path is set twice, by data="),
        (lambda: slimrl.train(force=True), "force=True has no effect without resume"),
        (lambda: slimrl.train(resume=True), "resume=True needs to know which run"),
        (lambda: slimrl.train(resume="nowhere"), "'nowhere' is no run folder"),
        (lambda: slimrl.train(model=3), "^model: int is neither a path"),
        (lambda: slimrl.train(rewards=["corect"]), r"none of the built-in rewards.*did you mean correct\?"),
        (lambda: slimrl.train(rewards=[("correct", "much")]), "correct takes a weight"),
        (lambda: slimrl.sft(algorithm={"kl_coef": 0.1}), "algorithm"),
        (lambda: slimrl.study({"arms": {}}), "give the study a name"),
        (lambda: slimrl.study("quikc"), r"did you mean @quick\?"),
        (lambda: slimrl.sample("builtin", " "), "the question is empty"),
        (lambda: slimrl.evaluate("builtin", steps=3), "steps has an effect only in slimrl train"),
    ],
)  # fmt: skip
def test_mistakes_are_ordinary_exceptions_with_a_sentence(
    call: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence) as raised:
        call()
    assert isinstance(raised.value, slimrl.SettingsError)
    assert "\n" not in str(raised.value)
    assert [*tmp_path.iterdir()] == []
