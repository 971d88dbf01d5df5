"""Classes of TRL's `environment_factory`: `reset` with the fields of a row, public methods as tools, `get_reward` as score."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from slimrl.environments.waiting import awaited
from slimrl.errors import DataError
from slimrl.records import Problem

OWN = ("reset", "get_reward")
"""Public methods that are no tools."""
FIELDS = ("id", "question", "answer", "solution", "difficulty")


def is_trl(environment: object) -> bool:
    """True for an object in TRL's form: it has no `tools`, and a `reset` that takes the fields of a row by name. Where it has no
    `step` either, any `reset` is TRL's.
    """
    reset = getattr(environment, "reset", None)
    if hasattr(environment, "tools") or not callable(reset):
        return False
    return not hasattr(environment, "step") or _takes_fields(reset)


def _takes_fields(reset: Callable[..., Any]) -> bool:
    """True for a method with **kwargs, or with more parameters than a problem gives a value to."""
    parameters = inspect.signature(reset).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return True
    needed = [p.kind for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    return len(needed) > 1 or inspect.Parameter.KEYWORD_ONLY in needed


class TrlEpisode:
    """An episode of an environment of TRL's. What it calls tools are its public methods."""

    def __init__(self, environment: Any) -> None:
        self.of_trl = environment
        """The object that reward functions get in `environments`."""
        self.tools: list[Callable[..., Any]] = [*_public_methods(environment)]

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


def _public_methods(environment: object) -> Iterator[Callable[..., Any]]:
    """As `inspect.getmembers(environment, inspect.ismethod)` finds them, without asking properties for their values."""
    for name in dir(environment):
        static = inspect.getattr_static(environment, name)
        bound = isinstance(static, FunctionType | MethodType | classmethod)
        if bound and name not in OWN and not name.startswith("_") and inspect.ismethod(getattr(environment, name)):
            yield getattr(environment, name)


def _row(problem: Problem) -> dict[str, Any]:
    """The fields of the row that a problem was made from, as TRL's trainer hands them over; a `Question` has no answer."""
    own = {name: getattr(problem, name) for name in FIELDS if hasattr(problem, name)}
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
