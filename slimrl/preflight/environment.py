"""Environments beside a policy: the rules of its episodes, the prompts that they open with, and the record of what was played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from slimrl.config.environment import EnvironmentConfig, package_of
from slimrl.config.schema import EvalConfig, RootConfig, TrainConfig
from slimrl.config.sections import TaskConfig
from slimrl.environments import Make, Messages, maker, opening
from slimrl.environments.episodes import Play, Rules
from slimrl.environments.packages import Package, load_package, module_of
from slimrl.errors import SettingsError
from slimrl.model.policy import Policy
from slimrl.model.prompts import Prompter
from slimrl.records import Completion, Played, Problem, Turns, turns_of
from slimrl.rewards.custom import files_digest, load_function, source_files
from slimrl.rollout import Request
from slimrl.tasks import Task
from slimrl.tasks.packaged import packaged_task

KEPT = 4096
"""Prompts of environments that are kept."""


def packaged(config: RootConfig) -> Package | None:
    """The package of `verifiers` that the settings name as their task; None where they name another."""
    return load_package(config.environment, partial(load_function, setting="task.name"))


def package_task(config: TaskConfig, package: Package) -> Task:
    """The problems of a package, whose prompts and verdicts are those of its environment."""
    test = None if package.test is None else package.problems("test")
    return packaged_task(config, package.problems("train"), test)


def rules_of(config: RootConfig, policy: Policy, prompter: Prompter, package: Package | None) -> Rules | None:
    """The rules of the settings' environment; None where a completion is one turn.

    Raises SettingsError where it cannot be made, or has no score to pay.
    """
    environment = config.environment
    if not environment.name:
        return None
    make = package.make if package else maker(environment, partial(load_function, setting="environment.name"))
    scored = isinstance(config, TrainConfig | EvalConfig) and "environment" in config.rewards.built_in
    if scored and not hasattr(make(), "score"):
        raise SettingsError(
            f"rewards.environment pays what score() returns, and {environment.name!r} has no such method; write one, or remove it"
        )

    def encode(messages: Messages, last: int) -> tuple[int, ...]:
        # a turn that ended with a text of rollout.stop has not drawn the token that ends it
        end = () if last in policy.stop_ids or prompter.turn_end is None else (prompter.turn_end,)
        return (*end, *prompter.following_ids(messages))

    passing = package.passing if package else None
    return Rules(make, _openings(make), policy.decode, encode, environment.turns, environment.deadline, passing)


def _openings(make: Make) -> Callable[[Problem], Turns]:
    """The environment's prompt of a problem as turns, which is kept; empty for the prompt of the task."""
    known: dict[str, Turns] = {}

    def turns(problem: Problem) -> Turns:
        if problem.id not in known:
            if len(known) >= KEPT:
                del known[next(iter(known))]
            known[problem.id] = turns_of(opening(make, problem) or ())
        return known[problem.id]

    return turns


def posed(rules: Rules | None, problem: Problem) -> Problem:
    """The problem with the prompt of its environment, as rewards see it."""
    own = () if rules is None else rules.opening(problem)
    return replace(problem, turns=own) if own else problem


def played(request: Request, completions: Sequence[Completion]) -> tuple[Played, ...]:
    """The records of a request's episodes; none where a completion is one turn."""
    return request.on_turn.played(completions) if isinstance(request.on_turn, Play) else ()


def environment_digest(config: EnvironmentConfig) -> str:
    """SHA-256 of the files of the environment; empty where there is none."""
    place = package_of(config.name)
    spec = f"{module_of(place)}:load_environment" if place else config.name
    return files_digest(source_files(spec)) if spec else ""
