"""The inside of a process that plays environments: what it is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from slimrl.config.environment import EnvironmentConfig
from slimrl.environments import PROMPT, Environment, Load, Make, Messages, Step, maker, message_fault
from slimrl.environments.answers import answer_of, score_of, told
from slimrl.environments.tools import called_in, tools_of
from slimrl.environments.waiting import awaited, opened
from slimrl.errors import DataError, SettingsError
from slimrl.machine.worker import Answer
from slimrl.records import Problem, ToolCall, turns_of


@dataclass(frozen=True)
class Loading:
    """The way in which a process loads a class: called there, it returns what answers the requests."""

    config: EnvironmentConfig
    load: Load
    """A function of a module."""
    digest: Callable[[], str]
    """Of the files of the class; a function of a module."""
    expected: str
    """The digest at the beginning of the run: a process that is started later must find the same files."""

    def __call__(self) -> Answer:
        make = maker(self.config, self.load)
        if self.digest() != self.expected:
            raise SettingsError(
                "a file of environment.name changed during the run; bring it back, or start another run"
            )
        return Stage(make, where=f"environment.name={self.config.name}").answer


class Known(NamedTuple):
    """The facts about a class that its process tells first."""

    schemas: tuple[Mapping[str, Any], ...]
    """Of its tools."""
    scores: bool
    """It has `score`."""
    trl: bool
    """It is in TRL's form, whose objects reward functions may read."""


class Request(NamedTuple):
    """A call of a method of the environment that plays an episode."""

    number: int
    episode: int
    method: str
    arguments: tuple[Any, ...]
    left: tuple[int, ...]
    """Episodes that are over."""


class Reply(NamedTuple):
    """The answer to the request of this number."""

    number: int
    failed: str
    """The words behind "the environment" on what went wrong; empty for a value."""
    value: Any = None


class Stage:
    """The episodes in one process, on its side. Several threads call `answer`."""

    def __init__(self, make: Make, *, where: str) -> None:
        self._make, self._where = make, where
        self._playing: dict[int, Environment] = {}

    def answer(self, request: Request | None) -> Iterator[object]:
        """The facts about the class, where there is no request, or the reply to one."""
        if request is None:
            made = self._make()
            schemas = tuple(tool.schema for tool in tools_of(made, where=self._where))
            yield Known(schemas, hasattr(made, "score"), hasattr(made, "of_trl"))
            return
        for episode in request.left:
            self._playing.pop(episode, None)
        try:
            method, environment = METHODS[request.method], self._environment(request.episode)
            yield Reply(request.number, "", method(environment, *request.arguments))
        except BaseException as error:  # of any kind: the run waits for this reply
            yield Reply(request.number, told(error))

    def _environment(self, episode: int) -> Environment:
        """That of an episode, made for its first request. The requests of an episode come one by one."""
        if episode not in self._playing:
            self._playing[episode] = self._make()
        return self._playing[episode]


def _reset(environment: Environment, problem: Problem) -> Messages | None:
    reset = getattr(environment, "reset", None)
    messages = opened(reset, problem) if reset is not None else None
    if messages is not None and (fault := message_fault(messages, PROMPT)):
        raise DataError(f"returned {fault.removesuffix(',')}")
    return None if messages is None else _plain(messages)


def _step(environment: Environment, text: str) -> tuple[Step, tuple[ToolCall, ...] | None]:
    """The answer to a turn, and the calls of the episode up to it."""
    messages, over, reward = answer_of(environment, text)
    return (_plain(messages), over, reward), called_in(environment)


def _cut(environment: Environment, text: str) -> None:
    if cut := getattr(environment, "cut", None):
        awaited(cut(text))


def _plain(messages: Messages) -> Messages:
    """Messages without what belongs to modules that the other process has not loaded."""
    return [{"role": role, "content": content} for role, content in turns_of(messages)]


METHODS: Mapping[str, Callable[..., Any]] = {"reset": _reset, "step": _step, "cut": _cut, "score": score_of}
