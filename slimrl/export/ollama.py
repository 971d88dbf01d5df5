"""A Modelfile for Ollama: the weights, the chat template in Ollama's language, the instruction, stops and sampling of the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slimrl.errors import DataError

PROMPT_ROOM = 2048
"""Tokens of the context beside a completion's, for the prompt and for earlier turns."""
CONTEXT_STEP = 1024
Messages = Sequence[dict[str, str]]
SYSTEM, QUESTION, REPLY, AGAIN = (
    "an instruction of the probe",
    "a question of the probe",
    "a reply to it",
    "one more question",
)
"""Texts that no template writes by itself."""


@dataclass(frozen=True)
class Turns:
    """A chat template as the texts between the turns of a conversation. Most templates are no more than that."""

    start: str
    """Before a question that comes first."""
    start_system: str
    """Before a system message, which comes first."""
    system_user: str
    user_assistant: str
    assistant_user: str
    reply: str
    """Behind the last question: where the assistant's text begins."""

    def render(self, messages: Messages) -> str:
        """The prompt of a conversation that ends with a question."""
        text, before = "", ""
        for message in messages:
            role = message["role"]
            between = {
                ("", "system"): self.start_system, ("", "user"): self.start, ("system", "user"): self.system_user,
                ("user", "assistant"): self.user_assistant, ("assistant", "user"): self.assistant_user,
            }  # fmt: skip
            text += between[before, role] + message["content"]
            before = role
        return text + self.reply

    def without_bos(self, bos: str) -> Turns:
        """The same without the token that begins a text, which then comes from the tokenizer."""
        return replace(self, start=self.start.removeprefix(bos), start_system=self.start_system.removeprefix(bos))

    def go(self) -> str:
        """The same as a template of Go's, over Ollama's `.Messages`."""
        return (
            '{{- $before := "" }}{{- range .Messages }}'
            f'{{{{- if eq .Role "system" }}}}{_literal(self.start_system)}{{{{ .Content }}}}'
            '{{- else if eq .Role "user" }}{{- if eq $before "system" }}' + _literal(self.system_user)
            + '{{- else if eq $before "assistant" }}' + _literal(self.assistant_user)
            + "{{- else }}" + _literal(self.start) + "{{- end }}{{ .Content }}"
            '{{- else if eq .Role "assistant" }}' + _literal(self.user_assistant) + "{{ .Content }}{{- end }}"
            "{{- $before = .Role }}{{- end }}" + _literal(self.reply)
        )  # fmt: skip


def _literal(text: str) -> str:
    """A text in a template of Go's, whose trim marks and line breaks then do nothing to it."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def find_turns(render: Callable[[Messages], str]) -> Turns | None:
    """The turns of a template that `render` renders; None for one that is more than texts between turns.

    Checked on conversations with and without an instruction, of one to three questions.
    """
    system, user = {"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}
    reply, again = {"role": "assistant", "content": REPLY}, {"role": "user", "content": AGAIN}
    try:
        start, found_plain, _ = render([user]).partition(QUESTION)
        whole = render([system, user, reply, again])
        start_system, found, rest = whole.partition(SYSTEM)
        system_user, found_user, rest = rest.partition(QUESTION)
        user_assistant, found_reply, rest = rest.partition(REPLY)
        assistant_user, found_again, end = rest.partition(AGAIN)
        turns = Turns(start, start_system, system_user, user_assistant, assistant_user, end)
        talks = [[user], [system, user], [user, reply, again], [system, user, reply, again]]
        talks += [[*talk, reply, user] for talk in talks[2:]]
        alike = all(render(talk) == turns.render(talk) for talk in talks)
    except (DataError, KeyError):
        return None
    return turns if alike and all((found_plain, found, found_user, found_reply, found_again)) else None


@dataclass(frozen=True)
class Modelfile:
    """The parts of a Modelfile."""

    weights: str
    """File name of the GGUF, beside the Modelfile."""
    turns: Turns | None
    """None: Ollama is left to find a template in the GGUF."""
    instruction: str
    stops: Sequence[str]
    temperature: float
    budget: int
    """Tokens of a completion at most."""
    context: int
    """Tokens that the model reads at most, prompt and completion together."""

    @property
    def window(self) -> int:
        """The context to set: Ollama's own may be shorter than a completion, and then forgets the question within it."""
        wanted = -(-(self.budget + PROMPT_ROOM) // CONTEXT_STEP) * CONTEXT_STEP
        return min(self.context, wanted)

    def text(self) -> str:
        """The file. Raises DataError for texts with three quotes in a row, which a Modelfile cannot say."""
        lines = [f"FROM ./{self.weights}"]
        if self.turns is not None:
            lines.append(f"TEMPLATE {_quoted(self.turns.go())}")
        if self.instruction:
            lines.append(f"SYSTEM {_quoted(self.instruction)}")
        lines += [f"PARAMETER stop {_quoted(stop)}" for stop in self.stops]
        sampling = {
            "temperature": f"{self.temperature:g}", "top_p": "1", "top_k": "0", "min_p": "0", "repeat_penalty": "1",
            "num_predict": str(self.budget), "num_ctx": str(self.window),
        }  # fmt: skip
        lines += [f"PARAMETER {name} {value}" for name, value in sampling.items()]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text:
        raise DataError('a Modelfile cannot hold three quotes in a row (""" in the instruction or the chat template)')
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'
