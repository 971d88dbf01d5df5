"""Encoding of text from data: where a question or a solution spells a control token, it stays text.

Everything else is encoded exactly as the tokenizer encodes it, so prompts without such text are those of
`apply_chat_template`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slimrl.errors import DataError

Span = tuple[int, int]
"""The first character, and the first one after it that is not included."""


@dataclass(frozen=True)
class ControlTokens:
    """The tokens of a tokenizer that a model reads as marks, such as the end of a turn."""

    tokenizer: Any
    ids: Mapping[int, str]
    """Id to text."""

    @cached_property
    def spelled(self) -> re.Pattern[str]:
        """Finds the text of any of them."""
        # Some tokenizers have thousands of them, nearly all with the same first character: the rest of the pattern is tried
        # only there. Tokens may match after normalization, so case is ignored; a match that is no token changes nothing.
        first = "".join(sorted({re.escape(token[0]) for token in self.ids.values()}))
        pattern = f"(?=[{first}])(?:{'|'.join(map(re.escape, self.ids.values()))})" if self.ids else r"(?!)"
        return re.compile(pattern, re.IGNORECASE)

    @cached_property
    def _splitting(self) -> Any:
        """A tokenizer of its own: `split_special_tokens` changes one, in which other threads encode meanwhile."""
        return deepcopy(self.tokenizer)

    def spelled_by(self, text: str) -> frozenset[int]:
        """The ids whose text occurs in `text`."""
        return frozenset(i for i, token in self.ids.items() if token in text)

    def encode(
        self, text: str, spans: Sequence[Span], *, spare: frozenset[int] = frozenset(), add_special_tokens: bool
    ) -> tuple[int, ...]:
        """Ids of `text`, in which a control token within `spans` is written as text, unless its id is in `spare`.

        Raises DataError where the tokenizer cannot do that.
        """
        if not self.tokenizer.is_fast:
            start = text[slice(*spans[0])] if spans else text
            raise DataError(
                f"{start[:60]!r} spells a control token, which this tokenizer (it has no tokenizer.json) cannot "
                "take as text; remove it from the data"
            )
        encoded = self.tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        ids: list[int] = []
        for token, (start, stop) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            foreign = token in self.ids and token not in spare and any(start < b and a < stop for a, b in spans)
            ids += self._as_text(text[start:stop]) if foreign else [token]
        return tuple(ids)

    def _as_text(self, token: str) -> list[int]:
        """Ids of a control token's text."""

        def encode(text: str) -> list[int]:
            return list(self._splitting(text, add_special_tokens=False, split_special_tokens=True).input_ids)

        # after a line break, since some tokenizers put a blank before the first character of a text
        before, both = encode("\n"), encode("\n" + token)
        ids = both[len(before) :] if both[: len(before)] == before else encode(token)
        if self.ids.keys() & set(ids):  # not marked as special, so it is found again: one character at a time
            ids = [i for character in token for i in encode(character)]
        if self.ids.keys() & set(ids):
            raise DataError(
                f"the data spells {token!r}, which the tokenizer only knows as a control token; remove it from the data"
            )
        return ids


def control_tokens(tokenizer: Any, template: str) -> ControlTokens:
    """Special tokens, and added tokens that the chat template writes or that are spelled like `<|this|>`."""
    ids = {
        i: text
        for i, token in tokenizer.added_tokens_decoder.items()
        if (text := token.content).strip()
        and (token.special or text.startswith("<|") or (text in template and not text.isalnum()))
    }
    return ControlTokens(tokenizer, ids)
