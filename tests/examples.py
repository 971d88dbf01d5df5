"""The examples of the pages: what stands in for what they name, and a reader who runs them in the order of a page.

Every fenced block of a page is run by tests/test_examples.py, or by the file of tests that RUN_BY names. What cannot run in a test
(ELSEWHERE) is still parsed against the command line and the settings. A block of another kind fails.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from slimrl.cli import cli
from slimrl.cli.arguments import load_settings, model_settings, run_settings
from slimrl.config.files import dump_yaml, load_config, with_chosen
from slimrl.config.recipes import named
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.machine.signals import PREEMPTED, Stop, Stopped
from slimrl.runs.reader import read_chosen
from slimrl.study import runner
from slimrl.study.launcher import Job, LocalLauncher
from slimrl.study.spec import load_study
from slimrl.train import train
from tests.conftest import ROOT
from tests.translate.test_verl import SCRIPT
from tests.translate.trl_files import FILES

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]

RUN_BY: dict[tuple[str, str], tuple[str, int]] = {
    ("docs/data.md", ""): ("tests/test_data_page.py, tests/cli/test_difficulty.py", 2),
    ("docs/data.md", "json"): ("tests/cli/test_difficulty.py", 1),
    ("docs/environments.md", "json"): ("tests/environments/test_demonstrations.py", 1),
    ("docs/evaluation.md", ""): ("tests/cli/test_evaluation_page.py", 8),
    ("docs/extending.md", "diff"): ("tests/test_extending.py", 13),
    ("docs/others-environments.md", "python"): ("tests/environments/test_others_page.py", 2),
    ("docs/python.md", "python"): ("tests/test_python_page.py", 9),
    ("docs/rewards.md", "python"): ("tests/test_rewards_page.py", 5),
    ("docs/rewards.md", "yaml"): ("tests/test_rewards_page.py", 7),
    ("docs/studies.md", ""): ("tests/cli/test_studies_page.py", 3),
    ("docs/studies.md", "yaml"): ("tests/cli/test_studies_page.py", 1),
}
"""(page, language) -> the tests that run all such blocks of the page, and how many there are."""

ELSEWHERE = {
    r"(\S+/)?pip install ": "downloads packages",
    r"python3? -m venv ": "makes an environment",
    r"\. \.venv/bin/activate": "enters an environment",
    r"(ruff|mypy|pytest)\b": "the checks themselves",
    r"hf download ": "needs a network",
    r"ollama ": "another program",
    r"sbatch ": "needs a cluster; tests/machine/test_signals.py runs the script",
    r"torchrun ": "starts processes on several GPUs; tests/parallel runs them on a CPU",
    r"slimrl study run .*--on ": "needs a cluster; tests/study/test_slurm.py and test_ray.py have small ones",
    r"slimrl (train|eval) .*devices=8": "needs eight GPUs; tests/parallel and tests/cli/test_measuring_devices.py have two processes",
    r"slimrl train .*rollout\.engine=vllm": "needs vLLM and a large model; tests/rollout/test_vllm.py has the built-in one",
    r"slimrl train .*log\.to=": "needs packages and an account; tests/trackers/test_real.py has the packages",
    r"slimrl train task\.name=code ": "needs problems with tests; tests/tasks/test_code.py has some",
    r"slimrl train task\.name=verifiers:": "needs the package; tests/environments/test_verifiers.py has it, or a stand-in",
    r"slimrl train .*environment\.name=shop\.py:Shop": "runs in tests/environments/test_others_page.py",
    r"slimrl (sft|train) .*task\.path=shown\.jsonl": "runs in tests/environments/test_demonstrations.py",
    r"slimrl .*s3://": "needs a bucket; tests/runs/test_s3.py has a server",
    r"slimrl export .*--push": "needs an account; tests/export/test_hub.py has a Hub",
    r"(\S+/)?python benchmarks/": "measures for minutes, or needs the packages of others",
    r"slimrl sft model\.path=SMOLLM2": "needs a model of a benchmark",
    r"slimrl eval MODEL .*boxed": "needs a model of a benchmark",
}
"""Commands that cannot run in a test, and why."""

REPLACED: dict[str, dict[str, str]] = {
    "README.md": {"steps=10)": "steps=1)"},
    "docs/environments.md": {
        "steps=1)": 'steps=1, rollout={"problems": 2, "max_new_tokens": 16}, evaluation={"problems": 2, "harder_problems": 0})'
    },
    "docs/extending.md": {
        '["steps=2"]': '["steps=2", "rollout.problems=2", "evaluation.problems=2", "evaluation.harder_problems=0"]'
    },
    "docs/reliability.md": {"steps=60": "steps=3"},
    "docs/tutorial.md": {"evals/step-00000012": "evals/step-00000001"},
}
"""Text of examples that a test makes smaller."""

RUNS: dict[str, dict[str, str]] = {
    "README.md": dict.fromkeys(("NAME", "A", "B"), "finished"),
    "docs/commands.md": {"first": "interrupted"},
    "docs/export.md": {"mine": "finished"},
    "docs/reliability.md": {"mine": "interrupted"},
    "docs/run-page.md": {"mine": "finished"},
    "docs/sandbox.md": {"mine": "finished"},
}
"""Runs that a reader of a page has: the same tiny one, with an adapter, or one that was stopped after its first step."""

WITH_SETTINGS = ("docs/how-to/study.md",)
"""Pages whose reader has settings in mine.yaml; others write that file."""

GLOBALS = {"docs/architecture.md": "slimrl.model.attention"}
"""The module whose lines a page shows, so that they have its names."""

PRINTED = {"docs/tutorial.md": ("gold answers: 576 checked against the maximum reward 1.2, all earn it",)}
"""Lines of a block of output that smaller runs print as well."""

SMALL = (
    "steps=1", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=16", "rollout.slots=8", "evaluation.problems=2",
    "evaluation.samples=1", "evaluation.greedy=false", "evaluation.every=0", "evaluation.harder_problems=0", "rewards.workers=0",
)  # fmt: skip
UNREAD = {"sft": ("rollout.problems", "rollout.group_size", "rewards."), "doctor": ("steps", "evaluation.")}
"""Settings of SMALL that a command refuses, or that change what it prints on a page."""

TINY_STUDY = """seeds: 1
settings:
  model: {{path: {model}}}
  steps: 2
  rollout: {{problems: 8, group_size: 2, max_new_tokens: 12}}
  evaluation: {{problems: 3, samples: 2, harder_problems: 0}}
  rewards: {{gold_check: report, workers: 0}}
"""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page; a fence stands at the beginning of a line and has three backticks."""
    assert not re.search(r"^(?:[ \t]+```|~~~|````)", text, re.MULTILINE), f"{page}: a fence that no test would see"
    found = re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in found]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a block, without comments."""
    found: list[list[str]] = []
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        found += [words] if words else []
    return found


def elsewhere(words: Sequence[str]) -> str:
    """The entry of ELSEWHERE that a command matches; empty if it can run here."""
    return next((pattern for pattern in ELSEWHERE if re.match(pattern, " ".join(words) + " ")), "")


def check_elsewhere(words: Sequence[str], place: str) -> None:
    """Parse a command that cannot run here, as far as it is ours: options, settings, scripts, extras."""
    if words[0] == "sbatch":
        assert (ROOT / "recipes" / Path(words[1]).name).is_file(), place  # which a reader has copied
        words = ["slimrl", "train", f"name={words[2]}", *words[3:]]
    elif words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    if words[0] == "slimrl":
        accept(words, place)
    elif "install" in words:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = [
            name for word in words for part in re.findall(r"^(?:\.|slimrl)\[(.*)\]$", word) for name in part.split(",")
        ]
        assert {*asked} <= {*extras}, f"{place}: no such extra"
    elif "benchmarks/" in " ".join(words):
        (script,) = (word for word in words if word.startswith("benchmarks/"))
        known = (ROOT / script).read_text() + (ROOT / "benchmarks" / "common.py").read_text()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in known] == [], place


def accept(words: Sequence[str], place: str) -> None:
    """Parse a command of ours without running it: verb, options and every setting."""
    command, name, rest = cli, "slimrl", list(words[1:])
    while isinstance(command, click.Group):
        assert rest[0] in command.commands, f"{place}: no command {rest[0]}"
        name, command, rest = rest[0], command.commands[rest[0]], rest[1:]
    given = command.make_context(name, rest).params
    if name in ("train", "doctor", "sft"):
        run_settings(
            SftRunConfig if name == "sft" else TrainConfig, given["settings"], given.get("resume", False), force=False
        )
    elif name in ("plan", "run", "report"):
        settings = [text for text in given["files"] if "=" in text]
        assert load_study([text for text in given["files"] if text not in settings], settings).arms, place
    elif name in ("eval", "chat", "sample", "difficulty"):
        model_settings(given["model_or_run"], given["settings"], None)


def rows(first: int) -> list[dict[str, Any]]:
    """Rows under all names that examples use."""
    asked = "Mia has {} pens. Then Mia buys 2 more. How many pens does Mia have now?"
    return [
        {"question": asked.format(i), "answer": str(i + 2), "query": asked.format(i), "labels": {"text": [str(i + 2)]}}
        for i in range(first, first + 24)
    ]


def of_the_hub(name: str, subset: str | None, *, split: str) -> list[dict[str, str]]:
    """Rows in the layout of a data set, in place of its download."""
    assert (name, subset) == ("openai/gsm8k", "main"), f"no rows stand in for {name}"
    return [
        {"question": f"{split}: what is {i} + 1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
        for i in range(24)
    ]


class StoppedAfterAStep(Display):
    """Asks for a stop as a scheduler does, once a step is done."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(quiet=True)
        self.told = stop

    def step(self, *arguments: Any) -> None:
        super().step(*arguments)
        self.told.ask("a test", PREEMPTED)


class Shared:
    """A tiny model and the runs of it that pages share, each trained when it is first asked for."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder

    def config(self, name: str) -> TrainConfig:
        more = ["model.lora.rank=2", f"name={name}", f"output={self.folder}"]
        return load_config(TrainConfig, [], [f"model.path={self.model}", *SMALL, "steps=2", *more])

    @cached_property
    def finished(self) -> Path:
        return Path(train(self.config("finished"), Display(quiet=True)).run)

    @cached_property
    def interrupted(self) -> Path:
        stop = Stop()
        with pytest.raises(Stopped):
            train(self.config("interrupted"), StoppedAfterAStep(stop), stop=stop)
        return self.folder / "interrupted"

    def recipe(self) -> str:
        """The settings of the interrupted run as a file without its place."""
        settings = yaml.safe_load(dump_yaml(self.config("x")))
        return yaml.safe_dump({key: value for key, value in settings.items() if key not in ("name", "output")})


class Done:
    def poll(self) -> int:
        return 0

    def stop(self) -> None: ...


def copy_runs_of_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each study one run is trained; the others are copies of it under their own settings."""
    trained: dict[Path, Path] = {}

    def start(_: LocalLauncher, job: Job, _slot: int) -> Done:
        config = load_config(TrainConfig, [str(job.settings)])
        folder, study = Path(config.output) / config.name, job.settings.parent.parent
        if study not in trained:
            trained[study] = Path(train(config, Display(quiet=True)).run)
        else:
            shutil.copytree(trained[study], folder)
            (folder / "config.yaml").write_text(dump_yaml(with_chosen(config, read_chosen(folder))))
        return Done()

    monkeypatch.setattr(LocalLauncher, "start", start)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.001)


class Reader:
    """Does what a page says, in the working directory, in the order of the page."""

    def __init__(self, page: str, shared: Shared, run: Callable[..., Any]) -> None:
        self.page, self.shared, self.run = page, shared, run
        self.names: dict[str, Any] = {"__name__": "__main__"}
        if page in GLOBALS:
            self.names |= vars(import_module(GLOBALS[page]))
        self.said = ""

    def lay_out(self) -> None:
        """What the examples of all pages take for granted: rows, settings, a model, recipes and files of other libraries."""
        for name, first in (("rows.jsonl", 1), ("test.jsonl", 101)):
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows(first)))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(1)), "rows.parquet")
        Path("gsm8k/main").mkdir(parents=True)
        for split in ("train", "test"):
            table = pyarrow.Table.from_pylist(of_the_hub("openai/gsm8k", "main", split=split))
            pyarrow.parquet.write_table(table, f"gsm8k/main/{split}-00000-of-00001.parquet")
        shutil.copytree(self.shared.model, "my-model")
        for folder in ("recipes", "studies", "benchmarks"):
            Path(folder).symlink_to(ROOT / folder)
        if self.page in WITH_SETTINGS:
            Path("mine.yaml").write_text("task: {path: rows.jsonl}\n")
        Path("recipe.yaml").write_text(self.shared.recipe())
        Path("tiny.yaml").write_text(TINY_STUDY.format(model=self.shared.model))
        Path("train_grpo.py").write_text(FILES["quick-start.py"])
        Path("run_qwen.sh").write_text(SCRIPT)

    def lay_runs(self) -> None:
        """The runs that a reader of the page has; one that was interrupted is so again before each command."""
        for name, state in RUNS.get(self.page, {}).items():
            folder = Path("runs") / name
            if state == "interrupted":
                shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                shutil.copytree(getattr(self.shared, state), folder)

    def read(self, block: Block) -> None:
        """Run a block; raises AssertionError, naming its place, for what fails or is of no kind that is run."""
        text = block.text
        for old, new in REPLACED.get(self.page, {}).items():
            text = text.replace(old, new)
        title = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", text)
        if title:
            Path(title[1]).parent.mkdir(exist_ok=True)
            Path(title[1]).write_text(text)
        if block.language == "python":
            exec(compile(text, block.place, "exec", dont_inherit=True), {} if title else self.names)
        elif block.language == "yaml":
            assert title, f"{block.place}: begin the settings with their file, as # mine.yaml"
        elif block.language == "text":
            ours = re.search(r"^(slimrl|python|pip) .*", text, re.MULTILINE)
            assert not ours, f"{block.place}: a command in a block of output, which nobody runs: {ours and ours[0]}"
            for line in PRINTED.get(self.page, ()):
                assert line not in text or line in self.said, f"{block.place}: {line}"
        else:
            assert block.language in ("", "bash"), f"{block.place}: nobody runs a block of {block.language}"
            for words in commands(Block(block.page, block.line, block.language, text)):
                self.command(words, block.place)

    def command(self, words: list[str], place: str) -> None:
        while re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        self.lay_runs()
        if elsewhere(words):
            check_elsewhere(words, place)
        elif words[0] == "python" and words[1].endswith(".py"):
            runpy.run_path(words[1], run_name="__main__")
        else:
            assert words[0] == "slimrl", f"{place}: nobody runs {words[0]!r}; see ELSEWHERE in tests/examples.py"
            accept(words, place)
            result = self.run(*self.smaller(words[1], words[2:]))
            assert result.code == 0, (place, shlex.join(words), result.err)
            self.said += result.err + result.out

    def smaller(self, verb: str, arguments: list[str]) -> list[str]:
        """A command with what makes it small behind it."""
        more: list[str] = []
        resumed = "--resume" in arguments and "interrupted" in RUNS.get(self.page, {}).values()
        if verb in ("train", "sft", "doctor") and not resumed:
            kind = SftRunConfig if verb == "sft" else TrainConfig
            settings = [named(word, "recipes") for word in arguments if not word.startswith("--")]
            model = load_settings(kind, settings).model.path
            more = [f"model.path={self.shared.model}"] if model != "builtin" and not Path(model).exists() else []
            more += [setting for setting in SMALL if not setting.startswith(UNREAD.get(verb, ()))]
        elif verb == "eval":
            more = ["--limit", "3", "rollout.max_new_tokens=12", "evaluation.samples=1"]
        elif verb == "study":
            more = ["tiny.yaml", *([] if "report" in arguments or "--slots" in arguments else ["--slots", "2"])]
        elif verb == "export" and Path(arguments[1]).is_dir():
            shutil.rmtree(arguments[1])  # from an earlier example of the page
        return [verb, *arguments, *more]
