"""Texts that end a completion, found while it is drawn, however it is split into tokens.

An automaton (Aho and Corasick, 1975) reads the bytes of what is drawn. Its moves over whole tokens are a table, so a decode step
is one look-up a row, on any device, and a text is found in the middle of a token as well as across several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrl.errors import SettingsError

PROBE = "Say 12.5 -- \u00fcber 3\u00d74!\n\nQuestion: a  b"
BYTES = 256


@dataclass(frozen=True)
class StopTexts:
    """Texts, and the automaton that finds the first of them."""

    texts: tuple[str, ...] = ()
    moves: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    """[states, V] long: the state after a token, which is the last one for good once a text was found. Rows begin in state 0."""

    @property
    def found(self) -> int:
        """The state in which a text was found; -1 where there are no texts."""
        return len(self.moves) - 1

    def cut(self, text: str) -> str:
        """The text before the first of them."""
        return text[: min((at for stop in self.texts if (at := text.find(stop)) >= 0), default=len(text))]

    def length(self, ids: tuple[int, ...]) -> int:
        """The number of ids up to the one that completes a text; 0 where none does."""
        state = 0
        for count, after in enumerate(self.moves[:, list(ids)].T.tolist() if self.texts else (), 1):
            state = after[state]
            if state == self.found:
                return count
        return 0


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Id of each special token by its text; the text of completions leaves them out."""
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def make_stop_texts(
    texts: Sequence[str], tokenizer: Any, *, vocabulary: int, form_ids: frozenset[int], device: torch.device
) -> StopTexts:
    """The automaton of some texts over a vocabulary; special tokens count as nothing unless they are in `form_ids`.

    Raises SettingsError for a tokenizer whose tokens are not strings of bytes, and for a text with such a special token in it.
    """
    if not texts:
        return StopTexts()
    silent = [token for token, number in special_tokens(tokenizer).items() if number not in form_ids]
    for text in texts:
        if (token := next((token for token in silent if token in text), None)) is not None:
            raise SettingsError(
                f"rollout.stop: {text!r} holds the special token {token!r}, which is no part of a completion's text, so it would "
                "never be found; give the token alone, or remove it"
            )
    spelled = token_bytes(tokenizer, form_ids)
    for probe in (PROBE, *texts):
        ids = tokenizer(probe, add_special_tokens=False).input_ids
        mine = b"".join(spelled[i] for i in ids).decode("utf-8", "replace")
        if mine.lstrip() != tokenizer.decode(ids, skip_special_tokens=True).lstrip():
            raise SettingsError(
                f"rollout.stop={list(texts)}: this tokenizer decodes {probe!r} otherwise than token by token, so texts cannot be "
                "found while they are drawn; set rollout.stop=[]"
            )
    steps = _steps([text.encode() for text in texts])
    moves = np.zeros((len(steps), vocabulary), dtype=np.int64)
    moves[:, : len(spelled)] = _over_tokens(steps, spelled[:vocabulary])
    moves[:, len(spelled) :] = np.arange(len(steps))[:, None]  # outputs that stand for no token
    return StopTexts(tuple(texts), torch.from_numpy(moves).to(device))


def _steps(patterns: Sequence[bytes]) -> NDArray[np.int64]:
    """[states, 256]: the automaton over bytes. State 0 has read nothing of a pattern, the last one has found one and stays."""
    prefixes = [b"", *sorted({p[:n] for p in patterns for n in range(1, len(p))}, key=len)]
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    found = len(prefixes)
    steps = np.full((found + 1, BYTES), found, dtype=np.int64)
    for prefix, state in number.items():
        for byte in range(BYTES):
            read = prefix + bytes([byte])
            if any(read.endswith(p) for p in patterns):
                continue
            steps[state, byte] = next(number[read[n:]] for n in range(len(read) + 1) if read[n:] in number)
    return steps


def _over_tokens(steps: NDArray[np.int64], tokens: Sequence[bytes]) -> NDArray[np.int64]:
    """[states, tokens]: the automaton after all bytes of each token."""
    lengths = np.array([len(token) for token in tokens])
    order = np.argsort(-lengths, kind="stable")  # so that those which are not yet read to their end come first
    padded = np.zeros((int(lengths.max()), len(tokens)), dtype=np.uint8)
    for column, token in enumerate(order):
        padded[: lengths[token], column] = np.frombuffer(tokens[token], dtype=np.uint8)
    states = np.repeat(np.arange(len(steps))[:, None], len(tokens), axis=1)
    for place, row in enumerate(padded):
        left = int((lengths > place).sum())
        states[:, :left] = steps[states[:, :left], row[:left]]
    moves = np.empty_like(states)
    moves[:, order] = states
    return moves


def token_bytes(tokenizer: Any, form_ids: frozenset[int] = frozenset()) -> list[bytes]:
    """The bytes that each token adds to a text; none for special tokens that are not in `form_ids`.

    Raises SettingsError for a tokenizer of which that is not known.
    """
    kinds = _decoders(tokenizer)
    added = tokenizer.added_tokens_decoder
    alphabet = _byte_alphabet()
    words = {number: token for token, number in tokenizer.get_vocab().items()}
    found = []
    for number in range(max(words) + 1):
        token = words.get(number)
        if number in added:
            silent = added[number].special and number not in form_ids
            found.append(b"" if silent else added[number].content.encode())
        elif token is None:
            found.append(b"")
        elif "ByteLevel" in kinds:
            found.append(b"".join(alphabet.get(character, character.encode()) for character in token))
        elif "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x"):
            found.append(bytes([int(token[3:5], 16)]))
        else:
            found.append(token.replace("\u2581", " ").encode())
    return found


def _decoders(tokenizer: Any) -> set[str]:
    """Kinds of the tokenizer's decoders; raises SettingsError where there is none whose tokens are bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    parts = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = {part["type"] for part in parts}
    if not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
        raise SettingsError(
            "rollout.stop needs a tokenizer whose tokens are strings of bytes (byte-level BPE, or SentencePiece with byte "
            "fallback); set rollout.stop=[]"
        )
    return kinds


def _byte_alphabet() -> dict[str, bytes]:
    """The characters by which byte-level BPE (GPT-2) writes bytes: itself where it is printable, else one from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, BYTES)}
    others = [byte for byte in range(BYTES) if byte not in printable]
    shown = {byte: byte for byte in printable} | {byte: BYTES + i for i, byte in enumerate(others)}
    return {chr(code): bytes([byte]) for byte, code in shown.items()}
