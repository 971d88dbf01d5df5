"""The laws of every family, on its published configuration: fewer layers, narrower, with a smaller vocabulary.

`REAL` has what shapes the arithmetic of a model as its config.json has it. `shrunk` divides widths so that a head is 32 wide, and
lengths by 128; ratios of heads and widths, rotary positions, windows, norms and ties stay.

Where the numbers are from, as facts: Qwen2.5-0.5B, SmolLM2-135M: their config.json. Llama-3.2-1B: the copy of its config.json in
DannyMeb/iShrink-LLM-Compression-Framework. Qwen3, SmolLM3, Phi-4-mini, Gemma 3 1B, Gemma 4, Qwen3.5: examples/models in
pytorch/executorch. Llama-3.2-3B, Gemma 3 4B: litgpt/config.py in Lightning-AI/litgpt. Gemma 3 270M: ch05/12_gemma3 in
rasbt/LLMs-from-scratch. OLMo 2 1B: configs/official-0425/OLMo2-1B-stage1.yaml in allenai/OLMo. ERNIE 4.5: the defaults of
transformers' Ernie4_5Config, which also has SmolLM3's ties and layers without rotary positions in SmolLM3Config.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import ModelConfig
from slimrl.display.run import Display
from slimrl.errors import SettingsError
from slimrl.kernels.native import lanes
from slimrl.model.attention import CausalRows
from slimrl.model.layer import FusedLayer
from slimrl.model.loading import BUILTIN, adopt, load_policy
from slimrl.model.lora import add_adapter
from slimrl.model.policy import Policy, cost_of, freeze
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from slimrl.runs.checkpoints import write_checkpoint
from slimrl.train import train
from tests.learner.test_targets import run_update
from tests.learner.test_update import settings
from tests.model.test_architecture import STATE, check_log_probabilities, draw, tiny
from tests.model.test_layer import packed_rows, share
from tests.model.test_lora import ALL, Tokenizer, check_what_is_sampled, randomize
from tests.tiny import learner_of

HEAD, SHORTER, WINDOW, KEY_HEADS = 32, 128, 6, 3
"""Width of a head, the divisor of lengths, the shortest window, and the most key heads."""
LOCAL, FULL = "sliding_attention", "full_attention"
TOKENS = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Real:
    """A published model."""

    kind: str
    layers: int
    """That are kept of it."""
    config: dict[str, Any]
    fused: bool = True
    around: str = ""
    """The kind of the model for images and text that has it as its decoder."""


def plain(hidden: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    """What every family names."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv, "rms_norm_eps": 1e-6}
    return {**sizes, "tie_word_embeddings": True, "max_position_embeddings": 131072, **more}


def gemma3(hidden: int, heads: int, kv: int, window: int, **more: Any) -> dict[str, Any]:
    return plain(
        hidden, heads, kv, head_dim=256, query_pre_attn_scalar=256, sliding_window=window, sliding_window_pattern=6,
        rope_theta=1e6, rope_local_base_freq=1e4, hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=None,
        final_logit_softcapping=None, **more,
    )  # fmt: skip


def gemma4(hidden: int, kv: int, kinds: list[str], shared: int, **more: Any) -> dict[str, Any]:
    rope = {
        FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        LOCAL: {"rope_type": "default", "rope_theta": 1e4},
    }
    return plain(
        hidden, 8, kv, head_dim=256, global_head_dim=512, sliding_window=512, layer_types=kinds,
        num_kv_shared_layers=shared, hidden_size_per_layer_input=256, final_logit_softcapping=30.0, rope_parameters=rope,
        hidden_activation="gelu_pytorch_tanh", attention_k_eq_v=False, **more,
    )  # fmt: skip


LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LONG = [
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898, 2.735880826,
    3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555, 7.485043894,
    8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807,
    22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97,
    33.28, 33.49, 33.5, 44.16, 47.77,
]  # fmt: skip
PHI4 = plain(
    3072, 24, 8, rms_norm_eps=1e-5, rope_theta=1e4, partial_rotary_factor=0.75, original_max_position_embeddings=4096,
    rope_scaling={"type": "longrope", "long_factor": LONG, "short_factor": [1.0] * 48}, sliding_window=262144,
)  # fmt: skip
QWEN25 = {
    "max_position_embeddings": 32768,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 21,
}
QWEN3 = {"head_dim": 128, "rope_theta": 1e6, "max_position_embeddings": 40960}

REAL = {
    "Qwen2.5-0.5B": Real("qwen2", 2, plain(896, 14, 2, rope_theta=1e6, **QWEN25)),
    "Qwen3-0.6B": Real("qwen3", 2, plain(1024, 16, 8, **QWEN3)),
    "Qwen3-4B": Real("qwen3", 2, plain(2560, 32, 8, **QWEN3)),
    "Llama-3.2-1B": Real("llama", 2, plain(2048, 32, 8, rms_norm_eps=1e-5, rope_theta=5e5, head_dim=64, rope_scaling=LLAMA3)),
    "Llama-3.2-3B": Real("llama", 2, plain(3072, 24, 8, rms_norm_eps=1e-5, rope_theta=5e5, head_dim=128, rope_scaling=LLAMA3)),
    "SmolLM2-135M": Real("llama", 2, plain(576, 9, 3, rms_norm_eps=1e-5, rope_theta=1e5, max_position_embeddings=8192)),
    "SmolLM3-3B": Real("smollm3", 4, plain(2048, 16, 4, rope_theta=5e6, no_rope_layer_interval=4, max_position_embeddings=65536)),
    "Gemma 3 270M": Real("gemma3_text", 7, gemma3(640, 4, 1, 512)),
    "Gemma 3 1B": Real("gemma3_text", 7, gemma3(1152, 4, 1, 512)),
    "Gemma 3 4B": Real(
        "gemma3_text", 7, gemma3(2560, 8, 4, 1024, rope_scaling={"rope_type": "linear", "factor": 8.0}), around="gemma3"
    ),
    "OLMo 2 1B": Real(
        "olmo2", 2, plain(2048, 16, 16, rope_theta=5e5, tie_word_embeddings=False, max_position_embeddings=4096)
    ),
    "Phi-4-mini": Real("phi3", 2, PHI4, fused=False),
    # 35 layers, of which 20 read the keys of others, and 42, of which 18 do.
    "Gemma 4 E2B": Real(
        "gemma4_text", 10, gemma4(1536, 1, [*[LOCAL] * 4, FULL] * 2, 5, use_double_wide_mlp=True), fused=False, around="gemma4"
    ),
    "Gemma 4 E4B": Real("gemma4_text", 12, gemma4(2560, 2, [*[LOCAL] * 5, FULL] * 2, 6), fused=False),
    "ERNIE 4.5 0.3B": Real("ernie4_5", 2, plain(1024, 16, 2, rms_norm_eps=1e-5, rope_theta=5e5, head_dim=128), fused=False),
}  # fmt: skip
QWEN35 = plain(
    1024, 8, 2, head_dim=256, rope_theta=1e7, partial_rotary_factor=0.25, linear_conv_kernel_dim=4, linear_key_head_dim=128,
    linear_value_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=16,
    layer_types=[*["linear_attention"] * 3, FULL],
)  # fmt: skip
SMALL_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "gemma3": {"vision_config": {**SMALL_TOWER, "image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4},
    "gemma4": {
        "vision_config": {**SMALL_TOWER, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64},
        "audio_config": {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "output_proj_dims": 48,
            "subsampling_conv_channels": [8, 4],
        },
    },
}  # fmt: skip


def shrunk(real: Real) -> dict[str, Any]:
    """The configuration of a small model with this arithmetic."""
    given = real.config
    hidden, heads, kv = (given[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    width = given.get("head_dim", hidden // heads)
    kept = min(kv, KEY_HEADS)
    small = hidden * kept // kv * HEAD // width
    config = {
        **given, **TOKENS, "num_hidden_layers": real.layers, "hidden_size": small, "intermediate_size": 2 * small,
        "num_attention_heads": heads // kv * kept, "num_key_value_heads": kept, "initializer_range": small**-0.5,
        "max_position_embeddings": given["max_position_embeddings"] // SHORTER,
    }  # fmt: skip
    for key in ("head_dim", "global_head_dim", "query_pre_attn_scalar"):
        if key in given:
            config[key] = given[key] * HEAD // width
    for key in ("sliding_window", "original_max_position_embeddings"):
        if key in given:
            config[key] = max(WINDOW, given[key] // SHORTER)
    if "hidden_size_per_layer_input" in given:
        config |= {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": TOKENS["vocab_size"]}
    if rope := dict(given.get("rope_scaling") or {}):
        for key in ("long_factor", "short_factor"):
            if key in rope:
                rope[key] = rope[key][:: width // HEAD]
        if "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] //= SHORTER
        config["rope_scaling"] = rope
    return config


def model_of(name: str, dtype: torch.dtype = torch.float32, *, around: str = "") -> PreTrainedModel:
    """A random model, with biases and norms that are not 0 and 1; `around` it, the class for images and text."""
    real = REAL[name]
    kind, config = (around, {"text_config": shrunk(real), **TOWERS[around]}) if around else (real.kind, shrunk(real))
    model = tiny(kind, config, torch.float32)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return model.to(dtype)


def policy_of(name: str, *, around: str = "") -> Policy:
    return adopt(model_of(name, around=around), Tokenizer(), name=name)


MULTIMODAL = [name for name, real in REAL.items() if real.around]
every_family = pytest.mark.parametrize("name", REAL)
every_tower = pytest.mark.parametrize("name", MULTIMODAL)


@every_family
def test_what_is_sampled_has_the_log_probabilities_of_the_models_own_attention(name: str) -> None:
    """Over rows longer than the windows of its layers."""
    policy = policy_of(name)
    check_log_probabilities(policy.model, draw(RolloutEngine(policy, slots=2)), atol=5e-5)


@every_family
def test_greedy_tokens_are_those_of_generate(name: str) -> None:
    check_greedy(policy_of(name))


def check_greedy(policy: Policy) -> None:
    """Token for token, through the caches of transformers."""
    prompts = [torch.arange(3, 3 + n)[None] * 7 % 58 + 3 for n in (4, 11, 15)]
    asked = [Request(tuple(ids[0].tolist()), np.zeros((0, 16)), greedy=1) for ids in prompts]
    drawn = RolloutEngine(policy, slots=3).generate(asked, max_new_tokens=16)
    policy.model.set_attn_implementation("eager")
    for ids, (completion,) in zip(prompts, drawn, strict=True):
        theirs = policy.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        assert completion.token_ids == tuple(theirs[0, ids.shape[1] :].tolist())


@every_family
def test_packed_rows_are_single_rows(name: str) -> None:
    policy, packed = policy_of(name), packed_rows()
    with torch.no_grad():
        together = policy.packed_hidden(packed)
        for places in packed.places:
            row = places[packed.positions[places] == torch.arange(len(places))]
            alone = policy.hidden(packed.ids[row][None], torch.arange(len(row))[None], CausalRows())[0]
            assert share(together[row], alone) < 1e-5


@every_family
def test_an_adapter_and_its_merge_give_what_is_sampled(name: str) -> None:
    model = model_of(name)
    lora = add_adapter(model, ALL, base="owner/model", seed=0)
    randomize(model)
    check_what_is_sampled(adopt(model, Tokenizer(), name=name, lora=lora))


@every_family
def test_it_is_accepted_in_bfloat16(name: str) -> None:
    assert adopt(model_of(name, torch.bfloat16), Tokenizer(), name=name).model.dtype == torch.bfloat16


@pytest.mark.skipif(not lanes(), reason="no compiler, or no AVX2")
@every_family
def test_its_layers_are_fused_where_the_table_says_so(name: str) -> None:
    kinds = {isinstance(layer, FusedLayer) for layer in policy_of(name).trunk.layers}
    assert kinds == {REAL[name].fused}


@every_family
def test_what_is_saved_loads_as_it_was(name: str, tmp_path: Path) -> None:
    check_saved(policy_of(name), tmp_path)


def check_saved(policy: Policy, folder: Path) -> None:
    policy.save(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    own = policy.model.state_dict()
    assert {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, own[name])} == set()
    assert loaded.state_dict().keys() == own.keys()
    policy.model.set_attn_implementation("eager")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, policy.model(ids).logits, atol=1e-4, rtol=1e-4)


def test_hybrids_of_attention_and_a_recurrent_state_are_refused() -> None:
    """Qwen3.5-0.8B; of its class for images transformers gives the text decoder."""
    config = shrunk(Real("qwen3_5_text", 4, QWEN35))
    with pytest.raises(SettingsError, match=STATE):
        adopt(tiny("qwen3_5_text", config, torch.float32), Tokenizer(), name="m")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "depth": 1,
        "num_heads": 2,
        "out_hidden_size": config["hidden_size"],
    }
    with pytest.raises(SettingsError, match=STATE):
        adopt(tiny("qwen3_5", {"text_config": config, "vision_config": vision}, torch.float32), Tokenizer(), name="m")


# Models for images, or for images and sound, of which the text decoder is sampled and trained.


@every_tower
def test_the_decoder_of_a_model_for_images_keeps_the_laws(name: str, tmp_path: Path) -> None:
    around = REAL[name].around
    policy = policy_of(name, around=around)
    assert type(policy.model).__name__.endswith("ForConditionalGeneration")
    check_log_probabilities(policy.model, draw(RolloutEngine(policy, slots=2)), atol=5e-5)
    check_greedy(policy_of(name, around=around))
    check_saved(policy, tmp_path)
    model = model_of(name, around=around)
    lora = add_adapter(model, ALL, base="owner/model", seed=0)
    randomize(model)
    check_what_is_sampled(adopt(model, Tokenizer(), name=name, lora=lora))


@every_tower
def test_towers_are_neither_trained_nor_counted_as_work_nor_copied(name: str) -> None:
    text, policy = policy_of(name), policy_of(name, around=REAL[name].around)
    assert cost_of(policy).body == cost_of(text).body
    assert cost_of(policy).weight_bytes > cost_of(text).weight_bytes, "they lie in memory"
    assert {isinstance(layer, FusedLayer) for layer in policy.trunk.layers} == {bool(lanes()) and REAL[name].fused}
    sizes = [sum(p.numel() for p in one.trainable.values()) for one in (policy, text)]
    assert sizes[0] == sizes[1]
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    reference = freeze(policy)
    run_update(learner_of(policy, settings()))
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert moved <= policy.trainable.keys()
    (note,) = policy.notes
    assert note.endswith("million weights that text does not pass through, as a tower for images, stay as they are")
    own, theirs = dict(policy.model.named_parameters()), dict(reference.model.named_parameters())
    assert {n for n in own if own[n] is theirs[n]} == own.keys() - policy.trainable.keys()


@pytest.mark.parametrize(("name", "rank"), [("Gemma 3 4B", 0), ("Gemma 3 4B", 4), ("Gemma 4 E2B", 0)])
def test_a_run_keeps_the_towers_in_all_that_it_saves(name: str, rank: int, tmp_path: Path) -> None:
    folder, real = tmp_path / "model", REAL[name]
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN)
    text = {**shrunk(real), "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text |= {"vocab_size_per_layer_input": len(tokenizer), "max_position_embeddings": 128}
    model = tiny(real.around, {"text_config": text, **TOWERS[real.around]}, torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    short = [
        f"model.path={folder}", f"output={tmp_path}", "name=a", "steps=1", "rollout.problems=2", "evaluation.problems=2",
        "evaluation.harder_problems=0", "algorithm.kl_coef=0.1", f"model.lora.rank={rank}", "rollout.max_new_tokens=8",
        "algorithm.entropy_coef=0.1", "model.dtype=float32",
    ]  # fmt: skip
    train(load_config(TrainConfig, [], short), Display(quiet=True))
    policy = load_policy(ModelConfig(path=str(folder), dtype="float32"))
    checkpoint = write_checkpoint(tmp_path, 1, {"model": policy.tensors()}, {}, policy.save_descriptions)
    again = load_policy(ModelConfig(path=str(checkpoint.path), dtype="float32")).model
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "final")
    assert type(final) is type(again) is type(model)
    own, found = model.state_dict(), final.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.state_dict().items())
    towers = {name for name in own if "language_model" not in name and name != "lm_head.weight"}
    assert all(torch.equal(found[name], own[name]) for name in towers)
    assert any(not torch.equal(found[name], own[name]) for name in own.keys() - towers)
