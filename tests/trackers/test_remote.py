"""A tracker in a child process: what it is told, and that nothing it does harms the run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import LogConfig
from slimrl.display.run import Display
from slimrl.machine.signals import Stop, Stopped
from slimrl.machine.worker import Answer
from slimrl.trackers import Numbers, remote
from slimrl.trackers.remote import Ending, RemoteTracker, TrackerError, open_trackers
from slimrl.train import train
from tests.session.test_resume import content
from tests.session.test_session import SMALL
from tests.trackers.backends import Dying, Hanging, Raising, Stuck, Writer, make, unloadable


def tracker(load: Callable[[], Answer], said: list[str] | None = None) -> RemoteTracker:
    said = [] if said is None else said
    return RemoteTracker("wandb", project="p", group="g", say=said.append, load=load)


def told(run: Path) -> list[list[object]]:
    return [json.loads(line) for line in (run / "told.jsonl").read_text().splitlines()]


def run(output: Path, name: str, *trackers: RemoteTracker, resume: bool = False, steps: int = 3) -> Path:
    small = [f"output={output}", f"name={name}", *SMALL[1:], f"steps={steps}", "log.samples_every=2", "log.samples=1"]
    train(load_config(TrainConfig, [], small), Display(), sinks=trackers, resume=resume)
    return output / name


def test_a_tracker_is_told_all_of_a_run(tmp_path: Path) -> None:
    said: list[str] = []
    folder = run(tmp_path, "a", tracker(partial(make, Writer), said))
    words = told(folder)
    kinds = [(word[0], word[1]) for word in words]
    assert kinds == [
        ("begin", "a"), ("log", 0), ("log", 1), ("log", 2), ("table", 2), ("log", 2), ("log", 3), ("log", 3),
        ("summarize", 3), ("close", True),
    ]  # fmt: skip
    assert words[0][2:6] == ["p", "g", 0, ""]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [word[2] for word in words if word[0] == "log"][1] == sorted(rows[0])
    assert {"step", "eval/test/accuracy"} <= {*words[1][2]}  # type: ignore[misc]
    assert {"before/accuracy", "after/accuracy", "difference/test/sampled/low"} <= {*words[-2][2]}  # type: ignore[misc]
    assert words[4][2] == 2, "the completions of one problem"
    assert said == ["wandb: http://there"]
    assert len(json.loads((folder / "trackers.json").read_text())["wandb"]) == 16


def test_a_resumed_run_is_the_same_tracked_run(tmp_path: Path) -> None:
    class Stopping(RemoteTracker):
        def step(self, step: int, metrics: Numbers) -> None:
            super().step(step, metrics)
            if step == 1:
                stop.ask("a test", 75)

    stop = Stop()
    first = Stopping("wandb", project="p", group="", say=print, load=partial(make, Writer))
    config = load_config(TrainConfig, [], [f"output={tmp_path}", "name=a", *SMALL])
    with pytest.raises(Stopped):
        train(config, Display(quiet=True), sinks=[first], stop=stop)
    train(config, Display(quiet=True), sinks=[tracker(partial(make, Writer))], resume=True)
    begun = [word for word in told(tmp_path / "a") if word[0] == "begin"]
    known = json.loads((tmp_path / "a" / "trackers.json").read_text())["wandb"]
    assert [(word[4], word[5]) for word in begun] == [(0, ""), (1, known)]
    assert [word[1] for word in told(tmp_path / "a") if word[0] == "close"] == [False, True]


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (partial(make, Raising), "no route to http://there with $MY_API_KEY"),
        (partial(make, Dying), "its process ended with exit code 7"),
        (partial(make, Hanging), "it does not answer"),
        (unloadable, "No module named 'no_such_package_anywhere'"),
    ],
)
def test_a_tracker_that_fails_costs_the_run_a_sentence(
    load: Callable[[], Answer],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-of-mine")
    monkeypatch.setattr(remote, "CALL_SECONDS", 1.0)
    plain = run(tmp_path, "plain")
    folder = run(tmp_path, "a", tracker(load))
    shown = " ".join(capsys.readouterr().err.split())
    sentence = f"wandb failed ({why}) and gets no further metrics of this run"
    assert shown.count(sentence) == 1
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["why"] for event in events] == [sentence]
    (folder / "told.jsonl").unlink(missing_ok=True)
    (folder / "trackers.json").unlink(missing_ok=True)
    assert content(folder) == content(plain)
    assert not any("s3cr3t-of-mine" in file.read_text(errors="replace") for file in folder.rglob("*") if file.is_file())


def test_trackers_that_hang_are_killed_at_one_common_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CLOSE_SECONDS", 0.5)
    ending = Ending()
    load = partial(make, Hanging)
    several = [RemoteTracker("wandb", project="", group="", say=print, load=load, ending=ending) for _ in range(3)]
    for number, one in enumerate(several):
        (tmp_path / str(number)).mkdir()
        one.begin(tmp_path / str(number), {}, 0)
        one.step(1, {})
    ends = []
    for one in several:
        with pytest.raises(TrackerError, match="within 0 s"):
            one.close()
        ends.append(ending._until)
    assert len({*ends}) == 1, "nobody begins to wait anew"
    assert ending.rest() == 0.0
    for one in several:
        one._thread.join(60)
        assert not one._thread.is_alive()


def test_only_a_signal_shortens_the_end_of_a_run() -> None:
    stop = Stop()
    for ending in (Ending(), Ending(stop)):
        assert ending.rest() > remote.SIGNAL_SECONDS
        assert ending.seconds == remote.CLOSE_SECONDS
    with stop.on_signals():
        stop.defer()
        signal.raise_signal(signal.SIGTERM)
    ending = Ending(stop)
    assert ending.rest() <= ending.seconds == remote.SIGNAL_SECONDS


def test_trackers_are_asked_to_close_before_the_first_is_waited_for(tmp_path: Path) -> None:
    ending = Ending()
    load = partial(make, Writer)
    several = [RemoteTracker("wandb", project="", group="", say=print, load=load, ending=ending) for _ in range(2)]
    for number, one in enumerate(several):
        (tmp_path / str(number)).mkdir()
        one.begin(tmp_path / str(number), {}, 0)
    several[0].close()
    several[1]._thread.join(60)
    assert [word[0] for word in told(tmp_path / "1")] == ["begin", "close"]
    several[1].close()


def test_a_run_that_is_stopped_while_its_tracker_begins_keeps_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as impatient:
        impatient.setattr(remote, "CLOSE_SECONDS", 0.5)
        first = tracker(partial(make, Stuck))
        first.begin(tmp_path, {}, 0)
        stored = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
        with pytest.raises(TrackerError, match="last numbers"):
            first.close()
    second = tracker(partial(make, Writer))
    second.begin(tmp_path, {}, 1)
    second.close()
    begun = [word for word in told(tmp_path) if word[0] == "begin"]
    assert begun[-1][5] == stored
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": stored}


def test_a_tracker_that_is_not_installed_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None if name == "mlflow" else object())
    notes: list[str] = []
    found = open_trackers(LogConfig(to=["wandb", "mlflow"]), print, notes.append)
    assert [one.name for one in found] == ["wandb"]
    assert notes == [
        "log.to=mlflow: the package is not installed (pip install 'slimrl[mlflow]'), so the run goes on without it"
    ]
