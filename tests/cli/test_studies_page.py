"""docs/studies.md: its commands run, and its file is a study that runs.

Of each study one run is trained, on a tiny model; the others are copies of it under their own settings. What is for a GPU
(ELSEWHERE) is read and expanded by the same code, and not run.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from slimrl.config import recipes
from slimrl.config.files import parse_override
from slimrl.config.mistakes import known_keys
from slimrl.config.schema import TrainConfig
from slimrl.study.place import Place
from slimrl.study.spec import load_study
from tests.conftest import ROOT
from tests.examples import copy_runs_of_studies

PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition(" #")[0].strip() for kind, text in BLOCKS if not kind for line in text.splitlines()]
(FILE,) = (text for kind, text in BLOCKS if kind == "yaml")
ELSEWHERE = {"@on/qwen2.5-0.5b-gsm8k": "a model and a data set of the Hub, on a GPU"}


@pytest.fixture
def at_hand(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file that makes any study tiny, and runs that are copies of one."""
    (tmp_path / "tiny.yaml").write_text(
        f"seeds: 1\nsettings:\n  model: {{path: {tiny_folder}}}\n  steps: 2\n"
        "  rollout: {problems: 8, group_size: 2, max_new_tokens: 12}\n"
        "  evaluation: {problems: 3, samples: 2, harder_problems: 0}\n  rewards: {gold_check: report}\n"
    )
    copy_runs_of_studies(monkeypatch)
    return str(tmp_path / "tiny.yaml")


def test_every_command_runs(slimrl, at_hand: str) -> None:
    assert [command.split()[:3] for command in COMMANDS] == [
        ["slimrl", "study", verb] for verb in ("plan", "run", "report", *["run"] * 7)
    ]
    run_before = False
    for command in COMMANDS:
        verb, *arguments = shlex.split(command)[2:]
        files = [argument for argument in arguments if argument.startswith("@")]
        if any(file in ELSEWHERE for file in files):
            assert load_study([recipes.named(file, "studies") for file in files]).arms
            continue
        if "--on" in arguments:  # of a cluster; tests/study has small ones
            assert Place.read(arguments[arguments.index("--on") + 1]).kind in ("slurm", "ray")
            continue
        name = [] if "--name" in arguments or len(files) > 1 else ["--name", files[0].removeprefix("@")]
        tokens = ["--seeds", "1"] if "--seeds" in arguments else []
        more = [at_hand, *name, *tokens, *(["--slots", "2"] if verb != "report" else [])]
        if "@on/equal-tokens" in files:  # 40,000 tokens are of a real model
            Path("few-tokens.yaml").write_text("settings: {steps: 2}\nbudget: {tokens: 60}\n")
            more.append("few-tokens.yaml")
        result = slimrl("study", verb, *arguments, *more)
        assert result.code == 0, (command, result.err)
        if verb == "run" and not run_before:
            run_before = True
            there = {path.name for path in Path("runs/case-study").iterdir()}
            (named,) = re.findall(r"`runs/case-study/` then holds (.*?)each an\s+ordinary run", PAGE, re.DOTALL)
            files_named = {*re.findall(r"`([\w.]+)`", named)}
            assert {"report.html", "report.md", "results.csv", "results.json", "declared.json"} == files_named <= there
            assert (Path("runs/case-study/runs") / "base-0" / "config.yaml").is_file()
            assert json.loads(Path("runs/case-study/runs/base_again-0/run.json").read_text())["status"] == "finished"
    assert Path("runs/quick-10/report.html").is_file()


def test_the_file_of_the_page_is_a_study_that_runs(slimrl, at_hand: str) -> None:
    Path("mine.yaml").write_text(FILE)
    (study,) = (load_study(["mine.yaml"]).study,)
    assert (study.question, study.seeds, study.primary, study.margin) == (
        "Does the KL penalty help?", 5, "test/sampled", 0.02,
    )  # fmt: skip
    result = slimrl("study", "run", "mine.yaml", at_hand, "--name", "mine", "--slots", "2", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [arm["name"] for arm in found["arms"]] == ["base", "no_kl", "final", "base_again"]
    assert found["complete"]


def test_settings_of_the_page_are_settings() -> None:
    keys = {*known_keys(TrainConfig)}
    sections = {key.partition(".")[0] for key in keys}
    named = [
        text for text in re.findall(r"`([a-z_]+\.[a-z_]+(?:=[^`]*)?)`", PAGE) if text.partition(".")[0] in sections
    ]
    assert {"rewards.correct=0 rewards.format=1", "task.answers=shuffled", "evaluation.samples"} <= {*named}
    for text in named:
        for setting in text.split():
            assert setting.partition("=")[0] in keys, setting
            if "=" in setting:
                parse_override(setting)
