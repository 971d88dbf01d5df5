"""Small random models and policies that tests make: real architectures, random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from slimrl.config.schema import TrainConfig
from slimrl.learner.forward import Microbatcher
from slimrl.learner.learner import Learner
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.state import tensors_of
from slimrl.model.loading import adopt
from slimrl.model.policy import Policy
from slimrl.records import Plan

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
WIDE = SHAPE | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
"""Wide enough for the compiled kernels, whatever the width of the processor's vectors."""
FUSIBLE = {
    "wide llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, attention_bias=True, mlp_bias=True, **WIDE)),
    # A window in every layer, and in the second of two; both are shorter than the rows.
    "wide mistral": lambda v: MistralForCausalLM(MistralConfig(vocab_size=v, sliding_window=6, **WIDE)),
    "wide qwen2": lambda v: Qwen2ForCausalLM(
        Qwen2Config(vocab_size=v, use_sliding_window=True, sliding_window=7, max_window_layers=1, **WIDE)
    ),
    # Heads are together wider than the hidden state.
    "wide qwen3": lambda v: Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=v,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=7,
            max_window_layers=1,
            **WIDE | {"head_dim": 64},
        )
    ),
    # With rotary positions of their own in the layer that has a window.
    "wide gemma3": lambda v: Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=v,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=24,
            **WIDE,
        )
    ),
    # Without rotary positions in the second layer.
    "wide smollm3": lambda v: SmolLM3ForCausalLM(SmolLM3Config(vocab_size=v, no_rope_layer_interval=2, **WIDE)),
    "wide olmo2": lambda v: Olmo2ForCausalLM(Olmo2Config(vocab_size=v, **WIDE)),
}
"""Families of which layers are fused where the kernels can be compiled."""


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
        return {**FAMILIES, **FUSIBLE}[family](vocabulary).eval()


def tiny_policy(family: str = "qwen2", vocabulary: int = 61, seed: int = 0) -> Policy:
    return adopt(tiny_model(family, vocabulary, seed), NoTokenizer(), name=family)


def plan_of(config: TrainConfig) -> Plan:
    """The plan of a machine with memory for everything, where settings say `auto`."""
    optimizer = config.optimizer
    return Plan(
        slots=8,
        microbatch_tokens=16384 if optimizer.microbatch_tokens == "auto" else optimizer.microbatch_tokens,
        recompute=optimizer.activation_checkpointing == "on",
        offload=optimizer.reference_offload == "on",
    )


def microbatcher_of(config: TrainConfig) -> Microbatcher:
    return Microbatcher(config, plan_of(config))


def read_state(optimizer: MasterAdamW) -> dict[str, Tensor]:
    """Masters and moments by name; of several owners the leader gets them."""
    return dict(tensors_of(optimizer).items())


def learner_of(policy: Policy, config: TrainConfig, reference: Policy | None = None) -> Learner:
    """A learner for groups whose rewards, where they are told apart, are one called `a`."""
    learner = Learner(policy, config, microbatcher_of(config), reward_weights={"a": 1.0})
    if reference is not None:
        learner.targets = replace(learner.targets, reference=reference)
    return learner


def save_tiny(folder: Path, tokenizer: Path, *, layers: int = 2, hidden: int = 32, seed: int = 0) -> Path:
    """A random Qwen2 with the tokenizer, template and generation config of `tokenizer`, saved as safetensors."""
    config = json.loads((tokenizer / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_window_layers": layers}
    config.pop("layer_types", None)
    config.pop("torch_dtype", None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**config))
    model.generation_config = GenerationConfig.from_pretrained(tokenizer)
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)
    return folder
