"""Environments: what happens between the turns of a policy, and how an episode is told of it.

This room knows problems and texts, and neither models nor tensors: who samples hands it the functions that turn ids into text and
messages into ids.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol, cast

from slimrl.config.environment import EnvironmentConfig
from slimrl.environments.tools import WithTools, tools_of
from slimrl.environments.trl import in_trl_form, is_trl
from slimrl.environments.waiting import LateError, LostError, opened, within
from slimrl.errors import SettingsError, SlimError, raised
from slimrl.records import Problem

Messages = Sequence[Mapping[str, str]]
"""Chat messages: `role` and `content`."""
Step = tuple[Messages, bool] | tuple[Messages, bool, float | None]
"""The messages that the policy reads next, and True where the episode is over; they are then not read. The reward of the turn may
follow.
"""


class Environment(Protocol):
    """An episode. A class needs `step` or `tools`; each episode has an object of its own, whose methods may be `async def`.

    `tools` are functions that the policy can call (`slimrl/environments/tools.py`). Then `step` gets only the turns that call
    none, and without `step` such a turn ends the episode.
    Further methods are called where a class has them. `reset(problem)` is called before the first turn; it returns the messages
    of the prompt, or None for the task's own. Its prompt must depend on the problem alone, since a group shares one.
    `cut(text)` is called with a turn that the bounds on tokens cut off; no answer is read. `score()` is called when the episode
    is over, and returns what `rewards.environment` pays beside the rewards of turns, or None. Numbers in a mapping `metrics` are
    read behind it and logged.
    """

    def step(self, text: str) -> Step | Awaitable[Step]:
        """The answer to a turn of the policy."""
        ...


ANSWERS, PROMPT = ("user", "tool"), ("system", "user", "assistant")
"""Roles of messages between two turns, and of a prompt."""
Make = Callable[[], Environment]
Load = Callable[[str, Mapping[str, Any] | None], Callable[..., Any]]
"""Loads what a specification names, such as `file.py:Class`."""


BUILT_IN = {
    "calculator": "slimrl.environments.calculator:Calculator",
    "guess": "slimrl.environments.guess:Guess",
    "python": "slimrl.environments.python:Python",
}
"""Environments that come with SlimRL, by the name in the settings."""
BOUNDED = frozenset({"python"})
"""Those whose answers end by limits of their own, and may wait in turn before that."""


def specified(name: str) -> str:
    """The specification of a class that a setting names."""
    return BUILT_IN.get(name, name)


def maker(config: EnvironmentConfig, load: Load) -> Make:
    """The function that makes environments; raises SettingsError where there is no such class, or it cannot be made."""
    kind = load(specified(config.name), None)

    def make() -> Environment:
        try:
            made: Environment = kind(**deepcopy(config.arguments))
        except SlimError as error:
            raise SettingsError(f"environment.name={config.name}: {error}") from None
        except Exception as error:
            raise SettingsError(
                f"environment.name: making {config.name!r} {raised(error)}; correct it, or environment.arguments"
            ) from error
        if is_trl(made):
            made = cast(Environment, in_trl_form(made))
        tools = tools_of(made, where=f"environment.name={config.name}")
        return cast(Environment, WithTools(made, tools)) if tools else made

    made = make()
    if not callable(getattr(made, "step", None)):
        raise SettingsError(
            f"environment.name: {config.name!r} has no method step(text), and no tools; write one (docs/environments.md)"
        )
    return make


def opening(make: Make, problem: Problem, seconds: float) -> Messages | None:
    """The messages with which the environment opens an episode of a problem; None for those of the task.

    Raises SettingsError where `reset` fails, takes longer than `seconds`, or the messages are no prompt.
    """

    def reset() -> Any:
        method = getattr(make(), "reset", None)  # before the time begins: a new process has to load the class
        return within(seconds, lambda: opened(method, problem)) if method is not None else None

    try:
        try:
            messages = reset()
        except LostError:  # perhaps by what another episode did
            messages = reset()
    except SettingsError:
        raise
    except LateError:
        what = f"did not return within environment.deadline={seconds:g} s"
        raise SettingsError(
            f"environment.name: reset {what}, for problem {problem.id}; correct it, or raise the deadline"
        ) from None
    except SlimError as error:
        raise SettingsError(f"environment.name: reset {error}, for problem {problem.id}; correct it") from None
    except Exception as error:
        raise SettingsError(f"environment.name: reset {raised(error)}, for problem {problem.id}; correct it") from error
    if messages is not None and (fault := message_fault(messages, PROMPT) or _order_fault(messages)):
        raise SettingsError(f"environment.name: reset returned {fault} for problem {problem.id}; correct it")
    found: Messages | None = messages
    return found


def _order_fault(messages: Messages) -> str:
    """The way in which messages are no prompt, which a system message may open and a user's must end."""
    roles = [message["role"] for message in messages]
    if not roles:
        return "an empty list of messages, where None stands for the prompt of the task,"
    if "system" in roles[1:]:
        return "a system message behind others"
    return "" if roles[-1] == "user" else f"a prompt that ends with the role {roles[-1]}, and not with user,"


def message_fault(messages: object, roles: Sequence[str]) -> str:
    """The way in which a value is no list of messages of these roles; empty where it is one."""
    if not isinstance(messages, list | tuple):
        return f"{type(messages).__name__} in place of a list of messages"
    for message in messages:
        known = isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not known:
            return f"{str(message)[:60]!r}, which is no message with a text as role and as content,"
        if message["role"] not in roles:
            return f"a message of the role {message['role'][:20]!r}, which is none of {', '.join(roles)},"
    return ""
