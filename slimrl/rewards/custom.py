"""Reward functions of the user's own, loaded from a file or from an installed package."""

import ast
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from slimrl.config.places import is_module
from slimrl.config.rewards import PROGRAM, RewardsConfig, is_programs
from slimrl.errors import SettingsError, raised

STANDARD = sysconfig.get_paths()["stdlib"]
_offered: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar("offered", default={})  # noqa: B039  (never changed)


@contextmanager
def offering(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within the block, and in this thread, `__main__:NAME` in rewards.custom and environment.name are these functions and
    classes of a Python program.
    """
    token = _offered.set({**_offered.get(), **functions})
    try:
        yield
    finally:
        _offered.reset(token)


def is_offered(spec: str) -> bool:
    """True if a function of the program, `__main__:NAME`, was handed over."""
    return spec in _offered.get()


def importable_name(function: Callable[..., Any]) -> str:
    """`file.py:function` or `package.module:function` by which a worker finds the same function; empty where none does.

    A module of its own file goes by that file, so that any process finds it, and one of a package or an installation by its
    name. What stands in the main script is not looked for, since running a script again would do all of its work again.
    A function may still differ from what its file holds: see `is_as_in_its_file`.
    """
    name, place = getattr(function, "__qualname__", ""), getattr(function, "__module__", None) or ""
    module = sys.modules.get(place)
    if module is None or place == PROGRAM or not name.isidentifier() or getattr(module, name, None) is not function:
        return ""
    found = _spec(place)
    if found is None or (found.has_location and found.origin != getattr(module, "__file__", None)):
        return ""
    path = Path(found.origin) if found.has_location and found.origin else None
    installed = path is None or {"site-packages", "dist-packages"} & {*path.parts} or path.is_relative_to(STANDARD)
    return f"{place}:{name}" if installed or "." in place or path is None or path.suffix != ".py" else f"{path}:{name}"


def is_as_in_its_file(function: Callable[..., Any]) -> bool:
    """False for a function with an `importable_name` in whose place a worker would load other code.

    It was replaced or wrapped in memory, or its file was edited since it was imported. Nothing is run to find that out. A
    function without Python code is taken for what its file holds. Defaults, and variables of the module, are not compared.
    """
    name, place = function.__qualname__, function.__module__
    found = _spec(place)
    read_code = getattr(found and found.loader, "get_code", None)
    layers = [*_layers(function)]
    if read_code is None or not isinstance(layers[-1], FunctionType):
        return True
    try:
        module = read_code(place)
        source = found.loader.get_source(place)  # type: ignore[union-attr]  # a loader of code has its source too
    except (OSError, SyntaxError, ImportError, ValueError):
        return False  # no worker could load it
    if module is None or source is None:
        return True
    own = layers[-1].__code__
    known = (code for code in _codes(module) if code.co_name == own.co_name)
    return any(_instructions(code) == _instructions(own) for code in known) and _wraps_itself(source, name, layers[:-1])


def _layers(function: Any) -> Iterator[Any]:
    """A function and those that it wraps, by functools.wraps, from the outermost on."""
    seen: list[Any] = []
    while not any(function is other for other in seen):
        yield function
        seen.append(function)
        function = getattr(function, "__wrapped__", function)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all those in it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _wraps_itself(source: str, name: str, wrappers: Sequence[Any]) -> bool:
    """True if a module can have put these wrappers around its function: it has as many decorators for it, or assignments to its
    name, and none of the wrappers stands in the main script or in no file.
    """
    made = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            made += len(node.decorator_list)
        elif isinstance(node, ast.Assign):
            made += sum(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    script = getattr(sys.modules.get(PROGRAM), "__file__", None)
    files = [wrapper.__code__.co_filename for wrapper in wrappers if isinstance(wrapper, FunctionType)]
    return len(wrappers) <= made and not any(file == script or file.startswith("<") for file in files)


def rewards_digest(config: RewardsConfig) -> str:
    """SHA-256 of the files of the user's rewards, the code of functions that a program hands over, and the prompts of judges; a
    file that is not there is refused where it is loaded.

    Of a package these are the files beside the module that is named, in whose `__init__.py` functions seldom stand themselves.
    """
    files = _files_digest_of(config)
    offered = _offered.get()
    codes = [digest_of_code(offered[spec]) for spec in config.of_the_program if spec in offered]
    return hashlib.sha256(" ".join([files, *codes]).encode()).hexdigest() if codes else files


def digest_of_code(function: Callable[..., Any]) -> str:
    """SHA-256 of what a function of Python's does, wherever it stands; of a class what its methods do, and of another callable
    what its class's call does.
    """
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    if isinstance(function, type):
        members = sorted(vars(function).items())
        codes = [(name, digest_of_code(value)) for name, value in members if callable(value)]
        return hashlib.sha256(repr(codes).encode()).hexdigest()
    code = getattr(function, "__code__", None) or getattr(getattr(type(function), "__call__", None), "__code__", None)  # noqa: B004
    return hashlib.sha256(repr(_instructions(code)).encode()).hexdigest()


def _instructions(code: object) -> object:
    """The parts of a code object that no line number, file or hash seed changes."""
    if isinstance(code, CodeType):
        return (code.co_code, code.co_names, code.co_varnames, [_instructions(const) for const in code.co_consts])
    return sorted(map(repr, code)) if isinstance(code, frozenset) else repr(code)


def _files_digest_of(config: RewardsConfig) -> str:
    paths = [path for spec in config.custom if not is_programs(spec) for path in source_files(spec)]
    paths += [Path(judge.prompt_file).expanduser() for judge in config.judge.values() if judge.prompt_file]
    return files_digest(path for path in paths if path.is_file())


def source_files(spec: str) -> list[Path]:
    """The Python files of what `file.py:function` or `package.module:function` names."""
    place = spec.rpartition(":")[0]
    return _sources(place) if is_module(place) else [Path(place).expanduser()]


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of files' names and bytes, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def load_function(
    spec: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    files: dict[Path, object] | None = None,
    setting: str = "rewards.custom",
) -> Callable[..., Any]:
    """The function, or class, named by `file.py:function` (relative to the working directory) or `package.module:function`, which
    is installed or lies in the working directory. For environment.name messages speak of a class.

    With `arguments` it is called with them, once, and makes the function. `files` has the modules of files that were run
    before, which are not run again, so that the functions of one file share what it holds. Raises SettingsError where one of
    these is not there, cannot be run or cannot be called.
    """
    place, colon, name = spec.rpartition(":")
    setting = f"{setting}: {spec!r}"
    what, example = _kind(setting)
    if not colon or not place or not name.isidentifier():
        raise SettingsError(
            f"{setting} does not have the form file.py:{example} or package.module:{example}; write it so"
        )
    if is_programs(spec):
        return _of_the_program(spec, setting)
    if is_module(place):
        module = _package(place, setting)
    else:
        path = Path(place).expanduser().resolve()
        known = {} if files is None else files
        module = known[path] if path in known else known.setdefault(path, _file(path, setting))
    try:
        function = getattr(module, name, None)
    except Exception as error:  # of a module that loads its parts when they are asked for
        raise _failure(setting, f"loading the {what}", error) from None
    if function is None:
        raise SettingsError(f"{setting}: {place} defines no {name}; check the name")
    if not callable(function):
        raise SettingsError(f"{setting}: {name} is not a {what}; name one")
    return function if arguments is None else _made(function, name, arguments, setting)


def _kind(setting: str) -> tuple[str, str]:
    """The word for the value of the setting that a message begins with, and the name of an example of it."""
    return ("class", "Class") if setting.startswith("environment.name") else ("function", "function")


def _of_the_program(spec: str, setting: str) -> Callable[..., Any]:
    function = _offered.get().get(spec)
    if function is None:
        what, _ = _kind(setting)
        way = "environment=Class" if what == "class" else "rewards=[...]"
        raise SettingsError(
            f"{setting} is a {what} of the Python program that began the run, which alone can hand it over: resume it there "
            f"with slimrl.train(resume=RUN, {way}), or write the {what} into a file and name it as file.py:{what}"
        )
    return function


def _made(make: Callable[..., Any], name: str, arguments: Mapping[str, Any], setting: str) -> Callable[..., Any]:
    try:
        function = make(**arguments)
    except (Exception, SystemExit) as error:
        raise _failure(setting, f"calling {name} with its arguments", error) from None
    if not callable(function):
        raise SettingsError(
            f"{setting}: {name} makes no function from its arguments but {type(function).__name__}; remove arguments where "
            "it is the reward itself"
        )
    return function  # type: ignore[no-any-return]


def _package(name: str, setting: str) -> object:
    if _spec(name) is None:
        raise SettingsError(
            f"{setting}: there is no module {name}, installed or in the working directory; install it, or name a file that ends "
            f"in .py, as {name.replace('.', '/')}.py:{_kind(setting)[1]}"
        )
    if _found(name.partition(".")[0], None) is None:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _failure(setting, "importing the module", error) from None


def _file(path: Path, setting: str) -> object:
    if not path.is_file():
        raise SettingsError(f"{setting}: there is no file {path}; check the path")
    name = f"slimrl_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"{setting}: {path} is not a Python file; name one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failure(setting, "running the file", error) from None
    return module


def _failure(setting: str, what: str, error: BaseException) -> SettingsError:
    return SettingsError(f"{setting}: {what} {raised(error)}; correct it")


def _sources(name: str) -> list[Path]:
    """The Python files of a module: its own, or all in the folder of a package; found without running any of it."""
    spec = _spec(name)
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [path for folder in spec.submodule_search_locations for path in sorted(Path(folder).glob("*.py"))]
    return [Path(spec.origin)] if spec.has_location and spec.origin else []


def _spec(name: str) -> ModuleSpec | None:
    """The place of a module, found level by level, since `importlib.util.find_spec` would run the packages around it. One that
    is nowhere else may lie in the working directory, where a command that is installed does not look by itself.
    """
    found: ModuleSpec | None = None
    for level in accumulate(name.split("."), "{}.{}".format):
        folders = None if found is None else found.submodule_search_locations
        if found is not None and folders is None:
            return None
        top = found is None
        found = _found(level, folders)
        if found is None and top:
            found = PathFinder.find_spec(level, [str(Path.cwd())])
        if found is None:
            return None
        if found.origin is None and found.submodule_search_locations is not None:
            # a folder without __init__.py, whose own list of places asks for the packages around it once they are imported
            around = [*sys.path, str(Path.cwd())] if folders is None else folders
            places = (Path(folder) / level.rpartition(".")[2] for folder in around)
            found.submodule_search_locations = [str(place) for place in places if place.is_dir()]
    return found


def _found(name: str, folders: Sequence[str] | None) -> ModuleSpec | None:
    """The place of a module in these folders, or in those where Python looks."""
    specs = (finder.find_spec(name, folders, None) for finder in sys.meta_path)
    try:
        return next((spec for spec in specs if spec is not None), None)
    except KeyError:  # a folder without __init__.py in a package that is not imported
        return ModuleSpec(name, None, is_package=True)
