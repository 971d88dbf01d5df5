"""A disk that is full when a run or a study ends: nothing is lost, and one sentence says how it goes on."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slimrl import cli
from slimrl.config.files import load_config
from slimrl.config.schema import SftRunConfig
from slimrl.display.run import Display
from slimrl.errors import DiskError
from slimrl.runs import checkpoints as checkpoint_files
from slimrl.runs import directory, durable, files
from slimrl.runs.checkpoints import checkpoints
from slimrl.sft import sft
from tests.session.test_resume import content, run
from tests.study.folders import write_run

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
QUOTA = "Disk quota exceeded (os error 122)"


def refuse(error: Exception) -> Callable[..., None]:
    def refused(*_: object, **__: object) -> None:
        raise error

    return refused


def fill(where: str, patch: pytest.MonkeyPatch) -> None:
    """The disk is full for one of the files that a run writes at its end."""
    if where == "model":
        patch.setattr(
            PreTrainedModel, "save_pretrained", refuse(Exception(f"I/O error: {FULL.strerror} (os error 28)"))
        )
    elif where == "tokenizer":  # checkpoints hold one too
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", refuse(Exception(QUOTA)))
    elif where == "fsync":
        patch.setattr(directory, "adopt", refuse(FULL))
    elif where == "curves":
        patch.setattr(directory, "draw_curves", refuse(FULL))
    else:
        assert where == "run.json"
        own = directory.RunDirectory._change_state

        def change(self: directory.RunDirectory, **changes: object) -> None:
            if changes.get("status") == "finished":
                raise FULL
            own(self, **changes)

        patch.setattr(directory.RunDirectory, "_change_state", change)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "draw_curves", lambda *_: None)
        run(output, "a")
    return output / "a"


@pytest.mark.parametrize("where", ["model", "tokenizer", "fsync", "curves", "run.json"])
def test_a_disk_that_is_full_at_the_end_of_a_run(
    where: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are written every two of five steps: one of the last is left, but where it cannot be."""
    left = 4 if where == "tokenizer" else 5
    with monkeypatch.context() as patch:
        if where == "tokenizer":  # room for checkpoints until the end is near
            own, count = PreTrainedTokenizerBase.save_pretrained, []

            def save(*args: object, **more: object) -> object:
                count.append(1)
                return own(*args, **more) if len(count) <= 2 else refuse(Exception(QUOTA))()  # type: ignore[arg-type]

            patch.setattr(PreTrainedTokenizerBase, "save_pretrained", save)
        else:
            fill(where, patch)
        with pytest.raises(
            DiskError, match=rf"free space .*slimrl train --resume {tmp_path}/a continues after step {left}$"
        ):
            run(tmp_path, "a")
    state = json.loads((tmp_path / "a" / "run.json").read_text())
    assert state["status"] == "failed"
    assert "free space" in state["reason"]
    assert not (tmp_path / "a" / ".writing-final").exists()
    assert checkpoints(tmp_path / "a" / "checkpoints")[0].step == left
    run(tmp_path, "a", resume=True)
    assert content(tmp_path / "a") == content(undisturbed)
    assert (tmp_path / "a" / "final" / "model.safetensors").is_file()


def test_what_waits_in_memory_is_written_before_a_run_counts_as_finished(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for the last evaluation only."""
    own = directory.replace_file

    def write(path: Path, data: bytes) -> None:
        if path.name == "step-00000005.jsonl" and path.parent.name == "evals":
            raise FULL
        own(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "replace_file", write)
        with pytest.raises(DiskError, match=r"continues after step 4$"):  # a checkpoint never outruns what it relies on
            run(tmp_path, "a")
    run(tmp_path, "a", resume=True)
    assert content(tmp_path / "a") == content(undisturbed)


def test_without_a_checkpoint_it_is_said_that_the_run_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "write_tensors", refuse(FULL))
    fill("model", monkeypatch)
    with pytest.raises(DiskError, match="continues from its beginning, to the same end"):
        run(tmp_path, "a")


def test_a_full_disk_in_a_roll_back_says_how_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("slimrl.learner.learner.surrogate", lambda *a, **_: a[1] * float("nan"))
        patch.setattr(directory.RunDirectory, "rewind", refuse(FULL))
        with pytest.raises(DiskError, match="slimrl train --resume"):
            run(tmp_path, "a")
    assert run(tmp_path, "a", resume=True).steps == 5


@pytest.mark.parametrize("where", ["model", "run.json"])
def test_a_disk_that_is_full_at_the_end_of_imitation(
    where: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"model.path={tiny_folder}", f"output={tmp_path}", "name=s", "steps=3", "sft.batch_size=4"]
    held_out = ["evaluation.problems=4", "evaluation.harder_problems=0", "evaluation.greedy=false"]
    config = load_config(SftRunConfig, [], [*settings, *held_out])
    with monkeypatch.context() as patch:
        fill(where, patch)
        with pytest.raises(DiskError, match=rf"slimrl sft --resume {tmp_path}/s continues after step 3$"):
            sft(config, Display(quiet=True))
    assert sft(config, Display(quiet=True), resume=True).steps == 3
    assert (tmp_path / "s" / "final" / "model.safetensors").is_file()


def test_the_command_ends_with_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.jsonl")

    monkeypatch.setattr(cli.cli, "main", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == DiskError.exit_code == 74
    assert capsys.readouterr().err == f"error: out.jsonl: {FULL.strerror}\n"


def test_a_report_that_finds_no_room_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slimrl.study.runs import planned_runs
    from slimrl.study.spec import load_study

    (tmp_path / "s.yaml").write_text("seeds: 2\narms: {kl: algorithm.kl_coef=0}\n")
    expanded = load_study([str(tmp_path / "s.yaml")])
    for planned in planned_runs(expanded, tmp_path / "runs" / expanded.name):
        write_run(planned, [1, 2])
    command = ["study", "report", str(tmp_path / "s.yaml"), "--output", str(tmp_path / "runs")]
    own = files.write_bytes

    def write(path: Path, data: bytes) -> files.Written:
        if "report.md" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return own(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", write)
        with pytest.raises(DiskError, match=r"report\.md cannot be written .*free space .*slimrl study report"):
            cli.cli.main(command, standalone_mode=False)
    cli.cli.main(command, standalone_mode=False)
    assert (tmp_path / "runs" / expanded.name / "report.md").is_file()


def test_a_library_that_meets_a_full_disk_or_quota_is_understood(tmp_path: Path) -> None:
    for text, code in ((f"io: {FULL.strerror}", errno.ENOSPC), (QUOTA, errno.EDQUOT)):
        with pytest.raises(OSError, match=r"Errno") as found, durable.full_disk_as_oserror(tmp_path):
            raise RuntimeError(text)
        assert found.value.errno == code
    with pytest.raises(RuntimeError, match="other"), durable.full_disk_as_oserror(tmp_path):
        raise RuntimeError("other")
