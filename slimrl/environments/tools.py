"""Tools: functions that a policy calls in its turns. Their descriptions for a prompt, the calls in a text, and the answers.

A call is read in the forms that models are trained on: that of Hermes and Qwen (`<tool_call>{"name": ..., "arguments":
...}</tool_call>`), that of Llama 3 (a turn that is `{"name": ..., "parameters": ...}`), and plain tags (`<NAME>...</NAME>`, with
the arguments as JSON, or the only one as it is).
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any, NotRequired, Required

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from slimrl import thinking
from slimrl.environments.waiting import awaited
from slimrl.errors import SettingsError, defined, raised
from slimrl.records import ToolCall
from slimrl.sandbox import SandboxError

Message = dict[str, str]
_PATCHING = threading.Lock()
MARKS = ("<tool_call>", "</tool_call>", "<|python_tag|>")
"""Tokens of the forms of a call."""
_BLOCK = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
LONGEST, LONGEST_RESULT = 2000, 20_000
"""Characters of a fault, and of a result, that the policy reads."""


@dataclass(frozen=True)
class Tool:
    """A function that the policy can call."""

    name: str
    schema: Mapping[str, Any]
    """`{"type": "function", "function": {"name", "description", "parameters": a JSON schema}}`, as OpenAI's tools have it."""
    function: Callable[..., Any]
    """Plain or `async def`."""

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """The schema of each parameter, in order."""
        found: Mapping[str, Mapping[str, Any]] = self._declared.get("properties") or {}
        return found

    @property
    def _declared(self) -> Mapping[str, Any]:
        """The JSON schema of all parameters; empty where there is none."""
        return self.schema["function"].get("parameters") or {}

    def answer(self, arguments: Mapping[str, Any]) -> str:
        """The text of what the function returns. Raises _MalformedError for arguments that it does not take."""
        given = self._checked(arguments)
        found = awaited(self.function(**given))
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, read as the function's types say."""
        unknown = [name for name in arguments if name not in self.parameters]
        if unknown:
            raise _MalformedError(
                f"{self.name} has no parameter {unknown[0]!r}; it has {', '.join(self.parameters) or 'none'}"
            )
        try:
            return self._reader.validate_python(dict(arguments))
        except ValidationError as error:
            fault = error.errors()[0]
            raise _MalformedError(f"{self.name}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None

    @cached_property
    def _reader(self) -> TypeAdapter[dict[str, Any]]:
        signature = inspect.signature(self.function, eval_str=True).parameters
        required = self._declared.get("required") or []
        fields: dict[str, Any] = {}
        for name in self.parameters:
            kind: Any = signature[name].annotation if name in signature else inspect.Parameter.empty
            kind = Any if kind is inspect.Parameter.empty else kind
            fields[name] = Required[kind] if name in required else NotRequired[kind]
        return TypeAdapter(TypedDict(self.name, fields))  # type: ignore[operator]


class _MalformedError(ValueError):
    """A call that cannot be carried out, in words for the policy."""


@dataclass(frozen=True)
class Call:
    """A call as a turn writes it; `fault` says why it cannot be carried out."""

    name: str = ""
    arguments: Mapping[str, Any] | None = None
    fault: str = ""


def tools_of(environment: object, *, where: str) -> tuple[Tool, ...]:
    """The tools of an environment's attribute `tools`: typed functions with docstrings, or schemas as OpenAI's, whose functions
    are the environment's methods of the same names.

    Raises SettingsError, which begins with `where`, for something else.
    """
    listed: Any = getattr(environment, "tools", ())
    if isinstance(listed, str | Mapping) or not isinstance(listed, Sequence):
        raise SettingsError(f"{where}: tools is {type(listed).__name__}; make it a list of functions")
    tools = tuple(_tool(environment, item, where) for item in listed)
    twice = [tool.name for index, tool in enumerate(tools) if tool.name in {other.name for other in tools[:index]}]
    if twice:
        raise SettingsError(f"{where}: two tools have the name {twice[0]}; rename one")
    return tools


def _tool(environment: object, item: Any, where: str) -> Tool:
    if isinstance(item, Tool):
        return item
    if isinstance(item, Mapping):
        schema = item if "function" in item else {"type": "function", "function": item}
        name = schema["function"].get("name") if isinstance(schema["function"], Mapping) else None
        if not isinstance(name, str):
            raise SettingsError(f"{where}: a schema of tools has no name; give it as OpenAI's tools have it")
        function = getattr(environment, name, None)
        if not callable(function):
            raise SettingsError(f"{where}: tools has a schema of {name}, but there is no method {name}; write it")
        return Tool(name, schema, function)
    if not callable(item) or not hasattr(item, "__name__"):
        raise SettingsError(f"{where}: tools has {str(item)[:60]!r}, which is neither a function nor a schema")
    if vars(type(environment)).get(item.__name__) is item and isinstance(item, FunctionType):
        item = item.__get__(environment)  # a method that the class itself lists
    return Tool(item.__name__, _schema(item, where), item)


@contextmanager
def _torch_left_alone(module: Any) -> Iterator[None]:
    """Within the block a module of transformers does not load torch, for which it would look for tensors among the types of
    parameters: where nobody has loaded it, as in processes of environments, there are none.
    """
    with _PATCHING:
        own = getattr(module, "is_torch_available", None)
        module.is_torch_available = lambda: "torch" in sys.modules
        try:
            yield
        finally:
            module.is_torch_available = own


def _schema(function: Callable[..., Any], where: str) -> Mapping[str, Any]:
    from transformers.utils import chat_template_utils  # the form that chat templates are written for

    try:
        with _torch_left_alone(chat_template_utils):
            found: Mapping[str, Any] = chat_template_utils.get_json_schema(function)
    except Exception as error:
        said, place = " ".join(str(error).split()).rstrip("!."), defined(function)
        raise SettingsError(
            f"{where}: no schema can be made of the tool {function.__name__}{f' ({place})' if place else ''}: {said}; give each "
            "parameter a type and a line under Args: in the docstring"
        ) from error
    return found


def told(tools: Sequence[Tool]) -> str:
    """A description of tools for a system message, with the plain form of a call."""
    lines = ["You can call tools. Write a call as below and end your turn; the result comes in the next message."]
    for tool in tools:
        described = tool.schema["function"].get("description", "")
        parameters = [
            f"{name} ({schema.get('type', 'any')}{': ' + schema['description'] if schema.get('description') else ''})"
            for name, schema in tool.parameters.items()
        ]
        inside = next(iter(tool.parameters)) if len(tool.parameters) == 1 else "a JSON object with the parameters"
        lines.append(f"<{tool.name}>{inside}</{tool.name}> {described} Parameters: {', '.join(parameters) or 'none'}.")
    return "\n".join(lines)


def read_calls(text: str, tools: Sequence[Tool]) -> list[Call]:
    """The calls in a turn, in order; empty where there are none."""
    named = {tool.name: tool for tool in tools}
    _, text = thinking.split(text)
    if "<tool_call>" in text:
        return [_hermes(part, named) for part in text.split("<tool_call>")[1:]]
    whole = text.strip().removeprefix("<|python_tag|>").strip()
    if block := _BLOCK.fullmatch(whole):
        whole = block[1].strip()
    if whole.startswith(("{", "[")):
        return _llama(whole, named)
    return _tagged(text, named)


def _hermes(part: str, named: Mapping[str, Tool]) -> Call:
    written, closed, _ = part.partition("</tool_call>")
    if not closed:
        return Call(fault="the call has no </tool_call>")
    return _named_call(written, named)


def _llama(whole: str, named: Mapping[str, Tool]) -> list[Call]:
    """The calls of a turn that is nothing else."""
    decoder = json.JSONDecoder()
    calls: list[Call] = []
    while whole:
        try:
            read, end = decoder.raw_decode(whole)
        except (ValueError, RecursionError):
            return [_named_call(whole, named)] if re.match(r'\[?\s*\{\s*"name"', whole) else calls
        listed, known = (read, {}) if isinstance(read, list) else ([read], named)
        if not all(isinstance(one, dict) and _is_call(one, known) for one in listed):
            return calls
        calls += [_of_object(one, named) for one in listed]
        whole = whole[end:].lstrip("; \n")
    return calls


def _is_call(read: Mapping[str, Any], named: Mapping[str, Tool]) -> bool:
    """True for a name in `named`, or any name with arguments; `{"name": "Ann", "age": 3}` is an answer."""
    name = read.get("name")
    return (isinstance(name, str) and name in named) or ("name" in read and bool({"arguments", "parameters"} & {*read}))


def _named_call(written: str, named: Mapping[str, Tool]) -> Call:
    try:
        read = json.loads(written)
    except (ValueError, RecursionError) as error:
        return Call(fault=f"the call is no JSON ({error})")
    if not isinstance(read, dict):
        return Call(fault="the call is no JSON object with name and arguments")
    return _of_object(read, named)


def _of_object(read: Mapping[str, Any], named: Mapping[str, Tool]) -> Call:
    name, arguments = read.get("name"), read.get("arguments", read.get("parameters"))
    if not isinstance(name, str) or name not in named:
        return Call(fault=f"there is no tool {str(name)[:60]!r}; there is {', '.join(named)}")
    if isinstance(arguments, str):  # OpenAI's form: JSON within JSON
        return _with_arguments(named[name], arguments)
    if arguments is not None and not isinstance(arguments, Mapping):
        return Call(fault=f"the arguments of {name} are no JSON object")
    return Call(name, arguments or {})


def _tagged(text: str, named: Mapping[str, Tool]) -> list[Call]:
    names = "|".join(map(re.escape, named))
    calls = []
    for found in re.finditer(rf"<({names})>(.*?)(</\1>|\Z)", text, re.DOTALL):
        name, written, closed = found.groups()
        calls.append(_with_arguments(named[name], written) if closed else Call(fault=f"the call has no </{name}>"))
    return calls


def _with_arguments(tool: Tool, written: str) -> Call:
    """A call whose arguments are a JSON object, or the only argument as it is."""
    written = written.strip()
    try:
        read = json.loads(written) if written.startswith("{") else None
    except (ValueError, RecursionError):
        read = None
    only = next(iter(tool.parameters)) if len(tool.parameters) == 1 else ""
    # text that happens to be a JSON object, such as a program that is a dict
    is_text = bool(only) and tool.parameters[only].get("type") == "string" and not {*(read or {})} <= {only}
    if isinstance(read, dict) and not is_text:
        return Call(tool.name, read)
    if only:
        return Call(tool.name, {only: written})
    if not written and not tool.parameters:
        return Call(tool.name, {})
    return Call(fault=f"the arguments of {tool.name} are no JSON object with {', '.join(tool.parameters) or 'nothing'}")


def carry_out(calls: Sequence[Call], tools: Sequence[Tool]) -> list[tuple[Message, ToolCall]]:
    """For each call the message that answers it, with what its tool returns or an error that the policy can read, and the record
    of it.
    """
    named = {tool.name: tool for tool in tools}
    found = (_answer(call, named) for call in calls)
    return [({"role": "tool", "content": content}, called) for content, called in found]


def _answer(call: Call, named: Mapping[str, Tool]) -> tuple[str, ToolCall]:
    if call.fault or call.arguments is None:
        return _error(call.fault, ToolCall("", call.fault))
    try:
        return named[call.name].answer(call.arguments)[:LONGEST_RESULT], ToolCall(call.name)
    except _MalformedError as error:
        return _error(str(error), ToolCall("", str(error)))
    except SandboxError:
        raise
    except (Exception, SystemExit) as error:  # a tool can raise what Python can
        return _error(f"{type(error).__name__}: {error}", ToolCall(call.name, raised(error)))


def _error(words: str, called: ToolCall) -> tuple[str, ToolCall]:
    return f"error: {words}"[:LONGEST], called._replace(error=called.error[:LONGEST])


class WithTools:
    """An environment whose tools are called for it: it reads only the turns in which nothing is called.

    A class without `step` ends the episode with such a turn.
    """

    def __init__(self, environment: Any, tools: Sequence[Tool]) -> None:
        self._environment, self._tools = environment, tools
        self._called: tuple[ToolCall, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def step(self, text: str) -> Any:
        """Messages for the policy, and whether the episode is over."""
        calls = read_calls(text, self._tools)
        if calls:
            messages, called = zip(*carry_out(calls, self._tools), strict=True)
            self._called += called
            return [*messages], False
        step = getattr(self._environment, "step", None)
        return ([], True) if step is None else step(text)


def called_in(environment: object) -> tuple[ToolCall, ...] | None:
    """The calls of an episode up to now; None where tools are not called for its environment."""
    return environment._called if isinstance(environment, WithTools) else None


def tools_called(environment: object, text: str) -> list[str]:
    """The names of the tools that a turn calls, each once, whoever calls them for the environment."""
    listed = environment._tools if isinstance(environment, WithTools) else getattr(environment, "tools", ())
    tools = [tool for tool in listed if isinstance(tool, Tool)]
    calls = read_calls(text, tools) if tools else ()
    return [*dict.fromkeys(call.name for call in calls if call.name)]
