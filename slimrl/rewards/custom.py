"""Reward functions of the user's own, loaded from a file."""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from slimrl.config.rewards import RewardsConfig
from slimrl.errors import SettingsError


def rewards_digest(config: RewardsConfig) -> str:
    """SHA-256 of the files of the user's rewards; one that is not there is refused where it is loaded."""
    paths = (Path(spec.rpartition(":")[0]).expanduser() for spec in config.custom)
    return files_digest(path for path in paths if path.is_file())


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of files' names and bytes, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def function_file(spec: str) -> Path:
    """The file of `file.py:function`."""
    return Path(spec.rpartition(":")[0]).expanduser()


def load_function(spec: str) -> Callable[..., Any]:
    """The function named by `file.py:function`, the file relative to the working directory.

    Raises SettingsError where the file or the function is not there, cannot be run or cannot be called.
    """
    file, colon, name = spec.rpartition(":")
    setting = f"rewards.custom: {spec!r}"
    if not colon or not file or not name.isidentifier():
        raise SettingsError(f"{setting} does not have the form file.py:function; write it so")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise SettingsError(f"{setting}: there is no file {path}; check the path")
    function = getattr(_module(path, setting), name, None)
    if function is None:
        raise SettingsError(f"{setting}: {file} defines no {name}; check the name")
    if not callable(function):
        raise SettingsError(f"{setting}: {name} is not a function; name one")
    if inspect.iscoroutinefunction(function):
        raise SettingsError(f"{setting}: {name} is asynchronous; wrap it in a plain function")
    return function  # type: ignore[no-any-return]


def _module(path: Path, setting: str) -> object:
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
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise SettingsError(
            f"{setting}: running the file raised {type(error).__name__}: {reason}; correct it"
        ) from None
    return module
