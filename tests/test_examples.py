"""Every example of README.md, docs/ and the other pages is run, in the order of its page, or declared in tests/examples.py."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from slimrl.errors import SlimError
from tests.cli.conftest import slimrl  # noqa: F401
from tests.conftest import ROOT
from tests.examples import (
    ELSEWHERE,
    PAGES,
    RUN_BY,
    Reader,
    Shared,
    blocks,
    commands,
    copy_runs_of_studies,
    elsewhere,
    of_the_hub,
    relative,
)

BLOCKS = [block for page in PAGES for block in blocks(relative(page), page.read_text(encoding="utf-8"))]
HERE = [block for block in BLOCKS if (block.page, block.language) not in RUN_BY]


@pytest.fixture(scope="module")
def shared(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return Shared(tiny_folder, tmp_path_factory.mktemp("examples"))


@pytest.fixture
def reader(slimrl, shared: Shared, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """A reader of a page, in an empty folder."""
    copy_runs_of_studies(monkeypatch)
    monkeypatch.setattr("slimrl.report.plots.curve_groups", lambda *_: ())  # two seconds of each report
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=of_the_hub))
    monkeypatch.setattr("sys.stdin", io.StringIO("1 + 1?\n/quit\n"))

    def sit_down(page: str) -> Reader:
        found = Reader(page, shared, slimrl)
        found.lay_out()
        found.lay_runs()
        return found

    return sit_down


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in HERE))
def test_the_examples_of_a_page_run(page: str, reader) -> None:
    read = reader(page)
    for block in HERE:
        if block.page == page:
            read.read(block)


def test_blocks_that_other_tests_run_are_counted() -> None:
    """A new block on such a page needs its test there, and then its number in RUN_BY."""
    found = Counter((block.page, block.language) for block in BLOCKS)
    assert {key: found[key] for key in RUN_BY} == {key: count for key, (_, count) in RUN_BY.items()}
    for tests, _ in RUN_BY.values():
        assert all((ROOT / test).is_file() for test in tests.split(", "))


def test_no_command_is_declared_that_no_page_has() -> None:
    met = {elsewhere(words) for block in HERE if block.language in ("", "bash") for words in commands(block)}
    assert {*ELSEWHERE} <= met


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("```\nslimrl train stepz=3\n```\n", "stepz"),
        ("```\nslimrl train --stepz=3\n```\n", "No such option"),
        ("```\nmake install\n```\n", "nobody runs 'make'"),
        ("```toml\na = 1\n```\n", "nobody runs a block of toml"),
        ("```yaml\nsteps: 1\n```\n", "begin the settings with their file"),
        ("```text\nslimrl runs\n```\n", "a command in a block of output"),
        ("```\nsbatch recipes/slurm.sh first stepz=3\n```\n", "stepz"),
        ("```\ntorchrun --nproc-per-node 8 -m slimrl train @gms8k\n```\n", "gms8k"),
        ("```\npip install '.[gguff]'\n```\n", "no such extra"),
        ("- a list\n\n  ```\n  slimrl runs\n  ```\n", "a fence that no test would see"),
        ("```python\nimport slimrl\nslimrl.trian()\n```\n", "trian"),
    ],
)  # fmt: skip
def test_a_wrong_example_is_found(text: str, sentence: str, reader) -> None:
    def read() -> None:
        for block in blocks("docs/new.md", text):
            reader("docs/new.md").read(block)

    with pytest.raises((AssertionError, AttributeError, SlimError, click.ClickException), match=sentence):
        read()
