"""docs/evaluation.md: every command runs, every recipe is one, and its table of power is what comparisons find."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrl.cli.arguments import task_settings
from slimrl.config.task import TaskConfig
from slimrl.preflight import setup
from slimrl.sandbox import working
from slimrl.statistics import ADDED_TO_CHANGE, interval_of_moments
from tests.cli.test_cli import SMALL
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
COMMANDS = re.findall(
    r"^slimrl .*$", "\n".join(re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)), re.MULTILINE
)
RECIPES = sorted((ROOT / "recipes" / "eval").glob("*.yaml"))


def keys(entry: str) -> set[str]:
    """What the page of metrics says of a command's JSON."""
    return {*re.findall(r"`([\w@]+)`", entry)}


def entry(verb: str) -> set[str]:
    (text,) = re.findall(rf"^- `slimrl {verb} --json`:(.*?)(?=^- |^$)", METRICS, re.MULTILINE | re.DOTALL)
    return keys(text)


def test_every_command_runs(slimrl, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model, with few problems; data of the Hub is problems of the built-in task."""
    load = setup.load_task

    def without_the_hub(config: TaskConfig, **more: Any) -> Any:
        return load(config if config.name == "arithmetic" else TaskConfig(style=config.style), **more)

    monkeypatch.setattr(setup, "load_task", without_the_hub)
    shutil.copytree(tiny_folder, tmp_path / "my-model")
    for name in ("base", "mine"):
        assert (
            slimrl("train", f"model.path={tiny_folder}", f"name={name}", *SMALL, "log.rollouts=false", "--quiet").code
            == 0
        )
    rows = [{"id": i // 2, "answer": "4", "completion": f"#### {i}"} for i in range(8)]
    (tmp_path / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tests = {"task_id": 1, "text": "Zero.", "code": "def f(): return 0", "test_list": ["assert f() == 0"]}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(tests))
    (tmp_path / "programs.jsonl").write_text(json.dumps({"id": 1, "completion": f"```python\n{tests['code']}\n```"}))
    no_sandbox = not any(working(one)[0] for one in ("bubblewrap", "namespaces"))
    printed: dict[str, list[dict[str, Any]]] = {}
    for command in COMMANDS:
        verb, *arguments = shlex.split(command)[1:]
        if "code" in arguments and no_sandbox:
            continue
        if verb == "train":
            arguments += [f"model.path={tiny_folder}", *SMALL, "log.rollouts=false", "rewards.gold_check=report"]
        elif verb != "grade":
            arguments += ["--limit", "3"]
        if verb == "eval" or (verb == "compare" and any("=" in argument for argument in arguments)):
            arguments.append("rollout.max_new_tokens=8")
        result = slimrl(verb, *arguments)
        assert result.code == 0, (command, result.err)
        if "--json" in arguments:
            printed.setdefault(verb, []).append(json.loads(result.out))
    assert {*printed} == {"eval", "grade", "compare"}
    table = {*re.findall(r"`([\w@]+)`", METRICS.partition("## JSON on stdout")[0])}
    for verb, found in printed.items():
        assert {*found[0]} <= entry(verb)
    _, paid, *_ = printed["eval"]
    held_out = {key for key in paid["test"] if key.startswith("rewards/")}
    assert {key for key in held_out if key.count("/") == 1} == {"rewards/format", "rewards/soft_overlong"}
    assert {*printed["compare"][1]["rewards"]} == {"format"}
    assert {*printed["eval"][0]["test"]} <= table
    assert {"rewards/NAME", "greedy_rewards/NAME"} <= {*re.findall(r"`([^`]+)`", METRICS)}
    lines = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert {*lines[0]} <= table
    assert {line["task"] for line in lines} == {"gsm8k", "math-500"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_protocols(recipe: Path) -> None:
    """Each is on the page with its sizes, and takes a run's answer form where it names none."""
    (config,) = task_settings("./my-model", [], [str(recipe)], None).values()
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `@eval/{recipe.stem}`")]
    _, _, problems, samples, tokens, _ = (cell.strip() for cell in row.split("|"))
    assert (f"{config.evaluation.problems:,}", f"{config.rollout.max_new_tokens:,}") == (problems, tokens)
    assert samples == f"{config.evaluation.samples}, and greedily"
    assert config.evaluation.greedy
    assert config.rollout.temperature == 1
    assert (config.task.checker == "symbolic") == (config.task.name == "math")


def power(samples: int, agree: float, problems: int) -> float:
    """Share of comparisons that find a true difference of 5 points."""
    draws = np.random.default_rng(7)
    if agree:
        gained, lost = (1 - agree + 0.05) / 2, (1 - agree - 0.05) / 2
        change = draws.choice([0, 1, -1], size=(1000, problems), p=[agree, gained, lost])
    else:
        rates = draws.beta(1, 1, size=(1000, problems)) * 0.95
        change = (draws.binomial(samples, rates + 0.05) - draws.binomial(samples, rates)) / samples
    low, _ = interval_of_moments(problems, change.mean(1), change.var(1), -1, 1, added=ADDED_TO_CHANGE)
    return float(np.mean(low > 0))


def test_the_table_of_power_is_what_is_found() -> None:
    rows = re.findall(
        r"^\| (\d) \| (?:(\d+) % agree|drawn independently) \| (\d+) % \| (\d+) % \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 6
    for samples, agree, at_400, at_1319 in rows:
        for problems, printed in ((400, at_400), (1319, at_1319)):
            found = power(int(samples), float(agree or 0) / 100, problems)
            assert found == pytest.approx(float(printed) / 100, abs=0.06), (
                samples,
                agree,
                problems,
            )  # 3 or more errors
