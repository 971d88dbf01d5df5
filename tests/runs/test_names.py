"""Names of runs, studies and arms: none leads out of the output folder, whoever made it up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from slimrl.config.files import build, load_config
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.runs.directory import new_run
from slimrl.runs.files import write_text
from slimrl.study.runner import _remove
from slimrl.study.runs import Planned, planned_runs, run_folder
from slimrl.study.spec import load_study

NAMES = [
    "../x", "../../x", "..", ".", "...", "./x", "x/..", "x/../..", "x/../../y", "a/b", "/", "//", "/tmp/x", "/etc/passwd", "/dev/null", "//host/x",
    "\\", "..\\x", "a\\b", "C:\\x", "C:x", "\\\\host\\x", "~", "~/x", "~root", "$HOME", "${HOME}", "$(touch x)", "`touch x`", "%TEMP%", "%2e%2e%2fx",
    "..%2fx", "..\u2215x", "\u2025/x", "\uff0e\uff0e\uff0fx", "x\0", "\0", "x\0/../../y", "x\n", "\nx", "x\r", "x\ty", " ", " x", "x ", "x y", "-rf", "--help",
    "-", ".hidden", "_x", "CON", "NUL", "COM1", "Name", "x*", "x?", "x|y", "x;y", "x&y", "x>y", "x:y", "'x'", '"x"', "x" * 101, "x" * 300, "x" * 5000, "\U0001f600",
    "\u202ex", "\u0445", "\xe9", "\x1b[2J", "\ud800", "{x}", "[x]", "#x", "x=y", "x,y", "!x", "@x", "x+y", "1\u0661",
]  # fmt: skip
ODD = ["con", "nul", "aux.txt", "com1", "x.", "x..", "x..y", "0", "x" * 64, "config.yaml", "final", "runs", "x-", "1.0"]
"""Not nice, but folders."""


def everything(folder: Path) -> set[str]:
    """Whatever lies below a folder, links not followed."""
    return {os.path.join(where, name) for where, folders, files in os.walk(folder) for name in (*folders, *files)}


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with deep/out, to which the output goes, and HOME beside it; working there."""
    work = tmp_path / "deep" / "work"
    work.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(work)
    return tmp_path


def by_settings(name: str) -> Path:
    return new_run(build(TrainConfig, {"name": name, "output": "out"}), "train")


def by_override(name: str) -> Path:
    return new_run(load_config(TrainConfig, [], ["output=out", f"name={name}"]), "train")


def by_study(name: str) -> Path:
    Path("a.yaml").write_text("arms: {a: algorithm.kl_coef=0}\n")
    return planned_runs(load_study(["a.yaml"], name=name), Path("out") / name)[0].folder


def by_arm(name: str) -> Path:
    import yaml

    Path("a.yaml").write_text(yaml.safe_dump({"arms": {name: "algorithm.kl_coef=0"}}), encoding="utf-8")
    return planned_runs(load_study(["a.yaml"]), Path("out"))[1].folder


WAYS = {"settings": by_settings, "override": by_override, "study": by_study, "arm": by_arm}


def test_there_are_enough_of_them() -> None:
    assert len({*NAMES}) >= 60


@pytest.mark.parametrize("way", WAYS)
def test_hostile_names_are_refused_and_nothing_is_written(way: str, around: Path) -> None:
    make: Callable[[str], Path] = WAYS[way]
    if way in ("study", "arm"):
        Path("a.yaml").touch()
    before = everything(around)
    # on the command line the value is YAML first: these are other names there, or none
    other = {"~", " x", "x ", " ", "'x'", '"x"', "x\n", "\nx", "x\r", "#x", "x\ty"} if way == "override" else set()
    for name in NAMES:
        if name in other or (way == "arm" and name == "\ud800"):
            continue
        with pytest.raises(SettingsError) as refusal:
            make(name).mkdir(parents=True)
        assert len(str(refusal.value)) < 1000, "a name that is refused is not told at any length"
    assert everything(around) == before


@pytest.mark.parametrize("name", ODD)
def test_odd_names_stay_within_the_output_folder(name: str, around: Path) -> None:
    before = everything(around)
    by_settings(name).mkdir(parents=True)
    assert {
        Path(made).relative_to(Path("out").absolute()).parts[0]
        for made in everything(around) - before - {str(Path("out").absolute())}
    } == {name}


def test_a_run_has_the_shorter_limit() -> None:
    with pytest.raises(SettingsError, match="has 65 characters; at most 64 are allowed"):
        by_settings("x" * 65)


def test_a_folder_of_a_run_that_is_a_link_is_never_followed(around: Path) -> None:
    Path("out").mkdir()
    (around / "there").mkdir()
    for name, target in (("link", around / "there"), ("dangling", around / "nowhere"), ("loop", Path("loop"))):
        (Path("out") / name).symlink_to(target)
        with pytest.raises(SettingsError, match="exists already"):
            by_settings(name)
    assert not (around / "nowhere").exists()
    with pytest.raises(SettingsError, match="no folder can be named so"):
        new_run(build(TrainConfig, {"name": "x", "output": "out\0x"}), "train")


def test_a_study_removes_a_link_and_not_what_it_leads_to(around: Path) -> None:
    kept = around / "there" / "kept"
    kept.parent.mkdir()
    kept.touch()
    arm = load_study([str(_study())]).arms[0]
    run = Planned(arm, 0, run_folder(Path("out"), arm.name, 0))
    run.folder.parent.mkdir(parents=True)
    for target in (kept.parent, around / "nowhere"):
        run.folder.symlink_to(target)
        _remove(run.folder)
        assert not run.folder.is_symlink()
    report = Path("out") / "report.html"
    report.symlink_to(kept)
    write_text(report, "text")
    assert kept.read_text() == ""
    assert report.read_text() == "text"


def _study() -> Path:
    path = Path("b.yaml")
    path.write_text("arms: {a: algorithm.kl_coef=0}\n")
    return path
