"""Small random models and policies that tests make: real architectures, random weights."""

from __future__ import annotations

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from slimrl.model.loading import Policy, adopt

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "qwen2": lambda v: Qwen2ForCausalLM(Qwen2Config(vocab_size=v, **SHAPE)),
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, **SHAPE)),
    "qwen3": lambda v: Qwen3ForCausalLM(Qwen3Config(vocab_size=v, head_dim=16, **SHAPE)),
    # Windows shorter than the rows, on every second layer, so that local and global layers both matter.
    "gemma3": lambda v: Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=v,
            head_dim=16,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=16,
            **SHAPE,
        )
    ),
}


class NoTokenizer:
    """Stands where a tokenizer is demanded and its text is not looked at."""

    chat_template = None
    eos_token_id = 2
    pad_token_id = 0

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(map(str, ids))


def tiny_model(family: str, vocabulary: int = 61, seed: int = 0) -> PreTrainedModel:
    """A random model; the caller's random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FAMILIES[family](vocabulary).eval()


def tiny_policy(family: str = "qwen2", vocabulary: int = 61, seed: int = 0) -> Policy:
    return adopt(tiny_model(family, vocabulary, seed), NoTokenizer(), name=family)
