"""Tools in prompts: described by the chat template where it does that, else in the system message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from slimrl.environments.calculator import Calculator
from slimrl.environments.tools import told, tools_of
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
