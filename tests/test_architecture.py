"""The house keeps its shape: dependencies point one way, and nothing draws from a global random generator."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT

PACKAGE = ROOT / "slimrl"
MODULES = sorted(PACKAGE.rglob("*.py"))
LOW = {"errors", "randomness", "records", "terms", "text", "thinking"}
"""What every room may know."""
NEIGHBOURS: dict[str, set[str]] = {
    "errors": set(),
    "randomness": set(),
    "records": set(),
    "terms": set(),
    "text": set(),
    "thinking": set(),
    "statistics": set(),
    "measures": {"statistics"},
    "results": {"measures", "statistics"},
    "machine": set(),
    "config": set(),
    "algorithm": set(),
    "kernels": set(),
    "sandbox": {"config", "machine"},
    "tasks": {"config", "machine", "measures", "sandbox", "statistics"},
    "model": {"algorithm", "config", "kernels", "machine"},
    "rewards": {"config", "machine", "tasks"},
    "rollout": {"kernels", "machine", "model"},
    "environments": {"config", "machine", "sandbox"},
    "learner": {"algorithm", "config", "kernels", "machine", "model"},
    "runs": {"algorithm", "config", "machine", "measures", "model", "results", "statistics"},
    "preflight": {
        "algorithm", "config", "environments", "kernels", "learner", "machine", "model", "results", "rewards", "rollout", "tasks",
    },
    "parallel": {"algorithm", "config", "environments", "learner", "machine", "model", "preflight", "rollout"},
    "evaluate": {"measures", "preflight", "results", "rewards", "tasks"},
    "translate": {"config"},
    "session": {
        "algorithm", "config", "evaluate", "learner", "machine", "measures", "model", "parallel", "preflight", "results", "rewards",
        "runs", "tasks",
    },
    "trackers": {"config", "machine", "results", "runs"},
    "train": {"algorithm", "config", "learner", "machine", "parallel", "preflight", "results", "runs", "session"},
    "export": {"config", "model", "runs", "tasks"},
    "sft": {"config", "learner", "machine", "model", "parallel", "preflight", "results", "session"},
    "study": {"config", "machine", "preflight", "runs", "statistics"},
    "report": {"config", "results", "runs", "statistics", "study"},
    "display": {"algorithm", "config", "machine", "measures", "preflight", "results", "study", "tasks"},
    "api": {
        "algorithm", "config", "display", "evaluate", "machine", "measures", "parallel", "preflight", "report", "results", "rewards",
        "rollout", "runs", "session", "sft", "study", "tasks", "trackers", "train",
    },
    "cli": {
        "api", "config", "display", "export", "machine", "parallel", "preflight", "report", "results", "rollout", "runs",
        "session", "sft",
        "study", "tasks", "trackers", "train", "translate",
    },
}  # fmt: skip
"""The rooms that each room may import beside LOW; nothing imports what is not named here."""
ROOT_MODULES = 14


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    """Dotted names of the package's modules that a file imports: at its top, in functions, and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if module_file(name)}
            found |= modules | ({str(node.module)} if names - modules else set())
    return {name for name in found if name.startswith("slimrl.") and name != "slimrl.__version__"}


def module_file(name: str) -> Path | None:
    """The file of a dotted name; None for what is no module, such as a class."""
    path = ROOT.joinpath(*name.split("."))
    if path.with_suffix(".py").exists():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").exists() else None


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_its_neighbours_only(path: Path) -> None:
    own = room(path)
    if own in ("__init__", "__main__"):
        return
    used = {name.split(".")[1] for name in imports(path)}
    foreign = used - NEIGHBOURS[own] - LOW - {own}
    assert not foreign, f"{own} may not import {', '.join(sorted(foreign))}"


def test_low_rooms_import_none_above_them() -> None:
    order = list(NEIGHBOURS)
    for own, neighbours in NEIGHBOURS.items():
        assert all(order.index(other) < order.index(own) for other in neighbours), own


def test_every_neighbour_is_needed() -> None:
    used = {
        own: {name.split(".")[1] for path in MODULES if room(path) == own for name in imports(path)}
        for own in NEIGHBOURS
    }
    assert {own: sorted(allowed - used[own]) for own, allowed in NEIGHBOURS.items() if allowed - used[own]} == {}


def test_no_circle_among_files() -> None:
    graph = {path: {file for name in imports(path) if (file := module_file(name)) and file != path} for path in MODULES}
    state: dict[Path, str] = {}

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert state.get(path) != "open", " -> ".join(str(p.relative_to(PACKAGE)) for p in (*trail, path))
        if path not in state:
            state[path] = "open"
            for used in sorted(graph[path]):
                visit(used, (*trail, path))
            state[path] = "closed"

    for path in MODULES:
        visit(path, ())


def test_the_root_is_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= ROOT_MODULES


def functions(path: Path) -> list[tuple[str, ast.FunctionDef]]:
    """Functions and methods of a file, by `Class.name` where they have a class."""
    found: list[tuple[str, ast.FunctionDef]] = []

    def visit(node: ast.AST, owner: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = f"{owner}{getattr(child, 'name', '')}"
            if isinstance(child, ast.FunctionDef):
                found.append((name, child))
            visit(child, f"{name}." if isinstance(child, ast.ClassDef | ast.FunctionDef) else owner)

    visit(ast.parse(path.read_text()), "")
    return found


def parameters(function: ast.FunctionDef) -> int:
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


WIDE = {
    "api/runs.py": {"train", "sft"},
    "api/studies.py": {"study"},
    "api/verbs.py": {"evaluate", "compare", "_evaluation"},
    "kernels/decode.py": {"decode_attention"},
    "model/attention.py": {"attend"},
}
"""Functions whose parameters somebody else decides: a kernel's operator, transformers' attention interface, and, as in the verbs of
the command line, what a user may say."""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_hold_one_idea(path: Path) -> None:
    assert path.read_text().count("\n") <= 400
    free = WIDE.get(str(path.relative_to(PACKAGE)), set())
    for name, function in functions(path):
        length = int(function.end_lineno or 0) - function.lineno + 1
        assert length <= 60, f"{name} has {length} lines"
        verb = room(path) == "cli" and any("command" in ast.unparse(d) for d in function.decorator_list)
        assert parameters(function) <= 6 or name in free or verb, f"{name} has {parameters(function)} parameters"


def test_tasks_rewards_and_settings_need_no_torch() -> None:
    code = "import sys, slimrl.config.files, slimrl.tasks, slimrl.rewards.gold; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save", "numpy.load", "np.load", "yaml.unsafe_load",
    "yaml.full_load", "yaml.load_all", "joblib.load", "marshal.loads", "importlib.import_module",
    "runpy.run_path", "runpy.run_module",
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
        if name in UNSAFE_CALLS or name.startswith(("os.exec", "os.spawn", "pickle.")) or name.endswith(".exec_module"):
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
    """A user's rewards are imported by rewards/custom.py, and the child of a sandbox runs its program once it is shut in; nothing
    else does. Inner pipes are multiprocessing's own.
    """
    where = str(path.relative_to(PACKAGE))
    allowed = {
        "rewards/custom.py": ["importlib.import_module", "spec.loader.exec_module"],
        "sandbox/inside.py": ["SourceFileLoader('__main__', path).exec_module"],
    }
    assert unsafe(ast.parse(path.read_text())) == allowed.get(where, [])


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


RIDDLE = re.compile(r"(What|Whether|Where|Who|How|Which)\b")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_open_with_their_subject(path: Path) -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    openings = [ast.get_docstring(n) or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, documented)]
    assert [text.partition("\n")[0] for text in openings if RIDDLE.match(text)] == []


FRAMES = 6
"""Of the package, from a verb of the command line to the loss."""


def test_few_frames_from_the_verb_to_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the stack of a run whose surrogate is called."""
    from slimrl.cli import cli
    from slimrl.learner import learner

    class Reached(BaseException):
        """Ends the run; no handler of errors takes it."""

    stack: list[str] = []

    def note(*_: object) -> None:
        frames = traceback.extract_stack()
        stack.extend(frame.name for frame in frames if Path(frame.filename).is_relative_to(PACKAGE))
        raise Reached

    monkeypatch.setattr(learner, "surrogate", note)
    small = ["rollout.problems=2", "rollout.group_size=2", "evaluation.problems=1", "evaluation.harder_problems=0"]
    with pytest.raises(Reached):
        CliRunner(catch_exceptions=False).invoke(cli, ["train", *small, f"output={tmp_path}", "name=a", "--quiet"])
    assert stack[0] == "train"
    assert stack[-1] == "_loss"
    assert len(stack) <= FRAMES, stack
