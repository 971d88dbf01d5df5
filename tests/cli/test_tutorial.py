"""docs/tutorial.md runs as it is written, with fewer completions and without its study; commands of the how-to guides are understood."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from slimrl.cli.arguments import load_settings
from slimrl.config.recipes import named
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.study.spec import load_study
from tests.conftest import ROOT

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
GUIDES = [*sorted((ROOT / "docs" / "how-to").glob("*.md")), ROOT / "README.md", ROOT / "docs" / "settings.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")
FEWER = (
    "rollout.problems=2",
    "rollout.group_size=2",
    "evaluation.samples=2",
    "evaluation.problems=4",
    "evaluation.harder_problems=0",
    "rewards.workers=0",
)


def commands(block: str) -> list[list[str]]:
    """The words of each command of a block, without comments and the environment before it."""
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [words[words.index("slimrl") :] for words in lines if "slimrl" in words]


def write(block: str, folder: Path) -> None:
    """A block that begins with the name of a file is that file."""
    if match := FILE.match(block):
        (folder / match[1]).parent.mkdir(exist_ok=True)
        (folder / match[1]).write_text(block, encoding="utf-8")


def test_the_tutorial_runs(slimrl, tmp_path: Path) -> None:
    ran = []
    said = ""
    for language, block in BLOCK.findall(TUTORIAL):
        if language in ("python", "yaml"):
            write(block, tmp_path)
        elif language == "bash" and block.startswith("python "):
            subprocess.run([sys.executable, *shlex.split(block)[1:]], cwd=tmp_path, check=True)
        elif not language:
            for _, verb, *arguments in commands(block):
                if verb == "study":
                    seeds = int(arguments[3]) if "--seeds" in arguments else 0
                    assert len(load_study([arguments[1]], seeds=seeds).arms) == 4
                    continue
                shorter = () if verb != "train" else FEWER if arguments else (*FEWER, "steps=1")
                result = slimrl(verb, *arguments, *shorter)
                assert result.code == 0, result.err
                said = result.err + result.out
                ran.append(verb)
        elif "gold answers: 576" in block:
            assert block.splitlines()[1] in said
    assert ran == ["train", "runs", "show", "new", "doctor", "train", "sample", "compare"]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_on_a_page_are_settings(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of settings, and every command that trains or compares, is accepted as far as settings go."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in ("rows.jsonl", "rows.parquet", "test.jsonl", "rates.jsonl"):
        (tmp_path / name).write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    (tmp_path / "mine").mkdir()
    for name in ("mine.yaml", "mine/mine.yaml"):
        (tmp_path / name).write_text("task: {path: rows.jsonl}\n")
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    for language, block in blocks:
        if language in ("python", "yaml"):
            write(block, tmp_path)
    checked = 0
    for _, verb, *arguments in (command for language, block in blocks if not language for command in commands(block)):
        words = [word for word in arguments if not word.startswith("--")]
        if verb == "study":
            files = [named(word, "studies") for word in words[1:] if not word.isdigit()]
            assert load_study(files).arms
        elif verb in ("train", "doctor", "sft"):
            load_settings(SftRunConfig if verb == "sft" else TrainConfig, [named(word, "recipes") for word in words])
        checked += verb in ("study", "train", "doctor", "sft")
    assert checked
