"""The real packages, each without a network: what they store of a run holds every key of metrics.jsonl."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import load_config, settings_of
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.trackers.remote import PACKAGES, RemoteTracker
from slimrl.train import train
from tests.session.test_session import SMALL, Collector

pytestmark = pytest.mark.filterwarnings("ignore")
BLOCK = 32768


class Tape(Collector):
    """A sink that keeps every call, to be made again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("begin", "step", "samples", "evaluation", "finish"):
            return found

        def call(*arguments: Any) -> None:
            self.calls.append((name, arguments))
            found(*arguments)

        return call


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    settings = [f"output={tmp_path_factory.mktemp('runs')}", "name=a", *SMALL, "log.samples_every=2"]
    tape = Tape()
    train(load_config(TrainConfig, [], settings), Display(quiet=True), sinks=[tape])
    return tape


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty run folder, in which trackers find nothing of the user's."""
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789012345678901234567890123456789")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs" / "a").mkdir(parents=True)
    yield tmp_path / "runs" / "a"
    key = b"0123456789012345678901234567890123456789"
    assert not any(key in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def play(name: str, folder: Path, tape: Tape) -> None:
    """A run of three steps that is stopped after the second, and resumed."""
    pytest.importorskip(PACKAGES[name])  # type: ignore[index]
    begin, *calls = tape.calls
    second = next(i for i, (what, _) in enumerate(calls) if what == "samples") + 1
    for start, part in ((0, calls[:second]), (2, calls[second:])):
        said: list[str] = []
        tracker = RemoteTracker(name, project="slim-test", group="studies", say=said.append)
        tracker.begin(folder, begin[1][1], start)
        for what, arguments in part:
            getattr(tracker, what)(*arguments)
        if start == 0:
            tracker._requests.put(("log", (2, {})))  # a child that is slow to load must have begun before it is stopped
            while not said:
                tracker._check()
                tracker._thread.join(0.1)
        tracker.close()
        assert [text.partition(":")[0] for text in said] == [name]


def keys(tape: Tape) -> set[str]:
    return {key for row in tape.rows for key in row}


def records(data: bytes) -> Iterator[bytes]:
    """The records of a W&B file, which is a log of LevelDB's behind a header of 7 bytes."""
    whole, at = b"", 7
    while at + 7 <= len(data):
        if (room := BLOCK - at % BLOCK) < 7:
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def test_wandb(tape: Tape, folder: Path) -> None:
    play("wandb", folder, tape)
    from wandb.proto import wandb_internal_pb2

    steps: dict[str, set[int]] = {}
    config: dict[str, Any] = {}
    summary: set[str] = set()
    runs, files = set(), sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    for file in files:
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key in row:
                steps.setdefault(key, set()).add(row["step"])
            if record.run.run_id:
                runs.add((record.run.run_id, record.run.project, record.run.run_group, record.run.display_name))
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            summary |= {item.key or "/".join(item.nested_key) for item in record.summary.update}
    assert len(files) == 2
    assert runs == {(json.loads((folder / "trackers.json").read_text())["wandb"], "slim-test", "studies", "a")}
    assert keys(tape) <= {*steps}
    assert steps["reward"] == {1, 2, 3}
    assert steps["eval/test/accuracy"] == {0, 2, 3}
    assert steps["completions/_type"] == {2}, "a table"
    assert config["rollout.group_size"] == 2
    assert {"before/accuracy", "after/accuracy"} <= summary


def test_tensorboard(tape: Tape, folder: Path) -> None:
    play("tensorboard", folder, tape)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    assert keys(tape) <= {*found.Tags()["scalars"]}
    assert [event.step for event in found.Scalars("reward")] == [1, 2, 3]
    assert [event.value for event in found.Scalars("reward")] == pytest.approx([row["reward"] for row in tape.rows])
    assert [event.step for event in found.Scalars("eval/test/accuracy")] == [0, 2, 3]
    assert {"summary/before/accuracy"} <= {*found.Tags()["scalars"]}
    assert {"completions/text_summary", "settings/text_summary"} & {*found.Tags()["tensors"]} or {
        "completions",
        "settings",
    } <= {*found.Tags()["tensors"]}


def test_trackio(tape: Tape, folder: Path) -> None:
    play("trackio", folder, tape)
    (database,) = (folder.parents[1] / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type='table'")}
        rows = [
            (row["step"], json.loads(row["metrics"]), row["run_name"])
            for row in query(connection, "select * from metrics")
        ]
    assert tables
    steps = {key: {step for step, metrics, _ in rows if key in metrics} for _, metrics, _ in rows for key in metrics}
    assert keys(tape) - {"step"} <= {*steps}
    assert steps["reward"] == {1, 2, 3}
    assert steps["completions"] == {2}
    assert {name for _, _, name in rows} == {"a"}
    assert "summary/after/accuracy" in steps


def query(connection: sqlite3.Connection, sql: str) -> list[sqlite3.Row]:
    connection.row_factory = sqlite3.Row
    return connection.execute(sql).fetchall()


def test_mlflow(tape: Tape, folder: Path) -> None:
    play("mlflow", folder, tape)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("slim-test")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["slimrl.group"]) == ("a", "FINISHED", "studies")
    assert keys(tape) <= {*run.data.metrics}
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "reward")] == [1, 2, 3]
    assert {"eval/test/accuracy", "summary/after/accuracy"} <= {*run.data.metrics}
    assert run.data.params["rollout.group_size"] == "2"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "completions")] == [
        "completions/step-00000002.json"
    ]


def test_the_settings_of_a_run_are_all_told(tape: Tape) -> None:
    assert {*tape.calls[0][1][1]} == {*settings_of(load_config(TrainConfig, [], []))}


def test_wandb_without_a_key_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY")
    tracker = RemoteTracker("wandb", project="p", group="", say=print)
    tracker.begin(folder, {}, 0)
    tracker._thread.join(60)
    with pytest.raises(Exception, match=r"^no API key; run `wandb login`, or set WANDB_MODE=offline$"):
        tracker.step(1, {})
