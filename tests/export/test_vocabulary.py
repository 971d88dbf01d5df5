"""Tokenizers in GGUF's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from slimrl.errors import DataError
from slimrl.export.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, vocabulary_of, words_name
from tests.conftest import SHARED

BUILTIN = Path(__file__).parents[2] / "slimrl" / "builtin"


def test_the_built_in_vocabulary() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(BUILTIN))
    found = vocabulary_of(tokenizer, 620)
    assert (found.model, found.words) == ("gpt2", "qwen2")
    assert found.tokens[4] == "<|end|>"
    assert [*found.kinds[:5]] == [CONTROL] * 5
    assert found.tokens[616:] == ["[PAD616]", "[PAD617]", "[PAD618]", "[PAD619]"]
    assert [*found.kinds[616:]] == [UNUSED] * 4
    assert found.kinds[100] == NORMAL
    assert found.merges[:2] == ["# #", "i n"]
    with pytest.raises(DataError, match="has 616 tokens, and the model embeds 600"):
        vocabulary_of(tokenizer, 600)


@pytest.mark.parametrize(("name", "words"), [("qwen2.5-0.5b-instruct", "qwen2"), ("smollm2-135m-instruct", "smollm")])
def test_words_of_real_tokenizers(name: str, words: str) -> None:
    folder = SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip("needs the real tokenizers beside the project (shared/data/tokenizers)")
    assert words_name(json.loads((folder / "tokenizer.json").read_text())) == words
    # transformers cuts SmolLM2's texts as GPT-2's, which gives equal tokens: no token of it holds a digit and more
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert vocabulary_of(tokenizer, len(tokenizer)).words == ("gpt-2" if words == "smollm" else words)


def test_a_way_of_cutting_words_that_is_not_known_is_refused() -> None:
    table: dict[str, Any] = {"pre_tokenizer": {"type": "Whitespace"}, "model": {}}
    with pytest.raises(DataError, match=r"cuts text in a way \(Whitespace\)"):
        words_name(table)


@pytest.mark.parametrize(
    ("normalizer", "named"),
    [
        (normalizers.Lowercase(), "Lowercase"),
        (normalizers.Replace("a", "b"), "Replace"),
        (normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]), "Strip"),
        (normalizers.NFKC(), "NFKC"),
        (normalizers.NFC(), ""),
        (normalizers.Sequence([normalizers.NFC()]), ""),
    ],
)
def test_a_normalizer_that_llama_cpp_would_not_apply_is_refused(normalizer: Any, named: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(BUILTIN))
    tokenizer.backend_tokenizer.normalizer = normalizer
    if named:
        with pytest.raises(DataError, match=rf"changes text before it cuts it \({named}\)"):
            vocabulary_of(tokenizer, 620)
    else:
        assert vocabulary_of(tokenizer, 620).words == "qwen2"


def pieces() -> PreTrainedTokenizerFast:
    """A small tokenizer of SentencePiece's kind, with a token for each byte."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Replace(" ", "\u2581")
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special)
    inner.train_from_iterator(["seven and seven are fourteen, two and two are four"] * 3, trainer)
    table = json.loads(inner.to_str())
    vocabulary = table["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(table)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def test_pieces_with_bytes_have_scores_in_the_order_of_merges() -> None:
    tokenizer = pieces()
    found = vocabulary_of(tokenizer, len(tokenizer))
    assert (found.model, found.merges, found.space_prefix) == ("llama", [], False)
    assert found.kinds[0] == UNKNOWN
    assert [*found.kinds].count(BYTE) == 256
    scores = {token: found.scores[number] for number, token in enumerate(found.tokens)}
    merged = [token for token in found.tokens if len(token) > 1 and not token.startswith("<")]
    assert len(merged) > 5
    assert [scores[token] for token in merged] == [-float(n) for n in range(len(merged))]
