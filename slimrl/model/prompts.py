"""From a problem's messages to prompt ids: the tokenizer's chat template where there is one, a plain one otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from slimrl.errors import DataError, SettingsError

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Prompter:
    """Renders prompts; which template it uses is said at the start of every run."""

    tokenizer: Any
    template: Literal["chat", "plain"]
    system_role: bool
    """False where the chat template refuses system messages: their text then opens the user's turn."""

    def text(self, messages: Messages) -> str:
        """The prompt as the model will see it."""
        if self.template == "plain":
            *system, user = [m["content"] for m in messages]
            return "\n\n".join([*system, f"Question: {user}\nAnswer:"])
        turns = list(messages) if self.system_role else fold_system(messages)
        try:
            rendered: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise DataError(f"the tokenizer's chat template fails ({error}); set task.template=plain") from error
        return rendered

    def ids(self, messages: Messages) -> tuple[int, ...]:
        """Prompt ids; a chat template writes its own special tokens, so none are added a second time."""
        plain = self.template == "plain"
        return tuple(self.tokenizer(self.text(messages), add_special_tokens=plain).input_ids)


def make_prompter(tokenizer: Any, template: Literal["auto", "chat", "plain"]) -> Prompter:
    """Decide on the template; raises SettingsError where a chat template is demanded and there is none."""
    if template == "plain" or (template == "auto" and not tokenizer.chat_template):
        return Prompter(tokenizer, "plain", system_role=True)
    if not tokenizer.chat_template:
        raise SettingsError("task.template=chat but the tokenizer has no chat template; set task.template=plain")
    probe = Prompter(tokenizer, "chat", system_role=True)
    try:
        supported = "slimrl-system" in probe.text(
            [{"role": "system", "content": "slimrl-system"}, {"role": "user", "content": "?"}]
        )
    except DataError:
        supported = False
    return Prompter(tokenizer, "chat", system_role=supported)


def fold_system(messages: Messages) -> list[dict[str, str]]:
    """System text moved to the top of the first user turn."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    first, *rest = [m for m in messages if m["role"] != "system"]
    return [{**first, "content": "\n\n".join([*system, first["content"]])}, *rest]
