"""What pages, docstrings and messages name exists: files, settings, and functions of modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from slimrl.cli import cli
from slimrl.config.schema import SftRunConfig, TrainConfig
from tests.conftest import ROOT

PACKAGE = ROOT / "slimrl"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which also names what has gone
SETTINGS_FILES = [*sorted((ROOT / "recipes").rglob("*.yaml")), *sorted((ROOT / "studies").rglob("*.yaml"))]
FOLDERS = (ROOT, PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "benchmarks" / "reliability")
"""Names of files are relative to one of these."""
EXAMPLES = {
    "brevity.py",
    "rewards.py",
    "rows.py",
    "mine/rows.py",
    "mine/rewards.py",
    "file.py",
    "logs.py",
    "services.py",
    "signature.py",
    "calculator.py",
    "doubling.py",
    "shop.py",
    "program.py",
    "train_grpo.py",
}
"""Files of an imagined user."""
FILE = re.compile(r"(?<![\w./*])(?:[\w-]+/)*[\w-]+\.py\b(?!:)")
DOTTED = re.compile(r"(?<![\w./${-])(?:slimrl\.)?([a-z_]\w*(?:\.[A-Za-z_]\w*)+)(?![\w/(])")
"""Not a call, nor what a template fills in: some strings are code."""
EDITS = re.compile(r"^```diff$.*?^```$", re.MULTILINE | re.DOTALL)
"""Blocks of code that tests/test_extending.py runs."""
FOREIGN = {
    "memory.stat", "svg.fonttype", "svg.hashsalt", "text.color", "text.parse_math", "critic.optim.lr", "critic.model.path",
    "critic.ppo_micro_batch_size_per_gpu", "critic.model.use_remove_padding", "critic.model.enable_gradient_checkpointing", "trl.rewards",
    "verifiers.types",
}  # fmt: skip
"""Names of others, of Linux, matplotlib, verl, TRL and verifiers, that begin like ours."""
SUFFIXES = {
    "db",
    "py",
    "md",
    "yaml",
    "yml",
    "json",
    "jsonl",
    "txt",
    "sh",
    "png",
    "html",
    "csv",
    "parquet",
    "cpp",
    "safetensors",
    "bin",
    "j2",
    "js",
    "jinja2",
    "lock",
}
COMMAND = re.compile(r"(?:^|`)(slimrl(?: [^`\n]*)?)", re.MULTILINE)
CODE_WORD = re.compile(r"`([a-z]+(?:_[a-z0-9]+)+)`")


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting and section of settings by its dotted name."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")


def names(body: list[ast.stmt]) -> Iterator[str]:
    """What a module or a class defines, with the members of its classes as `Class.member`, and what it imports."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
                yield from (f"{name}.{member}" for member in names(node.body))
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)


KEYS = {*keys(TrainConfig), *keys(SftRunConfig)}
FREE = ("rewards.custom.", "rewards.judge.", "sft.mixture.")
"""Sections whose keys are the user's."""
SECTIONS = {key for key in KEYS if any(other.startswith(f"{key}.") for other in KEYS)}


def modules() -> dict[str, set[str]]:
    """What each module defines, by its dotted name within the package and by its last part."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        defined = {*names(ast.parse(path.read_text(encoding="utf-8")).body)}
        defined |= {entry.stem for entry in path.parent.iterdir()} if path.name == "__init__.py" else set()
        for name in {".".join(parts), parts[-1] if parts else ""} - {""}:
            found.setdefault(name, set()).update(defined)
    return found


MODULES = modules()
WORDS = {
    *re.findall(
        r"\w+",
        "\n".join(
            p.read_text(encoding="utf-8")
            for p in (*SOURCES, *(ROOT / "studies").rglob("*.yaml"), *(ROOT / "benchmarks").rglob("*.py"))
        ),
    )
}


def exists(dotted: str) -> bool:
    """Whether a name that begins like a section of settings or a module of ours leads somewhere; others are not ours."""
    first = dotted.partition(".")[0]
    if (first not in SECTIONS and first not in MODULES) or dotted.rpartition(".")[2] in SUFFIXES:
        return True
    if dotted in KEYS or dotted.startswith(FREE):
        return True
    for name in (name for name in MODULES if dotted.startswith(f"{name}.")):
        if dotted.removeprefix(f"{name}.") in MODULES[name]:
            return True
    return dotted in MODULES


def missing_files(text: str) -> set[str]:
    found = {match[0] for match in FILE.finditer(text)} - EXAMPLES
    return {name for name in found if not any((folder / name).exists() for folder in FOLDERS)}


def missing_names(text: str) -> set[str]:
    return {match[1] for match in DOTTED.finditer(text) if not exists(match[1])} - FOREIGN


def strings(path: Path) -> str:
    """Every string of a source file: docstrings and what a user reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return "\n".join(n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def missing_verbs(text: str) -> set[str]:
    """Verbs and options of commands, each on one line of a block or in backticks, that the command line does not have."""
    found = set()
    for line in COMMAND.findall(text):
        words = line.partition("#")[0].split()
        command, path = cli, words[:1]
        while isinstance(command, click.Group) and len(words) > 1 and words[1][0] not in "-[":
            path, words = [*path, words[1]], words[1:]
            if words[0] not in command.commands:
                found.add(" ".join(path))
                break
            command = command.commands[words[0]]
        else:
            known = {"--help", "-h", "--version", *(option for p in command.params for option in p.opts)}
            found |= {
                f"{' '.join(path)} {word}" for word in words if word[0] == "-" and word.partition("=")[0] not in known
            }
    return found


def unknown_words(text: str) -> set[str]:
    return {*CODE_WORD.findall(text)} - WORDS


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [*PAGES, *SETTINGS_FILES], ids=relative)
def test_what_a_page_names_exists(page: Path) -> None:
    text = EDITS.sub("", page.read_text(encoding="utf-8"))
    assert missing_names(text) == set()
    assert missing_files(text) == set()
    assert missing_verbs(text) == set()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_what_docstrings_and_messages_name_exists(path: Path) -> None:
    text = strings(path)
    assert missing_names(text) == set()
    assert missing_files(text) == set()
    assert missing_verbs(text) == set()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_words_of_code_on_a_page_are_words_of_the_code(page: Path) -> None:
    """A function that was renamed is on no page under its old name."""
    assert unknown_words(page.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "text",
    [
        "as `train.update_policy` does", "set algorithm.clip_hihg=0.3", "lower rollout.slotz.", "see slimrl.evaluate.agresti", "raise max_steps: task.max_steps",
        "`evaluate.SplitEvaluation.nothing`",
    ],
)  # fmt: skip
def test_a_name_of_nothing_is_found(text: str) -> None:
    assert missing_names(text)
    assert unknown_words("`policy_gradient_of_nothing`")


@pytest.mark.parametrize(
    "text", ["`slimrl watch runs/a`", "slimrl study stop x.yaml", "slimrl train --trace", "`slimrl --verbose`"]
)
def test_a_command_of_nothing_is_found(text: str) -> None:
    assert missing_verbs(text)
    assert missing_verbs("slimrl study run x.yaml --seeds 3   # as `slimrl train --resume runs/a`") == set()


def test_names_of_something_are_not() -> None:
    text = "update.update_policy, algorithm.groups.collect_groups, `scoring.score`, critic.gae_lambda, rewards.custom.f.py, train.py"
    assert missing_names(text) == set()
    assert (
        missing_files("algorithm/loss.py, slimrl/train.py, kills.py, tests/session/test_faults.py, rewards.py:short")
        == set()
    )
    assert missing_files("slimrl/trainer.py, algorithm/losses.py") == {"slimrl/trainer.py", "algorithm/losses.py"}
