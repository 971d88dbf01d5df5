"""A tokenizer as GGUF has it: its vocabulary, the name of its way of cutting words, the first token and the last ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimrl.errors import DataError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ONE_DIGIT = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{OTHERS}"
"""The pattern of Qwen 2 and 3."""
THREE_DIGITS = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{OTHERS}"
"""The pattern of Llama 3 and OLMo 2."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens in GGUF."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens in GGUF's form."""

    model: str
    """`gpt2` for byte-level BPE, `llama` for SentencePiece's with bytes to fall back on."""
    words: str
    """llama.cpp's name of the way in which text is cut before merges apply."""
    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str]
    """Of byte-level BPE."""
    scores: Sequence[float]
    """Of SentencePiece: the token with the highest is merged first."""
    space_prefix: bool
    """A space is put before a text (SentencePiece)."""


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a fast tokenizer for a model with `size` embeddings.

    Raises DataError for a tokenizer that llama.cpp has no equivalent of.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    table = json.loads(backend.to_str()) if backend is not None else {}
    model = table.get("model", {})
    if model.get("type") != "BPE":
        raise DataError(f"a tokenizer of the kind {model.get('type')} has no form in GGUF that SlimRL writes")
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    pieces = bool(model.get("byte_fallback"))
    if pieces:
        prefix = _space_prefix(table)
        words = "default"
    else:
        _check_text_is_kept(table)
        prefix, words = False, words_name(table)
    tokens, kinds = _tokens(tokenizer, size, pieces=pieces, unknown=model.get("unk_token"))
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    return Vocabulary(
        model="llama" if pieces else "gpt2",
        words=words,
        tokens=tokens,
        kinds=kinds,
        merges=[] if pieces else [f"{left} {right}" for left, right in pairs],
        scores=[-float(ranks.get(token, len(pairs))) for token in tokens] if pieces else [],
        space_prefix=prefix,
    )


def words_name(table: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json; raises DataError where it has none, or is not known here."""
    parts = table.get("pre_tokenizer") or {}
    steps = parts.get("pretokenizers", [parts]) if parts else []
    kinds = [step.get("type") for step in steps]
    whole = kinds[-1:] == ["ByteLevel"] and not steps[-1].get("add_prefix_space")
    if whole and kinds == ["ByteLevel"] and steps[-1]["use_regex"]:
        return "gpt-2"
    if whole and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[-1]["use_regex"]:
        return "smollm"
    if whole and kinds == ["Split", "ByteLevel"] and not steps[-1]["use_regex"]:
        pattern = steps[0].get("pattern", {}).get("Regex")
        if pattern == ONE_DIGIT:
            return "qwen2"
        if pattern == THREE_DIGITS:
            return "llama-bpe" if table["model"].get("ignore_merges") else "dbrx"
    raise DataError(
        f"the tokenizer cuts text in a way ({', '.join(map(str, kinds)) or 'none'}) of which SlimRL does not know llama.cpp's "
        "name; convert the folder of --for transformers with llama.cpp's own script"
    )


def _check_text_is_kept(table: Mapping[str, Any]) -> None:
    """Raises DataError for a normalizer, since llama.cpp applies none to byte-level BPE; NFC, which joins accents, may stay."""
    found = table.get("normalizer") or {}
    kinds = [step.get("type") for step in found.get("normalizers", [found] if found else [])]
    if others := [str(kind) for kind in kinds if kind != "NFC"]:
        raise DataError(
            f"the tokenizer changes text before it cuts it ({', '.join(others)}), and llama.cpp would not, so the model would "
            "read other tokens; use --for transformers"
        )


def _space_prefix(table: Mapping[str, Any]) -> bool:
    """True where the normalizer puts a space first; raises DataError for one that is not SentencePiece's."""
    found = table.get("normalizer") or {}
    steps = found.get("normalizers", [found]) if found else []
    kinds = [step.get("type") for step in steps]
    if kinds not in (["Replace"], ["Prepend", "Replace"]) or steps[-1].get("content") != "\u2581":
        raise DataError(
            "the tokenizer changes text in a way that GGUF cannot say; convert it with llama.cpp's own script"
        )
    return bool(kinds[0] == "Prepend")


def _tokens(tokenizer: Any, size: int, *, pieces: bool, unknown: str | None) -> tuple[list[str], list[int]]:
    """Texts and kinds of `size` tokens; those that stand for nothing are unused."""
    texts = {number: token for token, number in tokenizer.get_vocab().items()}
    if (last := max(texts)) >= size:
        raise DataError(f"the tokenizer has {last + 1} tokens, and the model embeds {size}; give them one size")
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for number in range(size):
        text, kind = texts.get(number), NORMAL
        if text is None:
            text, kind = f"[PAD{number}]", UNUSED
        elif number in added:
            text, kind = added[number].content, CONTROL if added[number].special else USER_DEFINED
        elif pieces and len(text) == 6 and text.startswith("<0x"):
            kind = BYTE
        if pieces and text == unknown:
            kind = UNKNOWN
        tokens.append(text)
        kinds.append(kind)
    return tokens, kinds


def adds_bos(tokenizer: Any, *, plain: bool = False) -> bool:
    """True where a program that runs the model is to put BOS before a prompt: the tokenizer does so, and the prompts that the
    model was trained on, `plain` or of its template, begin with it. A template that writes the token by itself has it removed
    (`Turns.without_bos`).
    """
    bos = [tokenizer.bos_token_id]
    if tokenizer.bos_token_id is None or tokenizer("1 a").input_ids[:1] != bos:
        return False
    if plain or not tokenizer.chat_template:
        return True
    messages = [{"role": "user", "content": "1 a"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return bool(tokenizer(text, add_special_tokens=False).input_ids[:1] == bos)


GGUF_STOPS = 3
"""Stop ids that a GGUF has keys for: the ends of a text, of a turn and of a message."""


def stop_ids_of(folder: Path, tokenizer: Any) -> list[int]:
    """Every id that ends a completion, the tokenizer's own end of a text first."""
    path = folder / "generation_config.json"
    declared = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    ids = [tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])]
    return list(dict.fromkeys(int(i) for i in ids if i is not None))
