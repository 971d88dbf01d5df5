"""A tokenizer with several chat templates: transformers keeps them in a folder beside the other files of the model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from slimrl import cli
from slimrl.errors import DiskError
from slimrl.runs import directory
from slimrl.runs.checkpoints import checkpoints, newest
from slimrl.runs.durable import damage, seal
from slimrl.runs.files import Written
from tests.session.test_resume import interrupt, run

FEW = ("steps=2", "optimizer.schedule=constant", "evaluation.every=0", "rollout.problems=2", "checkpoint.every=1")
NAMED = Path("additional_chat_templates") / "tool_use.jinja"


@pytest.fixture(scope="module")
def several(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "several"
    shutil.copytree(tiny_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "tools " + tokenizer.chat_template}
    tokenizer.save_pretrained(folder)
    assert (folder / NAMED).is_file()
    return folder


@pytest.fixture(scope="module")
def trained(several: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in its second step, then resumed from the checkpoint of the first."""
    output = tmp_path_factory.mktemp("runs")
    model, umask = f"model.path={several}", os.umask(0o027)
    try:
        assert interrupt(output, "a", 3, *FEW, model) == 75
        checkpoint, said = newest(output / "a" / "checkpoints")
        assert checkpoint is not None
        assert not said
        assert (checkpoint.path / NAMED).is_file()
        shutil.copytree(checkpoint.path, output / "kept" / checkpoint.path.name)
        assert run(output, "a", *FEW, model, resume=True).steps == 2
    finally:
        os.umask(umask)
    return output


def test_every_template_reaches_the_trained_model_and_its_export(several: Path, trained: Path) -> None:
    umask = os.umask(0o027)
    try:
        cli.cli.main(["export", str(trained / "a"), str(trained / "out")], standalone_mode=False)
    finally:
        os.umask(umask)
    theirs = AutoTokenizer.from_pretrained(several).chat_template
    for folder in (trained / "a" / "final", trained / "out"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == theirs
        modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
        assert modes == {0o640}, "as the umask has them"
        assert (folder / NAMED).parent.stat().st_mode & 0o777 == 0o750, "a folder stays one that can be entered"


@pytest.mark.parametrize("how", ["delete", "change", "link", "linked folder"])
def test_a_named_template_is_part_of_what_a_checkpoint_vouches_for(trained: Path, how: str, tmp_path: Path) -> None:
    shutil.copytree(trained / "kept", tmp_path / "kept")
    (checkpoint,) = checkpoints(tmp_path / "kept")
    assert damage(checkpoint.path) == ""
    file, elsewhere = checkpoint.path / NAMED, tmp_path / "elsewhere"
    if how == "change":
        file.write_text("x" + file.read_text()[1:])
    elif how == "linked folder":
        file.parent.rename(elsewhere)
        file.parent.symlink_to(elsewhere)
    else:
        file.rename(elsewhere)
        if how == "link":
            file.symlink_to(elsewhere)
    assert damage(checkpoint.path).startswith(NAMED.as_posix())


@pytest.mark.parametrize("name", ["../beside", "inner/../../beside", "inner/../here", "/etc/hostname", ".", "", "a//b"])
def test_a_manifest_that_names_files_elsewhere_is_damaged(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "beside").write_bytes(b"")
    (folder / "here").write_bytes(b"")
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    seal(folder, {"here": Written(0, nothing)})
    assert damage(folder) == ""
    seal(folder, {name: Written(0, nothing)})
    assert damage(folder) == f"{name} is missing"


def test_a_mistake_in_the_last_files_is_not_called_a_full_disk(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise IsADirectoryError(21, "Is a directory", "final")

    monkeypatch.setattr(directory.RunDirectory, "save_final", fails)
    with pytest.raises(OSError, match="Is a directory") as caught:
        run(tmp_path, "b", *FEW, f"model.path={several}", "checkpoint.every=0")
    assert not isinstance(caught.value, DiskError)
    assert checkpoints(tmp_path / "b" / "checkpoints")[0].step == 2, "the run can go on all the same"
