"""Tools in prompts: described by the chat template where it does that, else in the system message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from slimrl.environments.calculator import Calculator
from slimrl.environments.tools import Call, read_calls, told, tools_of
from slimrl.model.loading import BUILTIN
from slimrl.model.prompts import make_prompter
from tests.model.test_prompts import TURNS, characters
from tests.model.test_prompts import real as real

TOOLS = tools_of(Calculator(), where="here")
SCHEMAS = [tool.schema for tool in TOOLS]
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+3?"}]
READS_TOOLS = "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}" + TURNS


def test_a_template_that_reads_tools_describes_them() -> None:
    plain = make_prompter(characters(READS_TOOLS), "auto")
    described = plain.describing(SCHEMAS)
    assert described is not None
    text = described.text(ASKED)
    assert text.startswith('<tools>{"type": "function"')
    assert text.endswith(plain.text(ASKED))
    answer = [{"role": "tool", "content": "5"}]
    assert described.following_ids(answer) == plain.following_ids(answer)


CALLS = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}CALL{% endfor %}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("<tool_call>{{ c['function'] | tojson }}</tool_call>", True),
        (
            "{\"name\": {{ c['function']['name'] | tojson }}, \"parameters\": {{ c['function']['arguments'] | tojson }}}",
            True,
        ),
        ("[TOOL_CALLS][{{ c['function'] | tojson }}]", False),
        ("", False),
    ],
)
def test_the_form_of_a_call_in_a_template(form: str, read: bool) -> None:
    call = make_prompter(characters(CALLS.replace("CALL", form)), "auto").call("calculate", {"expression": "1"})
    assert (read_calls(call, TOOLS) == [Call("calculate", {"expression": "1"})]) == read


ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}<turn>{{ m['role'] }}\n{{ m['content'] }}<eot>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
AS_JSON = TURNS.replace("m['content']", "(m['content'] | tojson if m['role'] == 'tool' else m['content'])")


@pytest.mark.parametrize("template", [ALTERNATING, AS_JSON])
def test_answers_of_tools_become_one_message_of_the_users(template: str) -> None:
    """Whatever they say, where the template does not take them as they are."""
    prompter = make_prompter(characters(template), "auto")
    for content in ("5", '{"a": 1}\n'):
        ids = prompter.following_ids([{"role": "tool", "content": content}, {"role": "tool", "content": "6"}])
        text = prompter.tokenizer.decode(ids)
        assert text == f"\n<turn>user\n{content}\n6<eot>\n<turn>model\n"


def test_a_template_that_does_not_read_tools_is_found() -> None:
    for tokenizer in (characters(TURNS), AutoTokenizer.from_pretrained(BUILTIN)):
        assert make_prompter(tokenizer, "auto").describing(SCHEMAS) is None
    assert make_prompter(characters(READS_TOOLS), "plain").describing(SCHEMAS) is None


@pytest.mark.parametrize("messages", [ASKED, ASKED[1:]])
@pytest.mark.parametrize("template", ["auto", "plain"])
def test_a_text_describes_tools_in_the_system_message(messages: list[dict[str, str]], template: Any) -> None:
    prompter = make_prompter(AutoTokenizer.from_pretrained(BUILTIN), template)
    text = replace(prompter, tool_text=told(TOOLS)).text(messages)
    assert text.count(told(TOOLS)) == 1
    assert text.index(told(TOOLS)) < text.index("What is 2+3?")
    assert ("Be brief.\n\nYou can call" in text) == (messages is ASKED)


def test_real_templates(real: Any) -> None:
    """Qwen2.5 describes tools, and SmolLM2 does not; with either the ids between turns are those without tools."""
    prompter = make_prompter(real, "auto")
    described = prompter.describing(SCHEMAS)
    reads = "tools" in real.get_chat_template()
    assert (described is not None) == reads
    if described is not None:
        text = described.text(ASKED)
        assert '{"type": "function", "function": {"name": "calculate"' in text
        assert "Be brief." in text
        answer = [{"role": "tool", "content": "5"}]
        assert described.following_ids(answer) == prompter.following_ids(answer)
