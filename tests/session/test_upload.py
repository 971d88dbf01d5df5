"""The setting upload: a run that has ended is copied, and one that cannot be copied is not lost."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

import slimrl
from slimrl.errors import DiskError, DivergedError, SettingsError
from slimrl.runs.reader import read_status
from slimrl.runs.remote import Remote, RemoteError
from tests.session.test_faults import run as run_of_faults
from tests.session.test_resume import run

training = import_module("slimrl.train")  # slimrl.train is the function of the Python interface


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of copies, and not that of kernels, lies in the test's folder."""
    monkeypatch.setattr("slimrl.runs.remote._cached", lambda remote: tmp_path / "cache" / remote.root.strip("/"))


@pytest.fixture
def place(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket/runs"


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def refuse(*_: object) -> None:
    raise RemoteError("s3://b/a cannot be written (no route to host)")


def test_a_run_that_cannot_be_copied_is_not_lost_and_the_same_command_copies_it(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr(Remote, "put", refuse)
        with pytest.raises(DiskError) as failed:
            run(tmp_path, "a", f"upload={place}")
    assert str(failed.value) == (
        f"s3://b/a cannot be written (no route to host); the run is finished and lies whole in {tmp_path}/a; "
        f"slimrl train --resume {tmp_path}/a copies it"
    )
    assert read_status(tmp_path / "a") == "finished"
    assert names(tmp_path / "bucket") == set()
    with monkeypatch.context() as away:
        away.setattr(Remote, "read", refuse)
        with pytest.raises(DiskError, match="the run is finished and lies whole"):
            run(tmp_path, "a", f"upload={place}", resume=True)
    run(tmp_path, "a", f"upload={place}", resume=True)
    assert names(tmp_path / "bucket" / "runs" / "a") == names(tmp_path / "a") - {"lock"}
    compared = slimrl.compare(str(tmp_path / "a"), f"{place}/a")
    assert compared.names == (str(tmp_path / "a"), f"{place}/a")
    assert compared.change.value == 0
    assert slimrl.Result(f"{place}/a").summary == slimrl.Result(tmp_path / "a").summary  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Remote, "write", refuse)
    monkeypatch.setattr(training, "prepare_training", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(
        SettingsError, match=r"^upload: s3://b/a cannot be written \(no route to host\); check the address"
    ):
        run(tmp_path, "a", f"upload={place}")
    assert not (tmp_path / "a").exists()


def test_a_run_that_diverged_is_copied_too(tmp_path: Path, place: str) -> None:
    diverging = ("optimizer.learning_rate=1e38", "optimizer.schedule=constant", f"upload={place}")
    with pytest.raises(DivergedError, match="not finite after step 1"):
        run_of_faults(tmp_path, "a", *diverging)
    assert read_status(tmp_path / "bucket" / "runs" / "a") == "diverged"


def test_a_run_that_was_stopped_is_not_copied(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slimrl.session.session.evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "a", f"upload={place}")
    assert read_status(tmp_path / "a") == "interrupted"
    assert names(tmp_path / "bucket") == set()


def test_every_run_of_a_study_has_a_place_of_its_own(tmp_path: Path) -> None:
    from slimrl.study.runs import planned_runs
    from slimrl.study.spec import load_study

    (tmp_path / "s.yaml").write_text("seeds: 1\nsettings: {upload: s3://b/studies/}\narms: {kl: algorithm.kl_coef=0}\n")
    expanded = load_study([str(tmp_path / "s.yaml")])
    runs = planned_runs(expanded, tmp_path / "runs" / expanded.name)
    assert {run.config(1.0).upload for run in runs} == {"s3://b/studies/s/runs"}
    (tmp_path / "t.yaml").write_text("seeds: 1\narms: {kl: upload=s3://b/studies}\n")
    with pytest.raises(SettingsError, match="all runs of a study are copied to one place"):
        load_study([str(tmp_path / "t.yaml")])
