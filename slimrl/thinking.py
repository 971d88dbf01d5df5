"""The part of a completion that is read: all after the thinking, without the end tokens of a stored output.

No other module knows the marks of thinking: styles, the lenient verdict, the case study's rewards and the calls of tools read
what is behind it.
"""

import re

_NAMES = "think|thinking|thought|thoughts|reasoning|seed:think"
_CHANNEL = ("<|channel>", "<channel|>")
"""Gemma 4's marks."""
_MARKS = rf"</?(?:{_NAMES})>|\[/?THINK\]|<\|(?:begin|end)_of_thought\|>|◁/?think▷|{'|'.join(map(re.escape, _CHANNEL))}"
_MARK = re.compile(_MARKS, re.IGNORECASE)
_END_TOKENS = (
    "<|im_end|>", "<|endoftext|>", "</s>", "<eos>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<|end_of_text|>", "<|eom_id|>",
    "<|return|>", "<|eot|>", "<|endofturn|>", "<|end_of_turn|>", "<turn|>", "<|END_OF_TURN_TOKEN|>", "<|end_of_role|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "[EOS]", "[end of text]",
)  # fmt: skip
"""End-of-turn, end-of-text and padding tokens that other programs leave at the end of stored outputs."""


def split(text: str) -> tuple[str, str]:
    """(thinking, rest); the two make up the text, and only the rest is read.

    The rest begins after the last mark that ends thinking, even without a mark that begins it, which the prompt may hold.
    After a beginning without an end, nothing is read.
    """
    end, closes = 0, True
    for mark in _MARK.finditer(text):
        closes = "/" in mark[0] or mark[0].lower().startswith("<|end") or mark[0].lower() == _CHANNEL[1]
        end = mark.end() if closes else end
    return (text[:end], text[end:]) if closes else (text, "")


def is_open(text: str) -> bool:
    """True where thinking begins and does not end, so that nothing of the text is read."""
    return split(f"{text}.")[1] == ""


def is_mark(token: str) -> bool:
    """True for a mark that begins or ends thinking, and nothing else."""
    return bool(_MARK.fullmatch(token))


def opening(prompt: str) -> str:
    """The mark with which a prompt begins the thinking that a completion goes on with, and the white space behind it; empty
    where it does not.
    """
    *_, last = [None, *_MARK.finditer(prompt)]
    if last is None or prompt[last.end() :].strip():
        return ""
    rest = prompt[last.start() :]
    return rest if is_open(rest) else ""


def closed(begun: str, text: str) -> str:
    """A text as the completion behind an `opening`: one without thinking ends it first.

    Text that ends the thinking loses a mark of its own that begins it, which stands in the prompt. Without an opening every text
    stays as it is.
    """
    if not begun:
        return text
    if is_open(begun + text):
        return f"{_end_of(begun.rstrip())}\n\n{text}"
    own = _MARK.match(text.lstrip())
    if own is None or own[0].lower() != begun.rstrip().lower():
        return text
    rest = text.lstrip()[own.end() :]
    return rest.lstrip() if begun[-1].isspace() else rest


def _end_of(mark: str) -> str:
    """The mark that ends what a mark begins."""
    if mark.lower() == _CHANNEL[0]:
        return _CHANNEL[1]
    if mark.lower().startswith("<|begin"):
        return mark.replace("begin", "end", 1)
    return f"{mark[0]}/{mark[1:]}"


def committed(text: str) -> str:
    """The completion after its thinking; empty if the thinking never ends."""
    return split(without_end_tokens(text))[1]


def without_end_tokens(text: str) -> str:
    """The text without the end tokens and the white space at its end."""
    end = len(text.rstrip())
    if end == 0 or text[end - 1] not in ">]":
        return text
    while token := next((token for token in _END_TOKENS if text.endswith(token, 0, end)), ""):
        end -= len(token)
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end]


def ended(text: str) -> str:
    """The text, without its marks of thinking if nothing added to it would be read."""
    return _MARK.sub("", text) if is_open(text) else text
