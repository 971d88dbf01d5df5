"""The note of SlimRL in config.json of a model that it trained, which settings of `auto` follow: how it was asked, and where
its completions ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedModel

from slimrl.terms import Template

KEY = "slimrl_taught"
FILE = f"{KEY}.json"
"""The same beside an adapter, which has no config.json of a model."""


@dataclass(frozen=True)
class Taught:
    """The note on a model; empty for one that SlimRL did not train."""

    style: str = ""
    """Form of answers that `slimrl sft` taught."""
    instruction: str | None = None
    """System message that asked for it."""
    tools: tuple[str, ...] = ()
    """Names of tools that prompts need not describe."""
    plain: bool = False
    """Prompts were plain, whether or not the tokenizer has a chat template."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template besides the messages."""
    stop: tuple[str, ...] | None = None
    """Texts that ended completions; None where that was left to the form of the prompt."""

    def instruction_for(self, style: str) -> str | None:
        """The system message with which this style of answers was taught, if it was."""
        return self.instruction if self.style == style else None

    def prompts_for(
        self, template: Template, arguments: Mapping[str, Any], *, chat: bool
    ) -> tuple[Template, Mapping[str, Any]]:
        """Template and arguments for the settings `task.template` and `task.template_arguments`. `auto` is plain where the model
        was trained on plain prompts; without arguments those of the training hold, unless prompts are plain or the tokenizer has
        no `chat` template.
        """
        if template == "auto" and self.plain:
            template = "plain"
        kept = {} if template == "plain" or not chat else self.arguments
        return template, arguments or kept

    def as_json(self) -> dict[str, Any]:
        """The entries that differ from those of an empty note."""
        empty = asdict(Taught())
        return {key: value for key, value in asdict(self).items() if value != empty[key]}


def read_taught(note: Any) -> Taught:
    """The note as it stands in a file; of what another program wrote there, that which can be read."""
    found = note if isinstance(note, Mapping) else {}

    def texts(key: str) -> tuple[str, ...] | None:
        value = found.get(key)
        return tuple(map(str, value)) if isinstance(value, list | tuple) else None

    style, instruction = (
        value if isinstance(value := found.get(key), str) else None for key in ("style", "instruction")
    )
    given = found.get("arguments")
    arguments = given if isinstance(given, Mapping) else {}
    return Taught(style or "", instruction, texts("tools") or (), found.get("plain") is True, arguments, texts("stop"))


def taught_of(model: PreTrainedModel) -> Taught:
    return read_taught(getattr(model.config, KEY, None))


def note_taught(model: PreTrainedModel, taught: Taught) -> None:
    """Set the note on a model, with which it is saved; an empty one is none."""
    if found := taught.as_json():
        setattr(model.config, KEY, found)
    elif hasattr(model.config, KEY):
        delattr(model.config, KEY)
