"""docs/extending.md works: its edits are applied to a copy of the package, which then accepts, uses and pays what they add."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.quick import QUICK

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
BLOCK = re.compile(r"^```diff\n--- (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = {
    "steps": 1, "seed": 0, "output": "runs", "rollout": {"problems": 4, "group_size": 4, "max_new_tokens": 24},
    "evaluation": {"problems": 2, "greedy": False, "harder_problems": 0}, "optimizer": {"epochs": 2, "learning_rate": 0.01},
    "rewards": {"brevity": 1.0, "gold_check": "report"}, "model": {"device": "cpu"}, "log": {"model": False},
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "power": {"surrogate": "power"},
    "other power": {"surrogate": "power", "power": 4.0},
    "k3": {"kl_coef": 5.0},
    "abs": {"kl_coef": 5.0, "kl_estimator": "abs"},
    "jensen": {"kl_coef": 5.0, "kl_estimator": "jensen"},
}
SCRIPT = """
import json, sys
from slimrl.config.files import build
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.preflight.effects import inert_switches, remarks
from slimrl.preflight.observed import NOTHING_OBSERVED
from slimrl.train import train

found = {}
for name, settings in json.loads(sys.argv[1]).items():
    summary = train(build(TrainConfig, settings), Display(quiet=True))
    found[name] = {"weights": summary.weights, "run": summary.run}
arms = [build(TrainConfig, {"algorithm": {"surrogate": "power", "power": power}}) for power in (0.5, 4.0)]
found["remarks"] = [[remark.kind, remark.text] for remark in remarks(*arms, "base")]
found["inert"] = inert_switches(arms[0], NOTHING_OBSERVED)
found["late"] = inert_switches(build(TrainConfig, {"steps": 5, "evaluation": {"every": 6}}), NOTHING_OBSERVED)
print(json.dumps(found))
"""
DIVERGENCE = """
import torch
from slimrl.algorithm.kl import Divergence

torch.set_default_dtype(torch.float64)
x = torch.tensor([[0.3, -1.0, 0.5]], requires_grad=True)
q = torch.tensor([[0.2, 0.5, 0.3]]).log()
value, slope = Divergence("jensen")(x.log_softmax(-1), q.clone())
(expected,) = torch.autograd.grad(value.sum(), x)
assert torch.allclose(slope, expected), (slope, expected)
assert 0 < value.item() < 0.7
"""
GRADE = """
from slimrl.config.files import build
from slimrl.config.schema import RootConfig
from slimrl.tasks import load_task

task = load_task(build(RootConfig, {"task": {"name": "riddles", "path": "riddles.jsonl", "style": "arrow"}}).task, instruction="", seed=0)
problem = task.train[0]
assert problem.question.startswith("What is")
assert task.grade(task.gold_text(problem), problem.answer).strict
assert not task.grade("=> 3 => 4", problem.answer).strict
"""


def edits(section: str) -> list[tuple[str, str, str]]:
    """(file, text to find, text to put in its place) of a section's blocks."""
    found = []
    for file, body in BLOCK.findall(SECTIONS[section]):
        for hunk in body.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if not line.startswith("+"))
            after = "".join(line[1:] for line in lines if not line.startswith("-"))
            found.append((file, before, after))
    return found


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package in which every edit of the page is made."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "slimrl", folder / "slimrl", ignore=shutil.ignore_patterns("__pycache__"))
    for section in SECTIONS:
        for file, before, after in edits(section):
            text = (folder / file).read_text(encoding="utf-8")
            assert text.count(before) == 1, f"{section}: {file} does not hold this text once:\n{before}"
            (folder / file).write_text(text.replace(before, after), encoding="utf-8")
    return folder


def python(folder: Path, code: str, *arguments: str) -> str:
    """The output of Python code that imports the package in `folder`."""
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def found(extended: Path) -> dict[str, Any]:
    """The findings of a tiny run with each addition."""
    runs = {name: {**SMALL, "name": name.replace(" ", "-"), "algorithm": algorithm} for name, algorithm in RUNS.items()}
    return dict(json.loads(python(extended, QUICK + SCRIPT, json.dumps(runs)).splitlines()[-1]))


def test_every_addition_takes_two_files_at_most() -> None:
    counts = {section: len({file for file, _, _ in edits(section)}) for section in SECTIONS}
    for section in SECTIONS:
        assert counts[section] <= 2, section
    assert sum(count == 2 for count in counts.values()) >= 6
    assert all("+" in block for _, block in BLOCK.findall(PAGE))
    assert PAGE.count("```diff") == len(BLOCK.findall(PAGE))


def test_the_reward_is_paid(extended: Path, found: dict[str, Any]) -> None:
    row = json.loads((extended / found["plain"]["run"] / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < row["rewards/brevity/mean"] <= 1
    assert row["reward"] == pytest.approx(row["rewards/brevity/mean"] + row["rewards/correct/mean"])


def test_the_surrogate_and_its_parameter_act(found: dict[str, Any]) -> None:
    assert len({found[name]["weights"] for name in ("plain", "power", "other power")}) == 3


def test_the_parameter_is_known_to_the_catalogue_of_effects(found: dict[str, Any]) -> None:
    ((kind, text),) = found["remarks"]
    assert kind == "inert"
    assert "acts on importance ratios" in text
    assert any("clip and gate of power" in sentence for sentence in found["inert"])


def test_the_rule_is_applied(found: dict[str, Any]) -> None:
    assert "evaluation.every: the run ends after 5 steps, before the first one that it asks for" in found["late"]
    assert not any("evaluation.every" in sentence for sentence in found["inert"])


def test_the_parameter_is_refused_without_the_surrogate(extended: Path) -> None:
    command = [sys.executable, "-m", "slimrl", "train", "algorithm.power=2"]
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    process = subprocess.run(command, cwd=extended, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "algorithm.power has no effect without algorithm.surrogate=power; remove one" in process.stderr


def test_the_kl_penalties_act(found: dict[str, Any]) -> None:
    assert len({found[name]["weights"] for name in ("plain", "k3", "abs", "jensen")}) == 4


def test_the_slope_of_the_divergence_is_its_derivative(extended: Path) -> None:
    python(extended, DIVERGENCE)


def test_the_task_is_read_and_the_answer_form_graded(extended: Path) -> None:
    rows = [json.dumps({"riddle": f"What is {i} plus one?", "key": str(i + 1)}) for i in range(30)]
    (extended / "riddles.jsonl").write_text("\n".join(rows) + "\n")
    python(extended, GRADE)


def test_contributing_names_the_files_of_the_page() -> None:
    """The table of CONTRIBUTING.md has the same files for each addition."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (.*?) \| (.*) \|$", table, re.MULTILINE))
    for section in SECTIONS:
        if files := {file for file, _, _ in edits(section)}:
            named = set(re.findall(r"`(slimrl/\S+?\.py)`", rows[section[0].lower() + section[1:]]))
            assert named >= files, section
