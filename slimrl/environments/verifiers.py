"""Environments of the package `verifiers`: its own rollout runs, and each answer that it asks a model for is a turn of ours.

Rollouts run in one event loop, as `verifiers` runs them, so that what belongs to a loop, such as the client of a judge, can be
shared by episodes. There is no server and no client of an API.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from functools import cache, wraps
from inspect import isawaitable
from typing import Any
from weakref import finalize

from slimrl.environments import Messages, Step
from slimrl.environments.tools import Call, Tool, read_calls
from slimrl.errors import DataError, raised
from slimrl.records import Problem

MODEL = "slimrl"
"""The name that environments know the policy by."""
ROUNDING = 1e-9
"""Of a sum of rewards."""
Row = Mapping[str, Any]
_failures: ContextVar[list[str]] = ContextVar("failures")
"""The reward functions that raised during one scoring, which `verifiers` itself takes for a reward of 0."""


class VerifiersEpisode:
    """An episode of an environment of `verifiers`. `row` finds the row of its data set that is a problem."""

    def __init__(self, environment: Any, row: Callable[[Problem], Row]) -> None:
        self._environment, self._row = environment, row
        self._rollout = Rollout(environment)
        self._paid: list[float] = []
        """The rewards of turns so far."""
        finalize(self, self._rollout.end)

    def reset(self, problem: Problem) -> Messages:
        """The prompt: that of the row, or what `setup_state` and `get_prompt_messages` made of it."""
        prompt = self._rollout.begin(self._row(problem))
        if prompt is None:
            raise DataError("is over before the first turn")
        return prompt

    def step(self, text: str) -> Step:
        """Go on with a turn; the reward that its step of the trajectory has is that of the turn."""
        messages = self._rollout.go_on(text)
        reward = self._rollout.reward_of_last_turn()
        if reward is None:
            return messages or [], messages is None
        self._paid.append(reward)
        return messages or [], messages is None, reward

    def cut(self, text: str) -> None:
        """Go on with a turn that a bound of tokens cut off, as `verifiers` does; the answer is not read."""
        self._rollout.go_on(text, cut=True)

    def score(self) -> float:
        """The weighted sum of the rubric's functions, less what turns were paid."""
        self._rollout.finish()
        rest = math.fsum([self._rollout.reward, *(-reward for reward in self._paid)])
        return 0.0 if self._paid and abs(rest) < ROUNDING else rest

    @property
    def total(self) -> float:
        """The weighted sum itself, which tells whether the episode is right."""
        return self._rollout.reward

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that prompts describe; the environment answers their calls."""
        return self._rollout.tools

    @property
    def metrics(self) -> Mapping[str, float]:
        """The value of each function of the rubric, those of weight 0 included."""
        return self._rollout.metrics


class Rollout:
    """A rollout of `verifiers` that waits, in the loop of all of them, for the turns of the policy."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.tools = tools_in(environment)
        self.reward, self.metrics = 0.0, dict[str, float]()
        self._said: list[dict[str, str]] = []
        self._asked = Future[list[dict[str, str]] | None]()
        """The messages that the policy reads next; None where the rollout is over."""
        self._answer: asyncio.Future[Any] | None = None
        """The turn that the environment waits for."""
        self._running: Future[None] | None = None
        self._turns, self._earned = 0, list[float | None]()
        """Turns of the policy, and the rewards that their steps of the trajectory have."""

    def begin(self, row: Row) -> list[dict[str, str]] | None:
        """Start with a row of the data set; the prompt."""
        self._running = asyncio.run_coroutine_threadsafe(self._play(row), _loop())
        self._running.add_done_callback(self._over)
        return self._asked.result()

    def go_on(self, text: str, *, cut: bool = False) -> list[dict[str, str]] | None:
        """Give a turn of the policy; the messages behind it."""
        self._said.append({"role": "assistant", "content": text})
        self._turns += 1
        return self._resume(lambda answer: answer.set_result(response(text, self.tools, cut=cut)))

    def reward_of_last_turn(self) -> float | None:
        """The reward that the environment gave the last turn; None where it gave none."""
        return self._earned[self._turns - 1] if len(self._earned) == self._turns else None

    def finish(self) -> None:
        """End a rollout for which there are no tokens left, as `verifiers` ends one that exceeds the context."""
        while not (self._running is not None and self._running.done()):
            self._resume(lambda answer: answer.set_exception(bridge().overlong("no tokens are left")))
        self._running.result()

    def end(self) -> None:
        """Give a rollout up."""
        if self._running is not None:
            self._running.cancel()

    def _resume(self, settle: Callable[[asyncio.Future[Any]], None]) -> list[dict[str, str]] | None:
        answer, self._asked = self._answer, Future()
        if answer is None or self._running is None or self._running.done():
            raise DataError("waits for no turn")
        _loop().call_soon_threadsafe(settle, answer)
        return self._asked.result()

    async def turn(self, prompt: Sequence[Any], tools: Sequence[Any] | None, state: Mapping[str, Any] | None) -> Any:
        """The policy's answer to a conversation, which must go on behind what was said before."""
        self._earned = _earned(state or {})
        own = {tool.name for tool in self.tools}
        if unknown := [tool.name for tool in tools or () if tool.name not in own]:
            raise DataError(
                f"has the tool {unknown[0]} in this row only, and prompts of all rows describe the same tools"
            )
        messages = [plain(message) for message in prompt]
        known = len(self._said)
        if messages[:known] != self._said:
            raise DataError("writes earlier turns anew, and an episode keeps the tokens that were sampled")
        if self._asked.done():
            raise DataError("asks for two turns at once")
        self._said, self._answer = messages, asyncio.get_running_loop().create_future()
        self._asked.set_result(messages[known:])
        return await self._answer

    async def _play(self, row: Row) -> None:
        environment, failures = self.environment, list[str]()
        _failures.set(failures)
        try:
            state = await environment.rollout(dict(row), bridge().client(self), MODEL, {})
            self._earned = _earned(state)  # before the rubric, which may fill in its own
            if error := state.get("error"):
                raise DataError(_reason(error))
            await environment.rubric.score_rollout(state)
            await environment.rubric.cleanup(state)
        except (KeyboardInterrupt, SystemExit) as error:  # it would end the loop of all
            raise DataError(_reason(error)) from None
        if failures:
            raise DataError(failures[0])
        self.reward = float(state["reward"])
        self.metrics = {name: float(value) for name, value in (state["metrics"] or {}).items()}

    def _over(self, running: Future[None]) -> None:
        if self._asked.done():
            return
        if running.cancelled():
            self._asked.set_exception(DataError("was given up"))
        elif error := running.exception():
            self._asked.set_exception(error)
        else:
            self._asked.set_result(None)


def _earned(state: Mapping[str, Any]) -> list[float | None]:
    """The rewards of the steps of a trajectory, None where a step has none."""
    rewards = [step.get("reward") for step in state.get("trajectory") or ()]
    return [None if reward is None else float(reward) for reward in rewards]


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()

    def run() -> None:
        while not loop.is_closed():
            # raised in a task of one environment, these would end the tasks of all
            with suppress(KeyboardInterrupt, SystemExit):
                loop.run_forever()

    threading.Thread(target=run, name="verifiers", daemon=True).start()
    return loop


class Bridge:
    """The names of `verifiers` that a rollout needs; raises ImportError where it has none of them."""

    def __init__(self) -> None:
        from verifiers.clients import Client
        from verifiers.errors import OverlongPromptError
        from verifiers.types import Response, ResponseMessage, ToolCall

        class Policy(Client):  # type: ignore[misc]  # the package has no types for us
            """The policy, as a client of a model."""

            def __init__(self, rollout: Rollout) -> None:
                super().__init__(None)
                self.rollout = rollout

            @property
            def client(self) -> None:
                raise DataError("calls the client of an API itself, and the policy has none")

            def setup_client(self, config: object) -> None:
                raise DataError(f"makes a client of its own from {type(config).__name__}")

            async def to_native_tool(self, tool: Any) -> Any:
                return tool

            async def to_native_prompt(self, messages: Any) -> tuple[Any, dict[str, Any]]:
                return messages, {}

            async def get_native_response(self, prompt: Any, *args: Any, **further: Any) -> Any:
                tools = args[2] if len(args) > 2 else further.get("tools")
                return await self.rollout.turn(prompt, tools, further.get("state"))

            async def raise_from_native_response(self, response: Any) -> None:
                pass

            async def from_native_response(self, response: Any) -> Any:
                return response

            async def close(self) -> None:
                pass

        self.client: Any = Policy
        self.response: Any = Response
        self.message: Any = ResponseMessage
        self.call: Any = ToolCall
        self.overlong: Any = OverlongPromptError


@cache
def bridge() -> Bridge:
    """The names, imported once."""
    return Bridge()


def response(text: str, tools: Sequence[Tool], *, cut: bool) -> Any:
    """A turn of the policy as `verifiers` gets it from a client, with the calls of tools that the text has."""
    calls = [] if cut else [_call(number, call, tools) for number, call in enumerate(read_calls(text, tools))]
    finish = "length" if cut else "tool_calls" if calls else "stop"
    message = bridge().message(content=text, finish_reason=finish, is_truncated=cut, tool_calls=calls or None)
    return bridge().response(id=MODEL, created=0, model=MODEL, usage=None, message=message)


def _call(number: int, call: Call, tools: Sequence[Tool]) -> Any:
    """A call as `verifiers` reads it. The arguments of a malformed one are no JSON, so that the environment answers with its own
    error.
    """
    tool = next((tool for tool in tools if tool.name == call.name), None)
    written = call.fault
    if tool is not None and call.arguments is not None:
        written = json.dumps(
            {name: _value(value, tool.parameters.get(name, {})) for name, value in call.arguments.items()}
        )
    return bridge().call(id=f"call_{number}", name=call.name, arguments=written)


def _value(value: Any, schema: Mapping[str, Any]) -> Any:
    """An argument that a plain tag wrote as text, as the type that its schema says."""
    if isinstance(value, str) and schema.get("type") in ("integer", "number", "boolean", "array", "object"):
        try:
            return json.loads(value)
        except ValueError:
            pass
    return value


def tools_in(environment: Any) -> tuple[Tool, ...]:
    """The tools of an environment, which it calls itself."""
    return tuple(
        Tool(tool.name, {"type": "function", "function": _function(tool)}, environment.env_response)
        for tool in getattr(environment, "tool_defs", None) or ()
    )


def _function(tool: Any) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def plain(message: Any) -> dict[str, str]:
    """Role and text of a message; raises DataError for one that holds something else, such as an image."""
    content = _field(message, "content")
    parts = [content or ""] if content is None or isinstance(content, str) else content
    return {"role": str(_field(message, "role")), "content": "".join(map(_text, parts))}


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if _field(part, "type") != "text":
        raise DataError(f"has a message with {_field(part, 'type')}, and a policy reads text")
    return str(_field(part, "text"))


def _field(thing: Any, key: str) -> Any:
    """A value of a mapping or of an object."""
    return thing.get(key) if isinstance(thing, Mapping) else getattr(thing, key, None)


def reported(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """A reward function whose exceptions are noted before `verifiers` hides them."""

    @wraps(function)
    async def called(*args: Any, **columns: Any) -> Any:
        try:
            value = function(*args, **columns)
            return await value if isawaitable(value) else value
        except Exception as error:
            name = getattr(function, "__name__", "of the rubric")
            _failures.get().append(f"has the reward function {name}, which {_reason(error)}")
            raise

    return called


def _reason(error: BaseException) -> str:
    """The words of the error that others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) if isinstance(error, DataError) else raised(error)
