"""A tokenizer's chat template: choosing it, giving it messages in its form, and stopping its clock.

A template may read the clock (Llama 3.2 writes today's date). Prompts must not depend on the day on which a run is
resumed or evaluated, so a run fixes the time once and every rendering uses it.
"""

from __future__ import annotations

import inspect
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from slimrl.errors import DataError, SettingsError

Messages = Sequence[Mapping[str, str]]
SYSTEM_TURN = {"role": "system", "content": "an instruction of the probe"}
USER_TURN = {"role": "user", "content": "a question of the probe"}
REPLY = "a reply to the probe"
"""Texts that no template writes by itself."""
OURS = ("messages", "slimrl_clock", "strftime_now", "raise_exception")
"""Names that a template gets from SlimRL or transformers, in addition to the parameters of `apply_chat_template`."""
RENDERINGS = 16
"""Renderings of the same messages, which must agree: a template that draws at random passes with a chance of at most 2^-15."""
WITHOUT_TEMPLATE = "set task.template=plain"

# A macro of the template's own hides transformers' function of this name. Arguments of a template are plain data, so the
# texts of all directives come as a mapping; "%%" stands aside while the others are replaced. The line break behind the
# macro is removed by Jinja (trim_blocks), so that the template still begins at the beginning of a line.
FROZEN_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set found = namespace(text=format.replace('%%', '\\0')) -%}"
    "{%- for directive, text in slimrl_clock.items() if directive in found.text -%}"
    "{%- set found.text = found.text.replace(directive, text) -%}{%- endfor -%}"
    "{{- found.text.replace('\\0', '%') -}}{%- endmacro %}\n"
)


@dataclass(frozen=True)
class ChatTemplate:
    """A template, ready to render."""

    tokenizer: Any
    source: str
    """Jinja."""
    arguments: Mapping[str, Any]
    """Given in addition to the messages."""
    now: datetime
    """The time that it sees, a local time without a zone."""
    parts: bool = False
    """Content goes in as a list with one part, `{"type": "text", "text": ...}`."""
    system_role: bool = True
    """False where a system message fails or is left out: its text then opens the user's turn."""

    @property
    def reads_clock(self) -> bool:
        """True where renderings depend on `now`."""
        return "strftime_now" in self.source

    def render(self, messages: Messages, *, reply: bool = True) -> str:
        """The text of a conversation; with `reply` it ends where the assistant's turn begins.

        Raises DataError for any error of the template.
        """
        taken: list[dict[str, Any]] = [dict(message) for message in messages]
        if self.parts:
            taken = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in taken]
        clock = {"slimrl_clock": self._clock} if self.reads_clock else {}
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                taken,
                chat_template=(FROZEN_CLOCK if self.reads_clock else "") + self.source,
                tokenize=False,
                add_generation_prompt=reply,
                **clock,
                **self.arguments,
            )
        except Exception as error:  # a template can raise what Python can
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DataError(f"the tokenizer's chat template fails ({said}); {WITHOUT_TEMPLATE}") from error
        return rendered

    @cached_property
    def _clock(self) -> dict[str, str]:
        """The text of each strftime directive in the template, or of all of them where it writes none out."""
        every = [f"%{flag}{letter}" for flag in ("", *"-_0^#EO") for letter in string.ascii_letters]
        directives = [directive for directive in every if directive in self.source] or every
        texts = {directive: _strftime(self.now, directive) for directive in directives}
        return {directive: text for directive, text in texts.items() if text != directive}

    def turn_end(self) -> int | None:
        """The special token that follows an assistant's text, or None where there is none, or no text."""
        try:
            rendered = self.render([USER_TURN, {"role": "assistant", "content": REPLY}], reply=False)
        except DataError:  # prompts need no assistant's turn
            return None
        _, found, rest = rendered.rpartition(REPLY)
        if not found:
            return None
        after = self.tokenizer(rest.lstrip(" "), add_special_tokens=False).input_ids[:1]
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return after[0] if {*after} & (special | {*self.tokenizer.all_special_ids}) else None


def find_template(tokenizer: Any, *, arguments: Mapping[str, Any], now: datetime) -> ChatTemplate:
    """The default template of a tokenizer that has one, tried out.

    Raises SettingsError for a set of templates without a default and for arguments that it does not read, DataError for
    one that fails, that leaves a question out of its prompt, or that renders the same messages in several ways.
    """
    try:
        source = str(tokenizer.get_chat_template())
    except ValueError:
        named = ", ".join(sorted(tokenizer.chat_template)) if isinstance(tokenizer.chat_template, dict) else "none"
        raise SettingsError(
            f"the tokenizer's chat templates ({named}) have no default; name one of them default, or {WITHOUT_TEMPLATE}"
        ) from None
    _check_arguments(tokenizer, source, arguments)
    found = _try_out(ChatTemplate(tokenizer, source, arguments, now))
    turns = [SYSTEM_TURN, USER_TURN] if found.system_role else [USER_TURN]
    if len({found.render(turns) for _ in range(RENDERINGS)}) > 1:
        raise DataError(
            "the tokenizer's chat template renders the same messages in several ways (it draws at random), so no run could "
            f"be repeated; {WITHOUT_TEMPLATE}"
        )
    return found


def _try_out(template: ChatTemplate) -> ChatTemplate:
    """The template with the form of content and the place of the instruction that lose nothing."""
    first: DataError | None = None
    for turns in ([SYSTEM_TURN, USER_TURN], [USER_TURN]):
        for parts in (False, True):
            tried = replace(template, parts=parts, system_role=len(turns) == 2)
            try:
                rendered = tried.render(turns)
            except DataError as error:
                first = first or error
                continue
            shown = all(turn["content"] in rendered for turn in turns)
            # a template that takes text writes a list of parts as Python does
            if shown and not (parts and ("'type'" in rendered or '"type"' in rendered)):
                return tried
    if first is not None:
        raise first
    raise DataError(
        f"the tokenizer's chat template leaves the question out of the prompt; correct the template, or {WITHOUT_TEMPLATE}"
    )


def _check_arguments(tokenizer: Any, source: str, arguments: Mapping[str, Any]) -> None:
    """Raises SettingsError for arguments that the template does not read, and for those that SlimRL sets."""
    own = {*inspect.signature(tokenizer.apply_chat_template).parameters, *OURS}
    for name in arguments:
        if name in own:
            raise SettingsError(
                f"task.template_arguments.{name} is not an argument of chat templates that can be set; remove it"
            )
        if not re.search(rf"\b{re.escape(name)}\b", source):
            raise SettingsError(
                f"task.template_arguments.{name} has no effect: the tokenizer's chat template does not read {name}; "
                "correct the name, or remove it (task.template_arguments={})"
            )


def _strftime(now: datetime, directive: str) -> str:
    try:
        return now.strftime(directive)
    except ValueError:  # not every platform knows every directive
        return directive
