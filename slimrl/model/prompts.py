"""From a problem's messages to prompt ids: the tokenizer's chat template where there is one, a plain one otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

from slimrl.errors import DataError, SettingsError
from slimrl.model.control import ControlTokens, Span, control_tokens
from slimrl.model.templates import REPLY, USER_TURN, WITHOUT_TEMPLATE, ChatTemplate, Messages, find_template
from slimrl.records import Turns, turns_of
from slimrl.terms import Template

PRIVATE_USE = range(0xF0000, 0xFFFFD)
"""Code points that no text needs."""
ANSWER = "Answer:"
"""The end of a plain prompt. A space behind it would be a token of its own, which no text has there: vocabularies join a space to
what follows."""
PLAIN_STOP = "\nQuestion:"
"""By which a model that is given a plain prompt goes on to the next one."""
REMEMBERED = 2048
"""Prompts whose ids a prompter keeps: each is asked for when it is measured, and again whenever it is sampled from."""


@dataclass(frozen=True)
class Prompter:
    """Renders prompts with one template; every run names it at its start."""

    tokenizer: Any
    chat: ChatTemplate | None
    """None: the plain template."""
    control: ControlTokens
    form_ids: frozenset[int]
    """Control tokens that belong to the form of an answer, or begin or end thinking: in completions they are text."""
    turn_end: int | None
    """The token with which the chat template ends an assistant's turn, where there is one."""
    tool_text: str = ""
    """What the system message says of tools, where the chat template does not describe them."""

    @property
    def system_role(self) -> bool:
        """False where the chat template takes no system messages: their text then opens the user's turn."""
        return self.chat is None or self.chat.system_role

    @property
    def date(self) -> str:
        """The time that the template sees, in ISO format; empty where it does not read the clock."""
        return self.chat.now.isoformat(timespec="seconds") if self.chat and self.chat.reads_clock else ""

    def text(self, messages: Messages) -> str:
        """The prompt as the model will see it; raises DataError where the template leaves a message out, or fails."""
        messages = self._with_tools(messages)
        if self.chat is None:
            return plain_text(messages)
        rendered = self.chat.render(messages if self.chat.system_role else fold_system(messages))
        squeezed = "".join(rendered.split())  # templates trim white space
        for turn in messages:
            if turn["content"].strip() not in rendered and "".join(turn["content"].split()) not in squeezed:
                what, change = "instruction", "change task.instruction"
                if turn["role"] != "system":
                    what = "question" if turn["role"] == "user" else "example's answer"
                    change = "reword it, remove that row"
                raise DataError(
                    f"the tokenizer's chat template leaves the {what} {turn['content'][:60]!r} out of its prompt, or changes "
                    f"it; {change}, or {WITHOUT_TEMPLATE}"
                )
        return rendered

    def _with_tools(self, messages: Messages) -> Messages:
        if not self.tool_text:
            return messages
        first, rest = messages[0], messages[1:]
        if first["role"] != "system":
            return [{"role": "system", "content": self.tool_text}, *messages]
        return [{**first, "content": f"{first['content']}\n\n{self.tool_text}"}, *rest]

    def describing(self, tools: Sequence[Mapping[str, Any]]) -> Prompter | None:
        """The prompter whose chat template describes tools, given as JSON schemas; None where the template does not do that."""
        if self.chat is None or not tools:
            return None
        chat = replace(self.chat, arguments={**self.chat.arguments, "tools": [dict(tool) for tool in tools]})
        try:
            rendered = chat.render([USER_TURN])
        except DataError:
            return None
        named = all(tool["function"]["name"] in rendered for tool in tools)
        return replace(self, chat=chat) if named and USER_TURN["content"] in rendered else None

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The text of a turn that calls a tool, as the chat template writes it; empty where it writes none."""
        if self.chat is None:
            return ""
        function = {"name": name, "arguments": dict(arguments)}
        turn: dict[str, Any] = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": function}],
        }
        try:
            before, whole = self.chat.render([USER_TURN]), self.chat.render([USER_TURN, turn], reply=False)
        except DataError:
            return ""
        end = self.tokenizer.decode([self.turn_end]) if self.turn_end is not None else ""
        written = whole[len(before) :] if whole.startswith(before) else ""
        return written.partition(end)[0] if end else written

    def ids(self, messages: Messages) -> tuple[int, ...]:
        """Prompt ids. A chat template writes its own special tokens, so none are added a second time. A question, or an earlier
        turn, that spells a control token is encoded as text.

        Raises DataError as `text` and `ControlTokens.encode` do.
        """
        return self._remembered(turns_of(messages))

    @cached_property
    def _remembered(self) -> Callable[[Turns], tuple[int, ...]]:
        return lru_cache(REMEMBERED)(self._encoded)

    def _encoded(self, turns: Turns) -> tuple[int, ...]:
        messages = [{"role": role, "content": content} for role, content in turns]
        text, plain = self.text(messages), self.chat is None
        if any(self.control.spelled.search(content) for role, content in turns if role != "system"):
            ids = self.control.encode(text, self._data_spans(messages, text), add_special_tokens=plain)
        else:
            ids = tuple(self.tokenizer(text, add_special_tokens=plain).input_ids)
        return self._without_eos(ids, text) if plain else ids

    def following_ids(self, messages: Messages) -> tuple[int, ...]:
        """Ids that follow the end of a turn of the policy: these messages, and the beginning of its next turn.

        They are those that the template writes behind any such turn, so ids before them stay as they were drawn, whatever the
        template would make of earlier turns. Messages of the role `tool` become one of the user's where the template does not
        take them as they are. Raises DataError as `text` and `ControlTokens.encode` do.
        """
        if self._takes_tools or all(turn["role"] != "tool" for turn in messages):
            return self._following(messages)
        joined: list[dict[str, str]] = []
        for turn in messages:
            if turn["role"] == "tool" and joined and joined[-1]["role"] == "user":
                joined[-1]["content"] += f"\n{turn['content']}"
            else:
                joined.append({**turn, "role": "user"})
        return self._following(joined)

    @cached_property
    def _takes_tools(self) -> bool:
        """True where the template writes messages of a tool as they are, two in a row as well."""
        try:
            self._following([{"role": "tool", "content": '{"a": "b"}\nand more'}, {"role": "tool", "content": "c"}])
        except DataError:
            return False
        return True

    @property
    def drops_thinking(self) -> bool:
        """True where the template leaves the thinking of turns before a user's message out."""
        thought = {"role": "assistant", "content": f"<think>\n{REPLY}\n</think>\n\nYes"}
        try:
            return self.chat is not None and REPLY not in self.chat.render([USER_TURN, thought, USER_TURN])
        except DataError:
            return False

    def _following(self, messages: Messages) -> tuple[int, ...]:
        whole: Messages = [USER_TURN, {"role": "assistant", "content": REPLY}, *messages]
        text = self.text(whole)
        begin = text.index(REPLY, text.index(USER_TURN["content"])) + len(REPLY)
        if self.turn_end is not None:
            end = self.tokenizer.decode([self.turn_end])
            begin = text.index(end, begin) + len(end)
        rest, spans = text[begin:], []
        if any(self.control.spelled.search(turn["content"]) for turn in messages):
            spans = [(a - begin, b - begin) for a, b in self._data_spans(whole, text) if a >= begin]
        return self.control.encode(rest, spans, add_special_tokens=False) if spans else self._plain_ids(rest)

    def _plain_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def completion_ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids with which a model would write each text, the stop token not included; behind a plain prompt with a space first, as
        base models go on.
        """
        if not texts:
            return []
        texts = [text if not text or text[0].isspace() else f"{self._lead}{text}" for text in texts]
        encoded = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        return [
            self.control.encode(text, [(0, len(text))], spare=self.form_ids, add_special_tokens=False)
            if self.control.spelled.search(text)
            else tuple(ids)
            for text, ids in zip(texts, encoded, strict=True)
        ]

    @cached_property
    def _lead(self) -> str:
        """The space behind `Answer:` of a plain prompt; empty with a chat template, and where the tokenizer begins every text
        with one by itself, as those of SentencePiece do.
        """
        whole, space = self._plain_ids(f"{ANSWER} 1"), self._plain_ids(" 1")
        return " " if self.chat is None and whole == self._plain_ids(ANSWER) + space else ""

    def check(self, completion: str) -> None:
        """Raises DataError where `completion_ids` does for a text."""
        if self.control.spelled.search(completion):
            self.completion_ids([completion])

    def check_system(self, messages: Messages) -> None:
        """Raises DataError where a system message of the data spells a control token, which would be read as one."""
        for turn in messages:
            if turn["role"] == "system" and (spelled := self.control.spelled.search(turn["content"])):
                raise DataError(f"the system message of this row spells the control token {spelled[0]!r}; remove it")

    def misses_bos(self, messages: Messages) -> bool:
        """True where the tokenizer begins a text with BOS by itself, and the chat template leaves it out of this prompt."""
        bos = self.tokenizer.bos_token_id
        if self.chat is None or bos is None or bos not in self.tokenizer("1 a").input_ids[:1]:
            return False
        return self.ids(messages)[:1] != (bos,)

    def _data_spans(self, messages: Messages, text: str) -> list[Span]:
        """The places of what the data says in the rendered text, found by marks around it in a second rendering."""
        opening, closing = islice((chr(code) for code in PRIVATE_USE if chr(code) not in text), 2)

        def marked(turn: Mapping[str, str]) -> Mapping[str, str]:
            core = turn["content"].strip()
            inside = turn["content"].replace(core, f"{opening}{core}{closing}", 1)
            return turn if turn["role"] == "system" else {**turn, "content": inside}

        parts = self.text([marked(turn) for turn in messages]).split(opening)
        spans, at = [], len(parts[0])
        for part in parts[1:]:
            inside, _, after = part.partition(closing)
            spans.append((at, at + len(inside)))
            at += len(inside) + len(after)
        if "".join(parts).replace(closing, "") != text:
            raise DataError(
                f"the question {messages[-1]['content'][:60]!r} spells a control token, and the tokenizer's chat template "
                f"treats it differently for that; remove that row, or {WITHOUT_TEMPLATE}"
            )
        return spans

    def _without_eos(self, ids: tuple[int, ...], text: str) -> tuple[int, ...]:
        """The ids without the EOS that some tokenizers put at the end of every text: a prompt is continued."""
        eos = self.tokenizer.eos_token_id
        if eos is None or ids[-1:] != (eos,):
            return ids
        own = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        return ids if own[-1:] == (eos,) else ids[:-1]


def make_prompter(
    tokenizer: Any,
    template: Template,
    *,
    arguments: Mapping[str, Any] | None = None,
    now: datetime | None = None,
    form: str = "",
) -> Prompter:
    """Choose the template by the setting `task.template`, and try it out.

    Args:
        arguments: further arguments of the chat template.
        now: the time that the template sees; None for the present time.
        form: the form of an answer without an answer in it; its special tokens stay in the text of completions.

    Raises SettingsError where a chat template is demanded and there is none, or arguments that nothing reads are given, and
    SettingsError or DataError for a template that cannot be used.
    """
    arguments = arguments or {}
    chat = None
    if template == "chat" and not tokenizer.chat_template:
        raise SettingsError(f"task.template=chat but the tokenizer has no chat template; {WITHOUT_TEMPLATE}")
    if template != "plain" and tokenizer.chat_template:
        chat = find_template(tokenizer, arguments=arguments, now=now or datetime.now())
    elif arguments:
        raise SettingsError(
            "task.template_arguments has no effect on the plain template; remove it (task.template_arguments={})"
        )
    control = control_tokens(tokenizer, chat.source if chat else "")
    turn_end = chat.turn_end() if chat else None
    return Prompter(tokenizer, chat, control, form_ids=control.spelled_by(form), turn_end=turn_end)


def plain_text(messages: Messages) -> str:
    """The prompt without a chat template; what an assistant said stands behind `Answer:` and a space, which may be its own."""
    plain = "\n\n".join(turn["content"] for turn in messages if turn["role"] == "system")
    for index, turn in enumerate(messages):
        if turn["role"] in ("user", "tool"):
            plain += f"{chr(10) * 2 if index else ''}Question: {turn['content']}\n{ANSWER}"
        elif turn["role"] == "assistant":
            plain += turn["content"] if turn["content"][:1].isspace() else f" {turn['content']}"
    return plain


def fold_system(messages: Messages) -> list[dict[str, str]]:
    """Messages with the system text at the top of the first user turn, for a template that takes no system message."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    first, *rest = [dict(m) for m in messages if m["role"] != "system"]
    return [{**first, "content": "\n\n".join([*system, first["content"]])}, *rest]
