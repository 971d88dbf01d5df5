"""docs/python.md: every example on it runs, in the order of the page, as the cells of a notebook do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import slimrl
from slimrl.config.files import parse_override
from slimrl.config.mistakes import known_keys
from slimrl.config.schema import TrainConfig
from tests.conftest import ROOT
from tests.quick import quick_runs, run_studies_here  # noqa: F401

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
CELLS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SMALL = {"evaluation": {"problems": 8, "harder_problems": 0}}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer held-out problems where the page has the default; runs of a study in this process, and no curves in its report."""
    run_studies_here(monkeypatch)
    monkeypatch.setattr("slimrl.report.plots.curve_groups", lambda *_: ())
    train = slimrl.train

    def smaller(*args: Any, **settings: Any) -> slimrl.Result:
        return train(*args, **(settings if {"data", "resume"} & {*settings} or len(args) > 1 else SMALL | settings))

    monkeypatch.setattr(slimrl, "train", smaller)


@pytest.mark.usefixtures("small")
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    cells: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for cell in CELLS:
        exec(compile(cell.replace('"seeds": 2', '"seeds": 1'), "<cell>", "exec"), cells)
        printed.append(capsys.readouterr())
    assert re.search(r"test, accuracy: [\d.]+ % -> [\d.]+ %, [+-][\d.]+ points \[", printed[0].out)
    assert "brief: no worker can load this part of the program" in printed[1].err
    assert "on 2 problems" in printed[1].out, "about a tenth of the rows"
    assert cells["again"].summary["steps"] == 1
    assert [run.name for run in sorted((tmp_path / "runs" / "first-look" / "runs").iterdir())][:2] == [
        "base-0",
        "base_again-0",
    ]
    assert "did you mean algorithm.clip_high?" in printed[-2].out
    assert re.search(
        r'resume with slimrl\.train\(resume="runs/short"\)|before there was anything to lose', printed[-1].out
    )
    assert all(folder.is_dir() for folder in (tmp_path / "runs").iterdir())


def test_the_page_names_what_there_is() -> None:
    table = PAGE.partition("| function |")[2].partition("\n\n")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"^\| `(\w+)\(", line)}
    assert named == {"train", "sft", "evaluate", "compare", "sample", "study"}
    returned = {line.rsplit("`", 2)[1] for line in table.splitlines() if "(" in line}
    assert all(hasattr(slimrl, name) for name in (*named, *returned))
    keys = {*known_keys(TrainConfig)}
    for text in re.findall(r"`((?:rewards|rollout|algorithm|log)\.[a-z_.]+(?:=\w+)?)`", PAGE):
        assert text.partition("=")[0] in keys, text
        parse_override(text if "=" in text else f"{text}=1")


def test_the_first_example_has_five_lines() -> None:
    assert len(CELLS[0].strip().splitlines()) <= 5
