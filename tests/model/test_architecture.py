"""What is accepted computes what the model's own attention computes; what is refused is refused for its true reason."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from slimrl.errors import SettingsError
from slimrl.model.architecture import context_of
from slimrl.model.attention import CausalRows, UnsupportedAttentionError, attend
from slimrl.model.loading import adopt
from slimrl.model.policy import cost_of
from slimrl.model.precision import in_float32
from slimrl.records import Completion
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from tests.tiny import NoTokenizer, tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
MIXED = ["sliding_attention", "full_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WINDOWS = {"sliding_window": 6, "layer_types": MIXED, "head_dim": 16}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12,
    "v_head_dim": 10, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 24,
}  # fmt: skip
GEMMA4 = {
    "head_dim": 16, "global_head_dim": 32, "sliding_window": 6, "num_hidden_layers": 4, "layer_types": MIXED * 2,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 61, "num_kv_shared_layers": 2,
}  # fmt: skip

ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}),
    "qwen3 with experts": ("qwen3_moe", {**GROUPED, **EXPERTS}),
    "qwen2 with experts": ("qwen2_moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 24}),
    "llama 3 rope": ("llama", {**GROUPED, "rope_parameters": LLAMA3_ROPE}),
    "llama yarn rope": ("llama", {**GROUPED, "rope_parameters": YARN_ROPE}),
    "llama with odd heads": ("llama", {**GROUPED, "hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 6}),
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4}),
    "gemma": ("gemma", {**GROUPED, "head_dim": 16}),
    "gemma 3": ("gemma3_text", {**GROUPED, **WINDOWS}),
    "gemma 3n": (
        "gemma3n_text",
        {
            **GROUPED, **WINDOWS, "num_hidden_layers": 4, "layer_types": MIXED * 2, "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 61, "altup_num_inputs": 2, "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 4,
        },
    ),
    "gemma 4, heads of two widths and shared keys": ("gemma4_text", {**GROUPED, **GEMMA4}),
    "olmo": ("olmo", GROUPED),
    "olmo 2": ("olmo2", GROUPED),
    "olmo 3": ("olmo3", {**GROUPED, "sliding_window": 6, "layer_types": MIXED}),
    "smollm3": ("smollm3", {**GROUPED, "no_rope_layers": [1, 0]}),
    "gpt-2": ("gpt2", {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt-neox": ("gpt_neox", SIZES),
    "opt": ("opt", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("phi", SIZES),
    "phi 3, queries to values in one product": ("phi3", {**GROUPED, "partial_rotary_factor": 0.5}),
    "starcoder 2": ("starcoder2", {**GROUPED, "sliding_window": None}),
    "glm": ("glm", {**GROUPED, "head_dim": 8}),
    "ernie 4.5": ("ernie4_5", {**GROUPED, "head_dim": 16}),
    "exaone 4": ("exaone4", {**GROUPED, "sliding_window": 6, "layer_types": MIXED}),
    "helium": ("helium", {**GROUPED, "head_dim": 8}),
    "deepseek v3, latent attention": ("deepseek_v3", {**SIZES, **LATENT}),
}  # fmt: skip

MAMBA = {"mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
STATE = r"(recurrent state|convolutions over tokens) \(.*does not carry from token to token"
BY_ITSELF = "computes attention by itself in 2 of 2 layers"
SINKS = "passes s_aux to attention"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "falcon-h1": ("falcon_h1", {**GROUPED, **MAMBA, "mamba_d_ssm": 64, "head_dim": 8}, STATE),
    "bamba": ("bamba", {**GROUPED, **MAMBA, "attn_layer_indices": [1]}, STATE),
    "lfm2": ("lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}, STATE),
    "mamba": ("mamba", {**SIZES, "state_size": 4, "use_mambapy": False}, STATE),
    "mamba 2": ("mamba2", {**SIZES, "state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8}, STATE),
    "zamba 2": (
        "zamba2",
        {**SIZES, "mamba_d_state": 4, "mamba_ngroups": 1, "n_mamba_heads": 4, "layers_block_type": ["mamba", "hybrid"]},
        STATE,
    ),
    "recurrent gemma": ("recurrent_gemma", {**GROUPED, "lru_width": 32, "attention_window_size": 16}, STATE),
    "granite hybrid": (
        "granitemoehybrid",
        {**GROUPED, **MAMBA, "layer_types": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 24},
        STATE,
    ),
    "qwen3-next": ("qwen3_next", {**GROUPED, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 24}, STATE),
    "qwen3.5": ("qwen3_5_text", {**GROUPED, **LINEAR}, STATE),
    "nemotron-h": (
        "nemotron_h",
        {**GROUPED, "hybrid_override_pattern": "M*", "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 4},
        STATE,
    ),
    "minimax": (
        "minimax",
        {**GROUPED, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 4, "block_size": 8},
        "layers of the kind linear_attention",
    ),
    "rwkv": ("rwkv", {**SIZES, "attention_hidden_size": 32}, STATE),
    "llama 4": (
        "llama4_text",
        {**GROUPED, "layer_types": ["chunked_attention", "full_attention"], "num_local_experts": 2, "head_dim": 8},
        "layers of the kind chunked_attention",
    ),
    "gemma 2": ("gemma2", {**GROUPED, "head_dim": 16, "sliding_window": 6}, r"passes softcap=50\.0 to attention"),
    "vaultgemma": ("vaultgemma", {**GROUPED, "head_dim": 16, "sliding_window": 6}, r"passes softcap=50\.0 to attention"),
    "gpt-oss": ("gpt_oss", {**GROUPED, **WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2}, SINKS),
    "gpt-neo": ("gpt_neo", {**SIZES, "num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]]}, BY_ITSELF),
    "gpt-j": ("gptj", {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 128}, BY_ITSELF),
    "falcon": ("falcon", {**SIZES, "alibi": True}, BY_ITSELF),
    "bloom": ("bloom", {**SIZES, "n_head": 4, "n_layer": 2}, BY_ITSELF),
    "mpt": ("mpt", {**SIZES, "d_model": 32, "n_heads": 4, "n_layers": 2}, BY_ITSELF),
    "stablelm": ("stablelm", GROUPED, "does not hand the keywords of its forward call"),
    "diffllama": ("diffllama", GROUPED, "calls attention 4 times for its 2 layers"),
    "bert": ("bert", {**SIZES, "is_decoder": False}, "hidden states differ"),
    "cohere, whose logits are scaled": ("cohere", GROUPED, "more than the output embedding"),
    "granite, whose logits are scaled": ("granite", {**GROUPED, "logits_scaling": 8.0}, "more than the output embedding"),
    "gemma 4 with fewer global key heads": (
        "gemma4_text",
        {**GROUPED, **GEMMA4, "num_kv_shared_layers": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
        "2 key heads in some layers",
    ),
    "a window that attention is not told of": ("phimoe", {**GROUPED, "sliding_window": 6}, "window of 6 tokens in layer 0"),
}  # fmt: skip


def tiny(kind: str, settings: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """A random model of a configuration; the caller's random state is left as it was."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), attn_implementation="eager")
    model.generation_config.eos_token_id = 2
    return model.to(dtype).eval()


def engine_of(model: PreTrainedModel) -> RolloutEngine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RolloutEngine(adopt(model, NoTokenizer(), name="m"), slots=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_samples_what_its_own_attention_gives(name: str, dtype: torch.dtype) -> None:
    """In bfloat16 for the verdict; in float32 also the log-probabilities, over rows that exceed the windows. All of it is trained."""
    engine = engine_of(tiny(*ACCEPTED[name], dtype))
    assert engine.policy.trainable.keys() == dict(engine.policy.model.named_parameters()).keys()
    if dtype == torch.float32:
        drawn = draw(engine)
        check_log_probabilities(engine.policy.model, drawn, atol=5e-5)


def draw(engine: RolloutEngine) -> list[Completion]:
    """Two completions, of rows that are longer than the windows of small models."""
    rng = np.random.default_rng(0)
    asked = [Request(tuple(rng.integers(3, 61, size=n).tolist()), rng.random((1, 12))) for n in (4, 15)]
    return [completion for (completion,) in engine.generate(asked, max_new_tokens=12)]


def check_log_probabilities(model: PreTrainedModel, drawn: list[Completion], *, atol: float) -> None:
    """Those of the drawn tokens are what the model gives under its own attention, but for `atol` nats."""
    model.set_attn_implementation("eager")
    for completion in drawn:
        ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            own = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0], -1)
        start = len(completion.prompt_ids)
        wanted = own[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), wanted, atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_its_true_reason(name: str, dtype: torch.dtype) -> None:
    kind, settings, reason = REFUSED[name]
    with pytest.raises(SettingsError, match=reason) as caught:
        engine_of(tiny(kind, settings, dtype))
    assert str(caught.value).startswith("model.path=m: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
def test_a_soft_cap_is_refused_at_any_scale_of_the_weights(scale: float) -> None:
    """With small queries and keys a cap of 50 changes no logit by more than rounding does; it is refused by its keyword."""
    model = tiny(*REFUSED["gemma 2"][:2], torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= scale
    with pytest.raises(SettingsError, match="softcap"):
        engine_of(model)


def test_a_soft_cap_that_is_off_is_no_soft_cap() -> None:
    settings = {**REFUSED["gemma 2"][1], "attn_logit_softcapping": None, "layer_types": MIXED}
    assert engine_of(tiny("gemma2", settings, torch.float32)).policy.attention[0].window == 6


class Layer(torch.nn.Module):
    layer_idx = 0


@pytest.mark.parametrize(
    "keyword", [{"softcap": 0.0}, {"sinks": torch.zeros(2)}, {"position_bias": torch.zeros(1)}, {"new": 1}]
)
def test_an_unknown_keyword_is_refused_by_its_name(keyword: dict[str, object]) -> None:
    q = torch.ones(1, 2, 3, 4)
    with pytest.raises(UnsupportedAttentionError, match=f"passes {next(iter(keyword))}"):
        attend(Layer(), q, q, q, None, plan=CausalRows(), **keyword)  # type: ignore[arg-type]


def test_known_and_absent_keywords_change_nothing() -> None:
    q = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    plain, _ = attend(Layer(), q, q, q, None, plan=CausalRows(), scaling=0.5)
    told, _ = attend(
        Layer(),
        q,
        q,
        q,
        None,
        plan=CausalRows(),
        dropout=0.1,
        position_ids=torch.zeros(1),
        is_causal=True,
        softcap=None,
        s_aux=None,
    )
    assert torch.equal(plain, told), "the scale is 1 / sqrt(4) where none is given"
    with pytest.raises(UnsupportedAttentionError, match="is_causal=False"):
        attend(Layer(), q, q, q, None, plan=CausalRows(), is_causal=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(
    "name", ["qwen2", "gemma 4, heads of two widths and shared keys", "qwen3 with experts", "opt", "gpt-2"]
)
def test_a_narrow_model_can_be_run_as_a_float32_copy_of_it_would_be(name: str, dtype: torch.dtype) -> None:
    model = tiny(*ACCEPTED[name], dtype)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        with in_float32(model):
            ours = model(input_ids=ids, use_cache=False).logits
        rounded = model(input_ids=ids, use_cache=False).logits
        wanted = model.float()(input_ids=ids, use_cache=False).logits
    assert rounded.dtype == dtype
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)
    assert (rounded - wanted).abs().max() > 1e-3


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_large_activations_are_no_architecture(dtype: torch.dtype) -> None:
    """Real Qwen2 weights have a few huge biases, whose rounding is 8 % of the largest logit in bfloat16."""
    model = tiny_model("qwen2")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias[::4] = 80.0
            layer.self_attn.q_proj.bias[::4] = 9.0
            layer.self_attn.q_proj.weight *= 6
    assert engine_of(model.to(dtype)).policy.model.dtype == dtype


def test_a_model_that_overflows_in_float16_is_refused_there_alone() -> None:
    def large() -> PreTrainedModel:
        model = tiny_model("llama")
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight *= 3e4
            model.model.layers[0].mlp.up_proj.weight *= 10
        return model

    engine_of(large().to(torch.bfloat16))
    with pytest.raises(SettingsError, match=r"overflows in float16.*set model\.dtype=bfloat16 or float32"):
        engine_of(large().to(torch.float16))
    broken = large()
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight *= 1e4
    with pytest.raises(SettingsError, match=r"not finite.*no number beyond 65,504"):
        engine_of(broken.to(torch.float16))


class ByItself(torch.nn.Module):
    """Learned positions that are counted from 0 in every forward call."""

    def __init__(self, table: torch.nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(torch.arange(ids.shape[-1])[None].expand_as(ids))
        return found


def test_positions_that_are_not_read_are_named() -> None:
    model = tiny(*ACCEPTED["gpt-2"], torch.bfloat16)
    model.transformer.wpe = ByItself(model.transformer.wpe)
    with pytest.raises(SettingsError, match="does not read the positions"):
        engine_of(model)


def test_longrope_ends_where_its_factors_change() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    settings = {**GROUPED, "sliding_window": None, "original_max_position_embeddings": 64, "rope_parameters": rope}
    policy = engine_of(tiny("phi3", settings, torch.float32)).policy
    assert policy.context == 64
    assert any("64 tokens, not 128" in note for note in policy.notes)
    assert context_of(AutoConfig.for_model("llama", **GROUPED, rope_parameters=YARN_ROPE)) == (128, "")
    by_kind = AutoConfig.for_model("llama", **GROUPED)
    by_kind.rope_parameters = {
        "full_attention": rope | {"original_max_position_embeddings": 32},
        "sliding_attention": {},
    }
    assert context_of(by_kind)[0] == 32


def test_a_token_costs_what_its_layers_keep() -> None:
    """Gemma 4 has two head widths, latent attention keys wider than values, and neither is config.head_dim."""
    gemma = cost_of(engine_of(tiny(*ACCEPTED["gemma 4, heads of two widths and shared keys"], torch.float32)).policy)
    assert gemma.cache_bytes == 4 * 2 * (2 * (16 + 16) + 2 * (32 + 32))
    assert gemma.pair_flops == 2 * 4 * (2 * (16 + 16) + 2 * (32 + 32))
    latent = cost_of(engine_of(tiny(*ACCEPTED["deepseek v3, latent attention"], torch.float32)).policy)
    assert latent.cache_bytes == 4 * 2 * 4 * (20 + 10)
