"""Classes of TRL's `environment_factory`: `reset` with the fields of a row, public methods as tools, `get_reward` as score."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from slimrl.environments.waiting import awaited
from slimrl.errors import DataError
from slimrl.records import Problem

OWN = ("reset", "get_reward")
"""Public methods that are no tools."""


def is_trl(environment: object) -> bool:
    """True for an object in TRL's form: it has `reset`, and neither `step` nor `tools`."""
    named = hasattr(environment, "step") or hasattr(environment, "tools")
    return not named and callable(getattr(environment, "reset", None))


class TrlEpisode:
    """An episode of an environment of TRL's. What it calls tools are its public methods."""

    def __init__(self, environment: Any) -> None:
        self.of_trl = environment
        """The object that reward functions get in `environments`."""
        members = inspect.getmembers(type(environment), inspect.isfunction)  # properties are left alone
        names = [name for name, _ in members if name not in OWN and not name.startswith("_")]
        self.tools: list[Callable[..., Any]] = [getattr(environment, name) for name in names]

    def reset(self, problem: Problem) -> list[dict[str, str]] | None:
        """The prompt with the text that the environment adds to its last message; None where it adds none."""
        told = awaited(self.of_trl.reset(**_taken(self.of_trl.reset, _row(problem))))
        if told is None:
            return None
        if not isinstance(told, str):
            raise DataError(f"returned {type(told).__name__} from reset, and a policy reads text")
        *before, (role, content) = problem.turns or (("user", problem.question),)
        return _messages((*before, (role, content + told)))


class PaidTrlEpisode(TrlEpisode):
    """One whose environment has the reward of an episode."""

    def score(self) -> float | None:
        """The reward that `get_reward`, plain or `async def`, returns."""
        reward = awaited(self.of_trl.get_reward())
        return None if reward is None else float(reward)


def in_trl_form(environment: Any) -> TrlEpisode:
    """An environment in TRL's form as one of ours."""
    return (PaidTrlEpisode if hasattr(environment, "get_reward") else TrlEpisode)(environment)


def _row(problem: Problem) -> dict[str, Any]:
    """The fields of the row that a problem was made from, as TRL's trainer hands them over."""
    own = {name: getattr(problem, name) for name in ("id", "question", "answer", "solution", "difficulty")}
    prompt = _messages(problem.turns or (("user", problem.question),))
    return {**own, "prompt": prompt, **problem.columns}


def _messages(turns: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def _taken(function: Callable[..., Any], fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that a function takes: all of them where it has **kwargs."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return fields
    return {name: value for name, value in fields.items() if name in parameters}
