"""Modelfiles: chat templates in Ollama's language, and the lines around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from slimrl.errors import DataError
from slimrl.export.ollama import Messages, Modelfile, Turns, find_turns
from slimrl.export.vocabulary import adds_bos
from slimrl.model.prompts import make_prompter
from tests.conftest import SHARED

BUILTIN = Path(__file__).parents[2] / "slimrl" / "builtin"
LLAMA3 = (
    "{{ '<|user|>' if false }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|stop|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
COUNTING = "{% for m in messages %}{{ loop.length ~ ': ' + m['content'] + '\n' }}{% endfor %}"


def renderer(folder: Path, template: str = "") -> Callable[[Messages], str]:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = template or tokenizer.chat_template
    return make_prompter(tokenizer, "auto").text


def talk(*, system: bool, turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": 'Answer in "quotes".'}] if system else []
    for number in range(turns):
        messages += [
            {"role": "user", "content": f"What is {number}+1?"},
            {"role": "assistant", "content": f"{number + 1}"},
        ]
    return messages[:-1]


@pytest.mark.parametrize("template", ["", LLAMA3, NO_SYSTEM])
def test_turns_render_what_the_template_does(template: str) -> None:
    render = renderer(BUILTIN, template)
    turns = find_turns(render)
    assert turns is not None
    for system in (False, True):
        for number in (1, 2, 4):
            messages = talk(system=system, turns=number)
            assert turns.render(messages) == render(messages)


@pytest.mark.parametrize("name", ["qwen2.5-0.5b-instruct", "smollm2-135m-instruct"])
def test_turns_of_real_templates(name: str) -> None:
    folder = SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip("needs the real tokenizers beside the project (shared/data/tokenizers)")
    render = renderer(folder)
    turns = find_turns(render)
    assert turns is not None
    assert turns.start.startswith("<|im_start|>system\nYou are "), "the template's own system message"
    assert "You are" not in turns.start_system
    assert turns.render(talk(system=True, turns=3)) == render(talk(system=True, turns=3))


def test_the_token_that_begins_a_text_is_left_to_ollama() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(BUILTIN))
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.chat_template = "{{ bos_token }}" + LLAMA3
    assert not adds_bos(tokenizer), "text that the template writes, as SmolLM2's <|im_start|>, is only text"
    single = f"{tokenizer.bos_token}:0 $A:0"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair=None, special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    for template, begins in ((LLAMA3, False), ("{{ bos_token }}" + LLAMA3, True)):
        tokenizer.chat_template = template
        assert adds_bos(tokenizer) is begins
        render = make_prompter(tokenizer, "auto").text
        turns = find_turns(render)
        assert turns is not None
        for system in (False, True):
            messages = talk(system=system, turns=2)
            bare = turns.without_bos(tokenizer.bos_token).render(messages)
            assert (tokenizer.bos_token if begins else "") + bare == render(messages)


def test_a_template_that_counts_its_messages_has_no_turns() -> None:
    assert find_turns(renderer(BUILTIN, COUNTING)) is None


def test_a_plain_prompt_has_turns_too() -> None:
    render = make_prompter(AutoTokenizer.from_pretrained(str(BUILTIN)), "plain").text
    turns = find_turns(render)
    assert turns is not None
    assert turns.reply == "\nAnswer:"


TURNS = Turns(
    start="<u>",
    start_system="<s>",
    system_user="</s>\n<u>",
    user_assistant="<a>",
    assistant_user="</a><u>",
    reply="<a>",
)


def test_a_modelfile_says_all_of_a_run() -> None:
    text = Modelfile("m-f16.gguf", TURNS, "Think.\nThen answer.", ["<|end|>", "\nQuestion:"], 0.7, 64, 512).text()
    assert text.splitlines()[0] == "FROM ./m-f16.gguf"
    assert text.endswith(
        'SYSTEM """Think.\nThen answer."""\nPARAMETER stop "<|end|>"\nPARAMETER stop """\nQuestion:"""\nPARAMETER temperature 0.7\n'
        "PARAMETER top_p 1\nPARAMETER top_k 0\nPARAMETER min_p 0\nPARAMETER repeat_penalty 1\nPARAMETER num_predict 64\n"
        "PARAMETER num_ctx 512\n"
    )
    assert '{{ "</s>\\n<u>" }}' in text
    assert text.count('"""') == 6


def test_a_modelfile_without_turns_and_instruction_leaves_them_out() -> None:
    text = Modelfile("m.gguf", None, "", [], 1.0, 8, 512).text()
    assert "TEMPLATE" not in text
    assert "SYSTEM" not in text


def test_three_quotes_cannot_be_said() -> None:
    with pytest.raises(DataError, match="three quotes in a row"):
        Modelfile("m.gguf", None, 'Use """.', [], 1.0, 8, 512).text()


@pytest.mark.parametrize(
    ("budget", "context", "window"), [(4096, 32768, 6144), (4096, 5000, 5000), (8, 512, 512), (2048, 2**31, 4096)]
)
def test_the_context_holds_a_prompt_and_a_whole_completion(budget: int, context: int, window: int) -> None:
    found = Modelfile("m.gguf", None, "", [], 1.0, budget, context)
    assert found.window == window
    assert f"PARAMETER num_ctx {window}\n" in found.text()
