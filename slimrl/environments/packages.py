"""Packages of `verifiers`: an environment with its data, loaded as a task and refused by name where it needs what is not here."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slimrl.config.environment import EnvironmentConfig, package_of
from slimrl.environments import Load, Make
from slimrl.environments.verifiers import Row, VerifiersEpisode, bridge, plain, reported
from slimrl.errors import DataError, SettingsError, raised
from slimrl.records import Problem

PASSING = 0.5
"""The reward from which on `verifiers` counts an episode as passed, where an environment says nothing else."""
OWN = ("prompt", "answer", "info", "task", "example_id")
"""Columns of every data set of `verifiers`."""
ELSEWHERE = {
    "SandboxEnv": "runs code in a sandbox of Prime Intellect",
    "SandboxMixin": "runs code in a sandbox of Prime Intellect",
    "CliAgentEnv": "runs a program that asks for the policy over HTTP",
    "BrowserEnv": "runs a browser elsewhere",
    "OpenEnvEnv": "runs in a container",
    "MCPEnv": "asks MCP servers",
}
"""Classes whose episodes are not played in this process alone, and why."""


@dataclass(frozen=True)
class Package:
    """An environment of `verifiers`, ready to be played."""

    name: str
    """Of the package, as the settings have it."""
    environment: Any
    passing: float
    """The reward from which on an episode counts as right."""
    train: Sequence[Row]
    test: Sequence[Row] | None
    """The rows of its evaluation data; None where it has none of its own."""

    @property
    def make(self) -> Make:
        """The function that makes its episodes."""
        return partial(VerifiersEpisode, self.environment, self.row)

    def row(self, problem: Problem) -> Row:
        """The row that a problem was made from."""
        _, split, index = problem.id.rsplit("/", 2)
        rows = self.train if split == "train" or self.test is None else self.test
        return rows[int(index)]

    def problems(self, split: str) -> list[Problem]:
        """The rows of `train` or `test` as problems; raises DataError for one that is no conversation of texts."""
        rows = self.train if split == "train" else self.test or ()
        name = Path(self.name).stem
        return [_problem(f"{name}/{split}/{index:05d}", row) for index, row in enumerate(rows)]


def _problem(identity: str, row: Row) -> Problem:
    prompt = row.get("prompt")
    if not isinstance(prompt, list) or not prompt:
        raise DataError(f"{identity}: its prompt is no list of messages; SlimRL takes environments of chats")
    try:
        messages = [plain(message) for message in prompt]
    except DataError as error:
        raise DataError(f"{identity} {error}") from None
    info = row.get("info")
    columns = {key: value for key, value in row.items() if key not in OWN}
    columns["info"] = json.loads(info) if isinstance(info, str) and info else info or {}
    return Problem(identity, messages[-1]["content"], str(row.get("answer") or ""), columns=columns)


def load_package(config: EnvironmentConfig, load: Load) -> Package | None:
    """The package that the settings name; None where they name none.

    Raises SettingsError where it cannot be loaded, or has an environment that SlimRL does not play.
    """
    place = package_of(config.name)
    if not place:
        return None
    _demand_verifiers(place)
    make = load(f"{module_of(place)}:load_environment", None)
    with _signals_kept(), _no_bars():
        environment = _made(place, make, config.arguments)
        train, test = _data(environment, place)
    for part in _parts(environment):
        for rubric in _rubrics(part.rubric):
            rubric.funcs[:] = map(reported, rubric.funcs)
        if getattr(part, "timeout_seconds", None):
            # environment.deadline takes its place, which does not count the time of sampling
            part.timeout_seconds = None
    passing = getattr(environment, "pass_threshold", PASSING)
    return Package(place, environment, float(passing), train, test)


def module_of(place: str) -> str:
    """The file, or the module, of a package as `verifiers` names them: `owner/my-package` has the module my_package."""
    return place if place.endswith(".py") else place.rpartition("/")[2].replace("-", "_")


def _demand_verifiers(place: str) -> None:
    try:
        bridge()
    except ImportError as error:
        import importlib.metadata as installed

        try:
            version = installed.version("verifiers")
        except installed.PackageNotFoundError:
            raise SettingsError(
                f"task.name=verifiers:{place} needs the package verifiers; install slimrl[verifiers]"
            ) from None
        raise SettingsError(
            f"task.name=verifiers:{place} needs the Environment classes of verifiers, which its version {version} does not have "
            f"({error}); install slimrl[verifiers], which takes an earlier one"
        ) from None


def _made(place: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        environment = make(**arguments)
    except (Exception, SystemExit) as error:
        raise SettingsError(
            f"task.name: load_environment of {place} {raised(error)}; correct it, or environment.arguments"
        ) from error
    lacking = [
        name for name in ("rollout", "rubric", "get_dataset", "get_eval_dataset") if not hasattr(environment, name)
    ]
    if lacking:
        raise SettingsError(
            f"task.name: load_environment of {place} made {type(environment).__name__}, which is no Environment of verifiers "
            f"({lacking[0]} is missing); SlimRL plays its classes SingleTurnEnv, MultiTurnEnv and those made from them"
        )
    for part in _parts(environment):
        _refuse(place, part, whole=part is environment)
    return environment


def _refuse(place: str, part: Any, *, whole: bool) -> None:
    """Raises SettingsError for an environment that needs more than a policy and this process."""
    kinds = [kind.__name__ for kind in type(part).__mro__]
    if found := next((kind for kind in kinds if kind in ELSEWHERE), ""):
        raise SettingsError(
            f"task.name=verifiers:{place}: {kinds[0]} is a {found}, which {ELSEWHERE[found]}; SlimRL does not play it"
        )
    if not whole and (tools := getattr(part, "tool_defs", None)):
        raise SettingsError(
            f"task.name=verifiers:{place}: {kinds[0]} has the tool {tools[0].name}, and the group that it is part of has other "
            "environments; prompts of all rows describe the same tools, so load it alone"
        )
    for rubric in _rubrics(part.rubric):
        if getattr(rubric, "has_advantages", False):
            raise SettingsError(
                f"task.name=verifiers:{place}: {type(rubric).__name__} computes advantages, which algorithm.baseline does here; "
                "choose another rubric"
            )
        grouped = [function for function in rubric.funcs if rubric._is_group_func(function)]
        if grouped:
            name = getattr(grouped[0], "__name__", "of the rubric")
            raise SettingsError(
                f"task.name=verifiers:{place}: the reward function {name} reads all completions of a group at once; SlimRL asks "
                "for the reward of one episode, so write it for one"
            )


def _parts(environment: Any) -> Iterator[Any]:
    """An environment, or those of a group."""
    for part in getattr(environment, "envs", ()) or [environment]:
        yield from [part] if part is environment else _parts(part)


def _rubrics(rubric: Any) -> Iterator[Any]:
    """A rubric, or those of a group."""
    yield rubric
    for part in getattr(rubric, "rubrics", ()):
        yield from _rubrics(part)


def _data(environment: Any, place: str) -> tuple[Sequence[Row], Sequence[Row] | None]:
    """The rows to train on, and those of its evaluation; None where these are the same."""
    try:
        train = environment.get_dataset()
    except ValueError:  # there is evaluation data only
        train = ()
    except Exception as error:
        raise SettingsError(
            f"task.name=verifiers:{place}: making its data {raised(error)}; correct it, or environment.arguments"
        ) from error
    test = environment.get_eval_dataset()
    return train, None if test is train else test


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the bars that the library `datasets` draws."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Give back the handlers of signals, which an Environment of `verifiers` replaces when it is made."""
    kept = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in kept}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
