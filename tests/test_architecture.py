"""The house keeps its shape: dependencies point one way, and nothing draws from a global random generator."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "slimrl"
MODULES = sorted(PACKAGE.rglob("*.py"))
ALLOWED = {
    "errors": set(),
    "records": set(),
    "randomness": set(),
    "stopping": set(),
    "config": {"stopping"},
    "places": set(),
    "foreign_names": set(),
    "mistakes": {"config", "foreign_names"},
    "settings": {"config", "errors", "mistakes", "places"},
    "switches": {"config"},
    "defaults": {"config"},
    "processes": set(),
    "threads": set(),
    "machine": set(),
    "stopwatch": {"machine"},
    "memory": {"algorithm", "config", "machine", "model", "rollout"},
    "model": {"config", "errors", "machine", "places", "records"},
    "algorithm": {"records"},
    "tasks": {"config", "errors", "processes", "records", "randomness"},
    "rewards": {"config", "errors", "processes", "records", "tasks"},
    "rollout": {"errors", "machine", "model", "records", "randomness", "stopping", "stopwatch"},
    "study": {"cli", "config", "display", "errors", "evaluate", "places", "processes", "settings", "switches"},
    "runs": {"algorithm", "config", "errors", "model", "records", "settings", "stopping"},
}


def stage(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    """Modules imported at run time; what stands under `if TYPE_CHECKING:` is not."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path: Path) -> None:
    own = stage(path)
    if own not in ALLOWED:
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("slimrl.")}
    assert used <= ALLOWED[own] | {own}, f"{own} may not import {used - ALLOWED[own] - {own}}"


def test_tasks_rewards_and_settings_need_no_torch() -> None:
    code = "import sys, slimrl.settings, slimrl.tasks, slimrl.rewards; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save", "numpy.load", "np.load", "yaml.unsafe_load",
    "yaml.full_load", "yaml.load_all", "joblib.load", "marshal.loads", "importlib.import_module",
}  # fmt: skip
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "telnetlib", "ftplib"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "SettingsLoader"}


def unsafe(tree: ast.AST) -> list[str]:
    """Calls and imports that could run what a file or a text says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE_MODULES:
            found.append(str(node.module))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in UNSAFE_CALLS or name.startswith(("os.exec", "os.spawn", "pickle.")):
            found.append(name)
        if "shell" in given and given["shell"] != "False":
            found.append(f"{name}(shell=...)")
        if given.get("weights_only") == "False" or given.get("trust_remote_code") == "True":
            found.append(f"{name}(weights_only or trust_remote_code)")
        if name == "yaml.load" and given.get("Loader", "").rpartition(".")[2] not in SAFE_LOADERS:
            found.append("yaml.load without a safe loader")
        if name.endswith("Environment") and given.get("autoescape") != "True":
            found.append("a template that does not escape")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_runs_what_a_file_or_a_text_says(path: Path) -> None:
    """A user's rewards are imported by rewards/custom.py, and nothing else is; inner pipes are multiprocessing's own."""
    assert unsafe(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import dill as d", "torch.load(f)", "eval(text)", "exec(text)", "os.system(c)", "os.execv(a, b)",
        "subprocess.run(c, shell=True)", "yaml.load(t)", "yaml.load(t, Loader=yaml.Loader)", "m.from_pretrained(p, trust_remote_code=True)",
        "torch.load(f, weights_only=False)", "Environment(loader=x)", "np.load(f)",
    ],
)  # fmt: skip
def test_what_is_unsafe_is_found(line: str) -> None:
    assert unsafe(ast.parse(line))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_unsafe_and_no_global_randomness(path: Path) -> None:
    text = path.read_text()
    for banned in ("torch.manual_seed", "np.random.seed", "random.seed(", "torch.rand(", "torch.multinomial",
                   "import random", "import pickle", "torch.load(", "eval(", "os.system"):  # fmt: skip
        code = (
            "\n".join(line.split("#")[0] for line in text.splitlines())
            .replace(".eval()", "")
            .replace("literal_eval(", "")
        )
        assert banned not in code, banned
