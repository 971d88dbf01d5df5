"""A small `verifiers`: the names that SlimRL and the environments of these tests use of it, with the package's meaning.

The tests run with it everywhere, and with the package itself where it is installed.
"""

from __future__ import annotations

import inspect
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any


class Error(Exception):
    pass


class OverlongPromptError(Error):
    pass


class ModelError(Error):
    pass


class Message(SimpleNamespace):
    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


class UserMessage(Message):
    def __init__(self, content: Any) -> None:
        super().__init__(role="user", content=content)


class ResponseMessage(Message):
    pass


class Response(Message):
    pass


class ToolCall(Message):
    pass


class Client:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def get_response(self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **further: Any) -> Any:
        try:
            native, extra = await self.to_native_prompt(prompt)  # type: ignore[attr-defined]
            return await self.get_native_response(native, model, sampling_args, tools, **extra, **further)  # type: ignore[attr-defined]
        except Error:
            raise
        except Exception as error:
            raise ModelError from error


async def called(function: Any, objects: dict[str, Any]) -> Any:
    parameters = inspect.signature(function).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    value = function(**{k: v for k, v in objects.items() if every or k in parameters})
    return await value if inspect.isawaitable(value) else value


class Parser:
    def parse_answer(self, completion: Any) -> str:
        return str([m for m in completion if m.role == "assistant"][-1].content)


class Rubric:
    has_advantages = False

    def __init__(self, funcs: Any = None, weights: Any = None, parser: Any = None) -> None:
        self.funcs = list(funcs or [])
        self.weights = list(weights or [1.0] * len(self.funcs))
        self.parser = parser or Parser()

    def _is_group_func(self, function: Any) -> bool:
        return bool({"states", "completions"} & {*inspect.signature(function).parameters})

    async def score_rollout(self, state: Any) -> None:
        objects = {"parser": self.parser, "state": state, "info": {}, "answer": ""} | state["input"] | state
        state["metrics"] = {}
        for function in self.funcs:
            try:
                value = float(await called(function, objects))
            except Exception:
                value = 0.0
            state["metrics"][function.__name__] = value
        values = state["metrics"].values()
        state["reward"] = sum(w * value for w, value in zip(self.weights, values, strict=True))

    async def cleanup(self, state: Any) -> None:
        pass


class RubricGroup(Rubric):
    def __init__(self, rubrics: Any) -> None:
        super().__init__()
        self.rubrics = rubrics

    async def score_rollout(self, state: Any) -> None:
        reward, metrics = 0.0, {}
        for rubric in self.rubrics:
            await rubric.score_rollout(state)
            reward += state["reward"]
            metrics |= state["metrics"]
        state["reward"], state["metrics"] = reward, metrics


def stop(function: Any) -> Any:
    function.stop = True
    return function


def cleanup(function: Any) -> Any:
    function.cleanup = True
    return function


class Environment:
    def __init__(
        self, dataset: Any = None, eval_dataset: Any = None, system_prompt: str = "", rubric: Any = None, **further: Any
    ) -> None:
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []

        def formed(rows: Any) -> Any:
            asked = [[*system, {"role": "user", "content": row.get("question", "")}] for row in rows]
            return [
                {"prompt": prompt, "example_id": n, **row}
                for n, (prompt, row) in enumerate(zip(asked, rows, strict=True))
            ]

        self.dataset = None if dataset is None else formed(dataset)
        self.eval_dataset = None if eval_dataset is None else formed(eval_dataset)
        self.rubric = rubric or Rubric()
        self.tool_defs = None
        for key, value in further.items():
            setattr(self, key, value)

    def get_dataset(self) -> Any:
        if self.dataset is None:
            raise ValueError("dataset is not set")
        return self.dataset

    def get_eval_dataset(self) -> Any:
        return self.get_dataset() if self.eval_dataset is None else self.eval_dataset

    def marked(self, mark: str) -> list[Any]:
        return [method for _, method in inspect.getmembers(self, inspect.ismethod) if hasattr(method, mark)]

    async def is_completed(self, state: Any) -> bool:
        return any([await condition(state) for condition in self.marked("stop")])


class MultiTurnEnv(Environment):
    def __init__(self, max_turns: int = -1, timeout_seconds: float | None = None, **further: Any) -> None:
        super().__init__(**further)
        self.max_turns, self.timeout_seconds = max_turns, timeout_seconds

    async def setup_state(self, state: Any) -> Any:
        return state

    @stop
    async def is_over(self, state: Any) -> bool:
        over = bool(state["error"] or state["prompt_too_long"] or state["final_env_response"])
        return over or 0 < self.max_turns <= len(state["trajectory"])

    async def get_prompt_messages(self, state: Any) -> Any:
        if not state["trajectory"]:
            return state["prompt"]
        last = state["trajectory"][-1]
        messages = [*last["prompt"], *last["completion"]]
        return [*messages, *await self.env_response(messages, state)]  # type: ignore[attr-defined]

    async def rollout(self, input: Any, client: Any, model: str, sampling_args: Any = None) -> Any:
        empty = {"trajectory": [], "error": None, "prompt_too_long": False, "final_env_response": None}
        state = {**empty, "input": input, "prompt": [Message(**m) for m in input["prompt"]], "client": client}
        state |= {key: input[key] for key in ("answer", "info") if key in input}
        try:
            state = await self.setup_state(state) or state
            while not await self.is_completed(state):
                try:
                    prompt = await self.get_prompt_messages(state)
                    if state["final_env_response"]:
                        continue
                    answer = (await client.get_response(prompt, model, sampling_args, state=state)).message
                    said = Message(role="assistant", content=answer.content, tool_calls=answer.tool_calls)
                    step = {"prompt": prompt, "completion": [said], "is_truncated": answer.is_truncated, "reward": None}
                    state["trajectory"].append(step)
                except OverlongPromptError:
                    state["prompt_too_long"] = True
                except Error as error:
                    state["error"] = error
        finally:
            steps = state["trajectory"][-1:]
            whole = [m for step in steps for m in (*step["prompt"], *step["completion"])]
            state["completion"] = whole[len(state["prompt"]) :]
            for handler in self.marked("cleanup"):
                await handler(state)
        return state


class SingleTurnEnv(MultiTurnEnv):
    def __init__(self, **further: Any) -> None:
        super().__init__(max_turns=1, **further)


class ToolEnv(MultiTurnEnv):
    """Its tools have parameters of whole numbers only."""

    def __init__(self, tools: Any, max_turns: int = 10, **further: Any) -> None:
        super().__init__(max_turns=max_turns, **further)
        self.tools = {tool.__name__: tool for tool in tools}
        self.tool_defs = [
            Message(
                name=name,
                description=inspect.getdoc(tool),
                parameters={
                    "type": "object",
                    "properties": {parameter: {"type": "integer"} for parameter in inspect.signature(tool).parameters},
                },
            )
            for name, tool in self.tools.items()
        ]

    @stop
    async def no_tools_called(self, state: Any) -> bool:
        return bool(state["trajectory"]) and not state["trajectory"][-1]["completion"][-1].tool_calls

    async def env_response(self, messages: Any, state: Any) -> Any:  # noqa: ARG002
        return [
            Message(role="tool", content=self.answer(call), tool_call_id=call.id) for call in messages[-1].tool_calls
        ]

    def answer(self, call: Any) -> str:
        try:
            arguments = json.loads(call.arguments)
            return str(self.tools[call.name](**arguments))
        except Exception as error:
            return str(error)


def modules() -> dict[str, ModuleType]:
    """The stand-in by the names under which the package is imported."""
    here = vars(sys.modules[__name__])
    root = ModuleType("verifiers")
    for name in (
        "MultiTurnEnv",
        "SingleTurnEnv",
        "ToolEnv",
        "Rubric",
        "RubricGroup",
        "Parser",
        "Error",
        "stop",
        "cleanup",
    ):
        setattr(root, name, here[name])
    parts = {
        "clients": ("Client",),
        "errors": ("OverlongPromptError",),
        "types": ("Response", "ResponseMessage", "ToolCall", "UserMessage"),
    }
    found = {"verifiers": root}
    for part, names in parts.items():
        module = found[f"verifiers.{part}"] = ModuleType(f"verifiers.{part}")
        for name in names:
            setattr(module, name, here[name])
        setattr(root, part, module)
    return found
