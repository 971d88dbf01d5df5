"""Runs on object storage, on fsspec's file:// and memory://; tests/runs/test_s3.py has the same on a server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from slimrl.errors import DataError, SettingsError
from slimrl.runs.listing import list_runs
from slimrl.runs.remote import (
    PAGE,
    Remote,
    RemoteError,
    copy_files,
    copy_run,
    demand_place,
    local_run,
    local_runs,
)
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An address below which nothing is."""
    if request.param == "file":
        yield f"file://{tmp_path}/bucket/runs"
        return
    yield f"memory://{tmp_path.name}/runs"
    fsspec.filesystem("memory").store.clear()


def make_run(folder: Path, *, status: str = "finished", after: float = 0.75, weights: bytes = b"w" * 100) -> Path:
    """The folder of a run with a file of every kind."""
    files = {
        "config.yaml": b"steps: 2\n",
        "metrics.jsonl": b'{"step": 1}\n{"step": 2}\n',
        "evals/step-00000000.json": json.dumps({"test": {"accuracy": 0.5}}).encode(),
        "evals/step-00000002.json": json.dumps({"test": {"accuracy": after}}).encode(),
        "evals/step-00000002.jsonl": b"{}\n",
        "rollouts/step-00000001.jsonl": b"{}\n",
        "final/model.safetensors": weights,
        "final/templates/tool.jinja": b"",
        "checkpoints/step-00000001/manifest.json": b"{}",
        "lock": b"1",
        ".writing-final/half": b"h",
        "run.json": json.dumps({"status": status, "verb": "train", "at": after}).encode(),
        "report.html": b"<html>",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def nothing(_done: int, _total: int) -> None:
    """Between two parts of a copy."""


COPIED = {
    "config.yaml", "metrics.jsonl", "evals/step-00000000.json", "evals/step-00000002.json", "evals/step-00000002.jsonl", "run.json",
    "rollouts/step-00000001.jsonl", "final/model.safetensors", "final/templates/tool.jinja", "report.html",
    "checkpoints/step-00000001/manifest.json",
}  # fmt: skip


def test_a_run_is_copied_listed_and_read(tmp_path: Path, place: str) -> None:
    run = make_run(tmp_path / "a")
    demand_place(f"{place}/a", tmp_path / "a")
    assert copy_run(run, f"{place}/a", nothing) == len(COPIED)
    assert {*Remote.open(f"{place}/a").files()} == COPIED  # neither lock nor what was tried out
    folder = local_runs(place)
    (listed,) = list_runs(folder)
    assert (Path(listed.run).name, listed.state, listed.steps, listed.before, listed.after) == (
        "a",
        "finished",
        2,
        0.5,
        0.75,
    )
    assert not (folder / "a" / "final").exists()
    assert not (folder / "a" / "evals" / "step-00000002.jsonl").exists()
    assert local_run(f"{place}/a", PAGE) == folder / "a"
    assert (folder / "a" / "rollouts" / "step-00000001.jsonl").is_file()
    assert not (folder / "a" / "final").exists()
    whole = local_run(f"{place}/a")
    assert {str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file()} == COPIED
    assert (whole / "final" / "model.safetensors").read_bytes() == b"w" * 100


def test_what_was_fetched_is_not_fetched_again(tmp_path: Path, place: str) -> None:
    copy_run(make_run(tmp_path / "a"), f"{place}/a", nothing)
    said: list[str] = []
    for _ in range(2):
        local_run(f"{place}/a", say=said.append)
    assert said == [f"fetching 10 files (0.0 MB) of {place}/a"]


def test_a_second_copy_copies_nothing(tmp_path: Path, place: str) -> None:
    run = make_run(tmp_path / "a")
    assert copy_run(run, f"{place}/a", nothing)
    demand_place(f"{place}/a", run)
    assert copy_run(run, f"{place}/a", nothing) == 0


def test_a_run_is_never_overwritten(tmp_path: Path, place: str) -> None:
    copy_run(make_run(tmp_path / "a"), f"{place}/a", nothing)
    other = make_run(tmp_path / "b", after=0.25)
    for refused in (
        lambda run, address: demand_place(address, run),
        lambda run, address: copy_run(run, address, nothing),
    ):
        with pytest.raises(SettingsError, match="holds another run already"):
            refused(other, f"{place}/a")
    with pytest.raises(SettingsError, match="holds another run already"):
        demand_place(f"{place}/a", tmp_path / "new")


def test_files_of_something_else_are_refused(tmp_path: Path, place: str) -> None:
    Remote.open(f"{place}/a").write("thesis.tex", b"x")
    with pytest.raises(SettingsError, match=r"holds files that are not of this run \(thesis\.tex for one\)"):
        demand_place(f"{place}/a", tmp_path / "a")


def test_a_diverged_run_is_copied_without_checkpoints_and_with_no_page_from_before(tmp_path: Path, place: str) -> None:
    run = make_run(tmp_path / "a", status="diverged")
    os.utime(run / "report.html", (1, 1))
    copy_run(run, f"{place}/a", nothing)
    names = {*Remote.open(f"{place}/a").files()}
    assert names == COPIED - {"report.html", "checkpoints/step-00000001/manifest.json"}
    assert [row.state for row in list_runs(local_runs(place))] == ["diverged"]


@pytest.mark.parametrize("status", ["running", "preempted", "failed"])
def test_what_has_not_ended_is_no_run_for_a_reader(tmp_path: Path, place: str, status: str) -> None:
    run = make_run(tmp_path / "a", status=status)
    Remote.open(f"{place}/a").put(run, ["run.json", "config.yaml"])
    Remote.open(f"{place}/b").write("run.json", b'{"status": "fini')
    assert list_runs(local_runs(place)) == []
    for name in ("a", "b"):
        with pytest.raises(SettingsError, match="no run that has ended"):
            local_run(f"{place}/{name}")


def test_another_run_takes_the_place_of_a_cached_one(tmp_path: Path, place: str) -> None:
    copy_run(make_run(tmp_path / "a"), f"{place}/a", nothing)
    copy_run(make_run(tmp_path / "b", after=0.5), f"{place}/b", nothing)
    local_run(f"{place}/a")
    assert len(list_runs(local_runs(place))) == 2
    remote = Remote.open(place)
    remote.fs.rm(remote.root, recursive=True)
    copy_run(make_run(tmp_path / "c", after=0.25, weights=b"v" * 100), f"{place}/a", nothing)
    (listed,) = list_runs(local_runs(place))
    assert listed.after == 0.25
    assert (local_run(f"{place}/a") / "final" / "model.safetensors").read_bytes() == b"v" * 100


def test_files_without_their_run_json_in_the_cache_are_not_trusted(tmp_path: Path, place: str) -> None:
    copy_run(make_run(tmp_path / "a"), f"{place}/a", nothing)
    cached = local_run(f"{place}/a")
    (cached / "run.json").unlink()  # a process was killed while it fetched another run
    (cached / "config.yaml").write_text("steps: 9\n")
    assert (local_run(f"{place}/a") / "config.yaml").read_text() == "steps: 2\n"


def test_a_file_that_arrives_damaged_makes_no_run(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, put = make_run(tmp_path / "a"), Remote.put

    def cut(self: Remote, folder: Path, names: list[str]) -> None:
        put(self, folder, names)
        if "final/model.safetensors" in names:
            self.write("final/model.safetensors", b"w")

    monkeypatch.setattr(Remote, "put", cut)
    with pytest.raises(RemoteError, match=r"final/model\.safetensors has 1 bytes"):
        copy_run(run, f"{place}/a", nothing)
    with pytest.raises(SettingsError, match="no run that has ended"):
        local_run(f"{place}/a")
    monkeypatch.undo()


def test_a_file_that_is_fetched_in_part_is_not_kept(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = Remote.get

    def cut(self: Remote, names: list[str], folder: Path) -> None:
        get(self, names, folder)
        (folder / "final" / "model.safetensors").write_bytes(b"w")

    copy_run(make_run(tmp_path / "a"), f"{place}/a", nothing)
    with monkeypatch.context() as patched:
        patched.setattr(Remote, "get", cut)
        with pytest.raises(DataError, match=r"final/model\.safetensors arrived with 1 of 100 bytes"):
            local_run(f"{place}/a")
    assert (local_run(f"{place}/a") / "final" / "model.safetensors").read_bytes() == b"w" * 100


KILLED = """
import os, sys
from pathlib import Path
from slimrl.runs import remote
remote.AT_ONCE = 1
left = int(sys.argv[3])
def between(done, total):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
remote.copy_run(Path(sys.argv[1]), sys.argv[2], between)
"""


@pytest.mark.parametrize("parts", [0, 4, 10])
def test_a_killed_copy_is_no_run_and_is_finished_by_the_next(tmp_path: Path, parts: int) -> None:
    run, address = make_run(tmp_path / "a"), f"file://{tmp_path}/bucket/a"
    command = [sys.executable, "-c", KILLED, str(run), address, str(parts)]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    copied = [file for file in (tmp_path / "bucket").rglob("*") if file.is_file()]
    assert len(copied) == parts
    with pytest.raises(SettingsError, match=r"nothing is there|no run that has ended"):
        local_run(address)
    assert copy_run(run, address, nothing) == len(COPIED)
    assert local_run(address).joinpath("final", "model.safetensors").is_file()


@pytest.mark.parametrize("text", ["s3://key:secret@bucket/runs", "https://host/runs?token=secret"])
def test_no_password_gets_into_a_sentence(text: str) -> None:
    for read in (local_run, local_runs, Remote.open):
        with pytest.raises(SettingsError, match="credentials to the environment") as refused:
            read(text)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("text", ["s3://", "s3://b/../c", "s3://a b", "file:///"])
def test_an_address_names_a_folder(text: str) -> None:
    with pytest.raises(SettingsError, match="names no folder"):
        local_run(text)


def test_an_unknown_kind_of_storage() -> None:
    with pytest.raises(SettingsError, match="fsspec knows no ftpp://"):
        Remote.open("ftpp://host/runs")


@pytest.mark.parametrize(
    ("address", "way"), [("s3://b/r", r"pip install 'slimrl\[s3\]'"), ("gs://b/r", "pip install gcsfs")]
)
def test_a_missing_package_is_named(address: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError("Install it")

    monkeypatch.setattr("fsspec.url_to_fs", refuse)
    with pytest.raises(SettingsError, match=way):
        Remote.open(address)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"^upload: file://.* cannot be (read|written) \(.*\); check the address"):
        demand_place(f"file://{tmp_path}/file/runs/a", tmp_path / "a")


def test_a_reader_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "PlantedSecret")
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(
        type(memory), "find", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no PlantedSecret here"))
    )
    with pytest.raises(DataError, match=r"memory://b/runs cannot be read \(no \$AWS_SECRET_ACCESS_KEY here\); check"):
        local_runs("memory://b/runs")


def test_names_that_lead_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    copy_run(make_run(tmp_path / "a"), "memory://b/a", nothing)
    memory = fsspec.filesystem("memory")
    memory.store["/b/a/../../evil"] = memory.store["/b/a/config.yaml"]
    try:
        assert {*Remote.open("memory://b/a").files()} == COPIED
    finally:
        memory.store.clear()


def test_files_of_a_study_replace_older_ones(tmp_path: Path, place: str) -> None:
    (tmp_path / "declared.json").write_text("{}")
    for text in ("old", "new"):
        (tmp_path / "report.html").write_text(text)
        copy_files(tmp_path, ["declared.json", "report.html", "missing.csv"], f"{place}/quick")
        folder = local_run(f"{place}/quick")
        assert (folder / "report.html").read_text() == text
    shutil.rmtree(folder)
