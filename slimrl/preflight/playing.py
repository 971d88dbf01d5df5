"""Environments beside a policy: the rules of its episodes, the prompts that they open with, and the record of what was played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from slimrl.config.environment import EnvironmentConfig
from slimrl.config.places import is_module
from slimrl.environments import Make, maker, opening
from slimrl.environments.episodes import Play, Rules
from slimrl.model.policy import Policy
from slimrl.model.prompts import Prompter
from slimrl.records import Completion, Played, Problem, Turns
from slimrl.rewards.custom import files_digest, load_function
from slimrl.rollout import Request


def rules_of(config: EnvironmentConfig, policy: Policy, prompter: Prompter) -> Rules | None:
    """The rules of the settings' environment; None where a completion is one turn.

    Raises SettingsError where it cannot be made.
    """
    if not config.name:
        return None
    make = maker(config, partial(load_function, setting="environment.name"))
    return Rules(make, policy.decode, prompter.following_ids, config.turns, config.deadline)


def openings(make: Make) -> Callable[[Problem], Turns]:
    """The environment's prompt of a problem as turns, which is asked for once; empty for the prompt of the task."""
    known: dict[str, Turns] = {}

    def turns(problem: Problem) -> Turns:
        if problem.id not in known:
            messages = opening(make, problem) or ()
            known[problem.id] = tuple((message["role"], message["content"]) for message in messages)
        return known[problem.id]

    return turns


def played(request: Request, completions: Sequence[Completion]) -> tuple[Played, ...]:
    """The records of a request's episodes; none where a completion is one turn."""
    return request.on_turn.played(completions) if isinstance(request.on_turn, Play) else ()


def environment_digest(config: EnvironmentConfig) -> str:
    """SHA-256 of the file of the environment; empty where there is none, or it is a module's."""
    place = config.name.rpartition(":")[0]
    return "" if is_module(place) else files_digest([Path(place).expanduser()])
