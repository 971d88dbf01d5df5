"""Tools: schemas of functions, calls in the forms that models write, and answers that a policy can read."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from fractions import Fraction
from random import Random
from typing import Any, Literal

import pytest

from slimrl.config.environment import EnvironmentConfig
from slimrl.environments import maker
from slimrl.environments.calculator import Calculator, calculate
from slimrl.environments.tools import (
    Call,
    Tool,
    WithTools,
    called_in,
    carry_out,
    read_calls,
    told,
    tools_called,
    tools_of,
)
from slimrl.errors import SettingsError
from slimrl.records import ToolCall


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


async def fetch(key: str, unit: Literal["cm", "m"] = "m") -> dict[str, str]:
    """Look something up.

    Args:
        key: what to look up
        unit: of the result
    """
    await asyncio.sleep(0)
    return {"found": key.upper(), "unit": unit}


def now() -> str:
    """Tell the time."""
    return "12:00"


def divide(a: float, b: float) -> float:
    """Divide.

    Args:
        a: the dividend
        b: the divisor
    """
    return a / b


class Kit:
    def __init__(self, *tools: Any) -> None:
        self.tools = list(tools)


TOOLS = tools_of(Kit(add, fetch, now, divide, calculate), where="here")


def reply(text: str, tools: Sequence[Tool] = TOOLS) -> list[str]:
    return [message["content"] for message, _ in carry_out(read_calls(text, tools), tools)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>', ["5"]),
        ('I add.\n<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call> Then?', ["3"]),
        (
            '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>\n<tool_call>{"name": "now", "arguments": {}}</tool_call>',
            ["3", "12:00"],
        ),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 2, \\"b\\": 5}"}</tool_call>', ["7"]),
        ('<tool_call>{"name": "now"}</tool_call>', ["12:00"]),
        ('{"name": "add", "parameters": {"a": 2, "b": 4}}', ["6"]),
        ('<|python_tag|>{"name": "add", "parameters": {"a": "2", "b": "4"}}', ["6"]),
        ('{"name": "add", "parameters": {"a": 2}}; {"name": "now", "parameters": {}}', ["3", "12:00"]),
        ("<calculate>(3+4)*12</calculate>", ["84"]),
        ("So <calculate>\n1/2 + 1/3\n</calculate>", ["5/6"]),
        ('<add>{"a": 1, "b": 2}</add> and <now></now>', ["3", "12:00"]),
        ('<fetch>{"key": "x", "unit": "cm"}</fetch>', ['{"found": "X", "unit": "cm"}']),
        ('<calculate>{"expression": "2*3"}</calculate>', ["6"]),
        ("<think>maybe <calculate>1</calculate></think><calculate>2</calculate>", ["2"]),
        ("<thinking>maybe <calculate>1</calculate></thinking><calculate>2</calculate>", ["2"]),
        ('{"name": "now", "arguments": null}', ["12:00"]),
        ('```json\n{"name": "add", "arguments": {"a": 2}}\n```', ["3"]),
        ('[{"name": "add", "arguments": {"a": 2}}, {"name": "now", "parameters": {}}]', ["3", "12:00"]),
    ],
)
def test_calls_are_carried_out(text: str, expected: list[str]) -> None:
    assert reply(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 2}}', "no </tool_call>"),
        ("<tool_call>add(2, 3)</tool_call>", "no JSON"),
        ("<tool_call>[1]</tool_call>", "no JSON object"),
        ('<tool_call>{"name": "sub", "arguments": {}}</tool_call>', "no tool 'sub'; there is add, fetch, now"),
        ('<tool_call>{"arguments": {}}</tool_call>', "no tool"),
        ('<tool_call>{"name": "add", "arguments": [2]}</tool_call>', "no JSON object"),
        ('<tool_call>{"name": "add", "arguments": {"b": 2}}</tool_call>', "add: a: Field required"),
        ('<tool_call>{"name": "add", "arguments": {"a": "two"}}</tool_call>', "add: a: Input should be a valid integer"),
        ('<tool_call>{"name": "add", "arguments": {"a": 1, "c": 2}}</tool_call>', "no parameter 'c'; it has a, b"),
        ('<tool_call>{"name": "fetch", "arguments": {"key": "x", "unit": "ft"}}</tool_call>', "'cm' or 'm'"),
        ('{"name": "add", "parameters": {"a": 2', "no JSON"),
        ('[{"name": "add", "parameters": {"a": 2', "no JSON"),
        ('{"name": [1], "parameters": {}}', "no tool '[1]'"),
        ("<calculate>3*4", "no </calculate>"),
        ("<add>1 2</add>", "no JSON object with a, b"),
        ("<now>please</now>", "no JSON object with nothing"),
        ("<calculate>2**99</calculate>", "ValueError: '*' is out of place"),
        ("<divide>{\"a\": 1, \"b\": 0}</divide>", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_carried_out_is_told_why(text: str, words: str) -> None:
    (said,) = reply(text)
    assert said.startswith("error: ")
    assert words in said


@pytest.mark.parametrize(
    "text",
    [
        "#### 12",
        "<think>try <now></now></think> 12",
        "<think>try <now></now>",
        "<thinking>try <now></now></thinking> 12",
        "[THINK]<now></now>[/THINK]12",
        '{"name": "Bob", "age": 3}',
        '```json\n{"name": "Bob", "age": 3}\n```',
        "```\n12\n```",
        "a <b>12</b>",
        '{"answer": 12}',
        "{12}",
        "calculate 3*4",
        "",
        '[{"name": "add"}]',
        "3 < 4 and add > 2",
    ],
)
def test_a_text_without_a_call_is_none(text: str) -> None:
    assert read_calls(text, TOOLS) == []


def test_text_that_is_a_json_object_is_an_argument() -> None:
    def run(code: str) -> str:
        """Run a program.

        Args:
            code: the program
        """
        return f"ran {code}"

    tools = tools_of(Kit(run), where="here")
    for written, code in (('{"a": 1}', '{"a": 1}'), ('{"code": "b"}', "b"), ("{}", ""), ("c", "c")):
        (said,) = reply(f"<run>{written}</run>", tools)
        assert said == (f"ran {code}" if code else "error: run: code: Field required")


def test_methods_that_the_class_lists_are_bound() -> None:
    class Counter:
        count = 2

        def more(self, step: int) -> int:
            """Count on.

            Args:
                step: how far
            """
            return self.count + step

        tools = (more,)

    tools = tools_of(Counter(), where="here")
    assert [*tools[0].parameters] == ["step"]
    assert reply("<more>3</more>", tools) == ["5"]


def leave() -> None:
    """End the process."""
    raise SystemExit(3)


def long() -> str:
    """Write much."""
    return "x" * 10**6


def test_no_call_breaks_an_episode_off() -> None:
    tools = tools_of(Kit(leave, long, calculate), where="here")  # whatever a policy writes, and a tool does
    texts = [
        "<leave></leave>",
        "<long></long>",
        f'<calculate>{{"a":{"[" * 2000}</calculate>',
        f'{{"name": {"[" * 2000}',
    ]
    left, written, *deep = [reply(text, tools)[0] for text in texts]
    assert left == "error: SystemExit: 3"
    assert len(written) == 20_000
    assert all(said.startswith("error: ") for said in deep)


def test_a_fault_is_short() -> None:
    assert len(reply(f'<tool_call>{{"name": "add", "arguments": {{"{"x" * 9000}": 1}}}}</tool_call>')[0]) <= 2000


def test_schemas_are_those_that_chat_templates_are_written_for() -> None:
    schema = TOOLS[1].schema["function"]
    assert schema["name"] == "fetch"
    assert schema["description"] == "Look something up."
    assert schema["parameters"]["properties"]["unit"] == {
        "type": "string", "enum": ["cm", "m"], "description": "of the result",
    }  # fmt: skip
    assert schema["parameters"]["required"] == ["key"]
    assert "<calculate>expression</calculate> Compute an expression exactly." in told(TOOLS)
    assert "<add>a JSON object with the parameters</add>" in told(TOOLS)


class Shop:
    """A tool that is described by a schema."""

    def __init__(self) -> None:
        parameters = {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}
        self.tools: list[Any] = [{"type": "function", "function": {"name": "price", "parameters": parameters}}]
        self.asked: list[str] = []

    def price(self, item: str) -> int:
        self.asked.append(item)
        return len(item)

    def step(self, text: str) -> tuple[list[dict[str, str]], bool]:
        return [{"role": "user", "content": f"And {text}?"}], text == "end"


def test_a_schema_calls_the_method_of_its_name() -> None:
    shop = Shop()
    environment = WithTools(shop, tools_of(shop, where="here"))
    assert environment.step('<tool_call>{"name": "price", "arguments": {"item": "pear"}}</tool_call>') == (
        [{"role": "tool", "content": "4"}],
        False,
    )
    assert shop.asked == ["pear"]
    assert environment.step("more") == ([{"role": "user", "content": "And more?"}], False)
    assert environment.step("end")[1]


def test_without_step_a_turn_that_calls_nothing_ends_the_episode() -> None:
    environment = maker(EnvironmentConfig(name="calculator"), lambda *_: Calculator)()
    assert environment.step("<calculate>6*7</calculate>") == ([{"role": "tool", "content": "42"}], False)
    assert environment.step("#### 42") == ([], True)


def untyped(a):  # type: ignore[no-untyped-def]
    """Nothing.

    Args:
        a: something
    """


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (
            [untyped],
            f"no schema can be made of the tool untyped (test_tools.py:{untyped.__code__.co_firstlineno}): Argument a is missing a "
            "type hint",
        ),
        ([add, add], "two tools have the name add"),
        ([3], "neither a function nor a schema"),
        ([{"type": "function", "function": {"description": "?"}}], "has no name"),
        ([{"name": "price", "parameters": {}}], "no method price"),
    ],
)
def test_tools_that_cannot_be_offered_are_refused(tools: list[Any], words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        tools_of(Kit(*tools), where="environment.name=x")


def test_tools_that_are_no_list_are_refused() -> None:
    kit = Kit()
    kit.tools = "add"  # type: ignore[assignment]
    with pytest.raises(SettingsError, match="make it a list"):
        tools_of(kit, where="here")


def test_the_calculator_computes_what_python_does() -> None:
    """Random expressions, against fractions."""
    random = Random(0)

    def expression(depth: int) -> tuple[str, Fraction]:
        if depth == 0 or random.random() < 0.3:
            number = random.randint(0, 999)
            return str(number), Fraction(number)
        (left, a), (right, b) = expression(depth - 1), expression(depth - 1)
        sign = random.choice("+-*/" if b else "+-*")
        return f"({left} {sign} {right})", {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a / b

    checked = 0
    while checked < 300:
        text, value = expression(3)
        if len(text) <= 100:
            assert calculate(text) == str(value), text
            checked += 1
    assert calculate("2+3*4-10/4") == "23/2"
    assert calculate("-3*-(2-5)") == "-9"


@pytest.mark.parametrize(
    "text", ["", "3+", "(3", "3)", "3 4", "3**4", "__import__('os')", "1/0", "1/(2-2)", "9" * 101, "٣+1"]
)
def test_the_calculator_refuses_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        calculate(text)


def test_a_call_survives_json() -> None:
    """A text in OpenAI's form and in Hermes' form is the same call."""
    arguments = {"key": 'a "quoted" </tool word', "unit": "m"}
    text = f"<tool_call>{json.dumps({'name': 'fetch', 'arguments': arguments})}</tool_call>"
    assert read_calls(text, TOOLS) == [Call("fetch", arguments)]


def test_each_call_is_recorded_with_what_came_of_it() -> None:
    played = WithTools(Kit(), TOOLS)
    assert called_in(played) == ()
    played.step('<add>{"a": 1}</add> <divide>{"a": 1, "b": 0}</divide>')
    played.step("<calculate>3*4")
    played.step("12")
    added, divided, malformed = called_in(played) or ()
    assert added == ToolCall("add")
    line = divide.__code__.co_firstlineno + 7
    assert divided == ToolCall(
        "divide", f"raised ZeroDivisionError: float division by zero (test_tools.py:{line} in divide)"
    )
    assert malformed == ToolCall("", "the call has no </calculate>")
    assert called_in(Kit()) is None, "an environment without tools"
    assert tools_called(played, "<now></now><calculate>1</calculate><now></now><calculate>3") == ["now", "calculate"]
    assert tools_called(Kit(now), "<now></now>") == [], "its tools are not called for it"
