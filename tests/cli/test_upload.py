"""Addresses on object storage where commands take them, and where they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.runs.remote import Remote, copy_run
from slimrl.study.runs import planned_runs
from slimrl.study.spec import load_study
from slimrl.study.upload import claim, upload_study
from tests.runs.test_remote import make_run
from tests.study.folders import write_run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrl.runs.remote._cached", lambda remote: tmp_path / "cache" / remote.root.strip("/"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "output=s3://b/runs"], "output is a folder of this machine; set upload=s3://b/runs, and the run is copied there"),
        (["train", "output=s3://k:secret@b"], "output is a folder of this machine; set upload, and"),
        (["train", "upload=/mnt/runs"], "upload: /mnt/runs is no address such as s3://bucket/runs; give one"),
        (["sft", "upload=s3://k:secret@b/runs"], "upload: an address with a password"),
        (["eval", "builtin", "upload=s3://b"], "upload has an effect only in slimrl train and slimrl sft; remove it"),
        (["train", "--resume", "s3://b/runs/a"], "s3://b/runs/a has ended, as all runs on object storage have"),
        (["train", "model.path=s3://b/runs/a"], "slimrl export s3://b/runs/a my-model fetches the model of a run"),
        (["study", "run", "@quick", "--output", "s3://b"], "output is a folder of this machine; set upload=s3://b, and the study is"),
        (["runs", "memory://nothing"], "memory://nothing: nothing is there; check the address"),
        (["eval", "memory://nothing/a"], "memory://nothing/a: nothing is there"),
        (["runs", "s3://k:secret@b"], "an address with a password"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments: list[str], sentence: str, slimrl) -> None:
    done = slimrl(*arguments)
    assert done.code == 2
    assert sentence in done.err
    assert "secret" not in done.err


def test_a_file_of_settings_holds_an_address_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("upload: s3://b/runs\nmodel: {path: s3://b/runs/a}\n")
    config = load_config(TrainConfig, [str(tmp_path / "a.yaml")])
    assert (config.upload, config.model.path) == ("s3://b/runs", "s3://b/runs/a")


def test_runs_are_listed_under_their_address(tmp_path: Path, slimrl) -> None:
    place = f"file://{tmp_path}/bucket"
    copy_run(make_run(tmp_path / "a"), f"{place}/a", lambda *_: None)
    copy_run(make_run(tmp_path / "b"), f"{place}/quick/runs/b", lambda *_: None)
    rows = json.loads(slimrl("runs", f"{place}/", "--json").out)
    assert {row["run"] for row in rows} == {f"{place}/a", f"{place}/quick/runs/b"}
    assert len(slimrl("runs", place).out.splitlines()) == 3


def test_a_study_is_reported_from_its_copy(tmp_path: Path, slimrl) -> None:
    """The reports are equal to the letter, and a run that could not copy itself is copied at the end."""
    place = f"file://{tmp_path}/bucket"
    (tmp_path / "s.yaml").write_text(f"seeds: 2\nsettings: {{upload: '{place}'}}\narms: {{kl: algorithm.kl_coef=0}}\n")
    expanded, folder = load_study([str(tmp_path / "s.yaml")]), tmp_path / "runs" / "s"
    for run in planned_runs(expanded, folder):
        write_run(run, range(3 + run.index))
    (folder / "declared.json").write_text("{}")
    claim(expanded, folder)
    first = slimrl("study", "report", "s.yaml")
    assert first.code == 0, first.err
    said: list[str] = []
    upload_study(expanded, folder, said.append)
    assert said == [f"copied to {place}/s"]
    there = slimrl("study", "report", "s.yaml", "--output", place)
    assert there.code == 0, there.err
    copy = next((tmp_path / "cache").rglob("report.md"))
    assert copy.read_text() == (folder / "report.md").read_text()
    assert [*(tmp_path / "bucket" / "s").glob("report.*")]
    (folder / "declared.json").write_text('{"date": "another"}')
    with pytest.raises(Exception, match="holds another study; choose another --name or upload="):
        claim(expanded, folder)


def test_a_shell_that_completes_a_command_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    from slimrl.cli import cli

    monkeypatch.setattr(Remote, "open", lambda _: pytest.fail("something was fetched"))
    ShellComplete(cli, {}, "slimrl", "_SLIMRL_COMPLETE").get_completions(["eval", "s3://b/runs/a"], "ste")
