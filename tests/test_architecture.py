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
    "settings": {"config", "errors"},
    "switches": {"config"},
    "processes": set(),
    "machine": set(),
    "stopwatch": {"machine"},
    "memory": {"algorithm", "config", "machine", "model", "rollout"},
    "model": {"config", "errors", "machine", "records"},
    "algorithm": {"records"},
    "tasks": {"config", "errors", "processes", "records", "randomness"},
    "rewards": {"config", "errors", "processes", "records", "tasks"},
    "rollout": {"errors", "machine", "model", "records", "randomness", "stopping", "stopwatch"},
    "study": {"cli", "config", "display", "errors", "evaluate", "processes", "settings", "switches"},
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
