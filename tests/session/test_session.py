"""What sinks hear of a run, and that none can harm it; how long a run is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.machine.signals import PREEMPTED, Stop, Stopped
from slimrl.results import Summaries
from slimrl.session.session import expected_steps
from slimrl.sft import sft
from slimrl.train import train
from tests.session.test_resume import content

training = import_module("slimrl.train")  # slimrl.train is the function of the Python interface
SMALL = (
    "steps=3", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=16", "evaluation.problems=2", "evaluation.harder_problems=0",
    "evaluation.greedy=false", "evaluation.every=2", "checkpoint.every=1",
)  # fmt: skip


class Over(Display):
    """A screen at which the time is over as soon as the first evaluation begins, or after a step."""

    def __init__(self, stop: Stop, *, step: bool) -> None:
        super().__init__(quiet=True)
        self.stop, self.later = stop, step

    def evaluating(self, done: int, total: int) -> None:
        super().evaluating(done, total)
        if not self.later:
            self.stop.ask("max_time", PREEMPTED)

    def step(self, *told: Any) -> None:
        super().step(*told)
        self.stop.ask("max_time", PREEMPTED)


@pytest.mark.parametrize("verb", ["train", "sft"])
def test_a_time_that_is_over_before_the_first_step_is_said_to_be_too_short(tmp_path: Path, verb: str) -> None:
    """The same command would end there again, as often as it is given."""
    stop = Stop()
    few = [f"output={tmp_path}", "name=a", "steps=2", *SMALL[4:7]]
    kind, begin = (TrainConfig, train) if verb == "train" else (SftRunConfig, sft)
    too_short = r"after step 0; resume with .*, and raise max_time, which was over before the first step"
    with pytest.raises(Stopped, match=too_short):
        begin(load_config(kind, [], few), Over(stop, step=False), stop=stop)  # type: ignore[arg-type, operator]


def test_a_time_that_is_over_later_only_ends_the_run(tmp_path: Path) -> None:
    stop = Stop()
    with pytest.raises(Stopped, match=r"by max_time after step 1; resume with [^,]*$"):
        train(load_config(TrainConfig, [], [f"output={tmp_path}", "name=a", *SMALL]), Over(stop, step=True), stop=stop)


class Collector:
    """A sink that keeps all that it is told."""

    name = "Collector"

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.settings: Mapping[str, object] = {}
        self.rows: list[dict[str, float]] = []
        self.accuracy: dict[int, float] = {}
        self.summary: Mapping[str, object] = {}

    def begin(self, run: Path, settings: Mapping[str, object], step: int) -> None:
        self.told.append((f"begin {run.name}", step))
        self.settings = settings

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.told.append(("step", step))
        self.rows.append({"step": step, **metrics})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.told.append(("samples", step))
        self.sampled = rows

    def evaluation(self, step: int, summaries: Summaries) -> None:
        self.told.append(("evaluation", step))
        self.accuracy[step] = summaries["test"]["accuracy"]

    def finish(self, summary: Mapping[str, object]) -> None:
        self.told.append(("finish", 0))
        self.summary = summary

    def close(self) -> None:
        self.told.append(("close", 0))


class Broken(Collector):
    """A tracker whose server is gone after the first step."""

    name = "Broken"

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        super().step(step, metrics)
        raise ConnectionError("no route to host")


class Nameless(Broken):
    """The same without what a sink is called by."""

    @property
    def name(self) -> str:  # type: ignore[override]
        raise AttributeError("name")


def config(output: Path, name: str, *more: str) -> TrainConfig:
    return load_config(TrainConfig, [], [f"output={output}", f"name={name}", *SMALL, *more])


def test_a_sink_hears_the_numbers_of_a_run(tmp_path: Path) -> None:
    sink = Collector()
    train(config(tmp_path, "a"), Display(quiet=True), sinks=[sink])
    assert sink.told == [
        ("begin a", 0), ("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("evaluation", 3),
        ("finish", 0), ("close", 0),
    ]  # fmt: skip
    assert sink.settings["rollout.group_size"] == 2
    assert sink.rows == [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    stored = json.loads((tmp_path / "a" / "evals" / "step-00000002.json").read_text())
    assert sink.accuracy[2] == stored["test"]["accuracy"]
    assert sink.summary == json.loads((tmp_path / "a" / "run.json").read_text())["summary"]


def test_a_run_that_is_stopped_closes_its_sinks_and_begins_them_again(tmp_path: Path) -> None:
    first, second, stop = Collector(), Collector(), Stop()
    own = first.step

    def stopping(step: int, metrics: Mapping[str, float]) -> None:
        own(step, metrics)
        if step == 2:
            stop.ask("a test", 75)

    first.step = stopping  # type: ignore[method-assign]
    with pytest.raises(Stopped, match=rf"after step 2; resume with slimrl train --resume {tmp_path}/a$"):
        train(config(tmp_path, "a"), Display(quiet=True), sinks=[first], stop=stop)
    train(config(tmp_path, "a"), Display(quiet=True), sinks=[second], resume=True)
    assert first.told[-1] == ("close", 0)
    assert ("finish", 0) not in first.told
    assert second.told == [
        ("begin a", 2), ("evaluation", 2), ("step", 3), ("evaluation", 3), ("finish", 0), ("close", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [Broken, Nameless])
def test_a_sink_that_fails_is_left_out_and_the_run_is_what_it_was(
    kind: type[Broken], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, whole = kind(), Collector()
    train(config(tmp_path, "a"), Display(quiet=True))
    train(config(tmp_path, "b"), Display(), sinks=[broken, whole])
    assert content(tmp_path / "b") == content(tmp_path / "a")
    assert broken.told == [("begin b", 0), ("evaluation", 0), ("step", 1)]
    assert whole.told[-1] == ("close", 0)
    sentence = f"{kind.__name__} failed (no route to host) and gets no further metrics of this run"
    assert " ".join(capsys.readouterr().err.split()).count(sentence) == 1
    (event,) = [json.loads(line) for line in (tmp_path / "b" / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["step"], event["why"]) == ("sink failed", 1, sentence)


def test_a_sink_is_shown_some_completions(tmp_path: Path) -> None:
    sink = Collector()
    train(config(tmp_path, "a", "log.samples_every=2", "log.samples=1"), Display(quiet=True), sinks=[sink])
    assert [step for what, step in sink.told if what == "samples"] == [2]
    stored = (tmp_path / "a" / "rollouts" / "step-00000002.jsonl").read_text().splitlines()
    assert sink.sampled == [{**json.loads(line), "trained": False} for line in stored[:2]]


def test_imitation_tells_its_sinks_too(tiny_folder: Path, tmp_path: Path) -> None:
    sink = Collector()
    settings = ("steps=2", "sft.batch_size=4", "evaluation.problems=2", "evaluation.harder_problems=0")
    where = (f"model.path={tiny_folder}", f"output={tmp_path}", "name=s", "evaluation.greedy=false")
    sft(load_config(SftRunConfig, [], [*settings, *where]), Display(quiet=True), sinks=[sink])
    assert [what for what, _ in sink.told] == ["begin s", "evaluation", "step", "step", "evaluation", "finish", "close"]
    assert [row["loss"] for row in sink.rows] == [
        json.loads(line)["loss"] for line in (tmp_path / "s" / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize(
    ("step", "tokens", "expected"),
    [(0, 0, 9), (0, 100, 5), (2, 300, 5), (4, 500, 5), (4, 480, 5), (4, 450, 6), (0, 1, 9)],
)
def test_steps_are_reckoned_from_the_tokens_so_far(step: int, tokens: int, expected: int) -> None:
    assert expected_steps(9, 500, step + 1, tokens) == expected
    assert expected_steps(9, 0, step + 1, tokens) == 9


@pytest.mark.parametrize(("rate", "times"), [(1e-9, 1), (2e-4, 0)])
def test_a_rate_that_moves_no_narrow_weight_is_told_once(rate: float, times: int, tmp_path: Path) -> None:
    noted: list[str] = []

    class Listening(Display):
        def say(self, text: str, style: str = "") -> None:
            noted.append(text + style)

    settings = [
        "steps=5",
        "rollout.problems=4",
        "rollout.group_size=4",
        "model.dtype=bfloat16",
        f"optimizer.learning_rate={rate}",
        f"output={tmp_path}",
        "name=a",
    ]
    train(load_config(TrainConfig, [], [*SMALL, *settings]), Listening())
    assert len([text for text in noted if "an update changes fewer than one in 10,000" in text]) == times


def test_an_error_of_a_step_is_raised_though_its_checkpoint_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, sink = training.collect, Collector()

    def failing(*_: object) -> object:
        raise RuntimeError("a defect in writing")

    def sampled(setup: Any, state: Any) -> Any:
        if state.step:
            raise ValueError("a defect in sampling")
        return collect(setup, state)

    monkeypatch.setattr(training, "save", lambda *_: failing)
    monkeypatch.setattr(training, "collect", sampled)
    config = load_config(TrainConfig, [], [*SMALL, f"output={tmp_path}", "name=a"])
    with pytest.raises(ValueError, match="a defect in sampling"):
        train(config, Display(quiet=True), sinks=[sink])
    assert sink.told[-1] == ("close", 0)
    events = [json.loads(line) for line in (tmp_path / "a" / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"], event["why"]) for event in events] == [
        ("checkpoint failed", 1, "a defect in writing"),
        ("failed", 1, "a defect in sampling"),
    ]
    assert json.loads((tmp_path / "a" / "run.json").read_text())["reason"] == "a defect in sampling"
