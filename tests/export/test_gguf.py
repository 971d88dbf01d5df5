"""GGUF, read back: every tensor is the model's own, moved as llama.cpp has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    Olmo2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tests.export.test_vocabulary import pieces

gguf = pytest.importorskip("gguf")

from slimrl.errors import DataError  # noqa: E402
from slimrl.export.gguf import read_source, write_gguf  # noqa: E402
from tests.tiny import tiny_model  # noqa: E402

BUILTIN = Path(__file__).parents[2] / "slimrl" / "builtin"
HEADS = 4
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
}


def saved(family: str, folder: Path) -> Path:
    """A random model of a family with the built-in tokenizer."""
    tiny_model(family, 616).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(BUILTIN)).save_pretrained(folder)
    return folder


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def field(path: Path, key: str) -> Any:
    return gguf.GGUFReader(path).get_field(key).contents()


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3", "wide olmo2"])
def test_every_tensor_is_there_and_equal(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / "m")
    path = write_gguf(folder, tmp_path / "m.gguf")
    own = load_file(folder / "model.safetensors")
    found = tensors(path)
    assert len(found) == len(own)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.norm.weight": "output_norm.weight",
    }
    for theirs, name in names.items():
        stored = torch.from_numpy(found[name].data.copy()).reshape(own[theirs].shape)
        assert torch.equal(stored, own[theirs].to(stored.dtype)), theirs
    query = torch.from_numpy(found["blk.0.attn_q.weight"].data.copy())
    kept = own["model.layers.0.self_attn.q_proj.weight"].half()
    if family == "llama":  # row j of a head's first half stands at 2 j, and of its second half at 2 j + 1
        heads = query.reshape(HEADS, -1, kept.shape[1])
        assert torch.equal(torch.cat([heads[:, 0::2], heads[:, 1::2]], 1).reshape(kept.shape), kept)
        assert not torch.equal(query, kept)
    else:
        assert torch.equal(query, kept)


def test_the_norms_of_gemma_hold_the_one_that_is_added(tmp_path: Path) -> None:
    from slimrl.export.gguf import FAMILIES, Source

    source = Source(tmp_path, {"num_attention_heads": 4, "hidden_size": 8}, FAMILIES["gemma3_text"])
    assert torch.equal(source.converted("model.norm.weight", torch.tensor([0.5])), torch.tensor([1.5]))
    assert torch.equal(source.converted("model.layers.0.mlp.up_proj.weight", torch.tensor([0.5])), torch.tensor([0.5]))


def test_the_built_in_model_with_its_sizes_and_tokenizer(tmp_path: Path) -> None:
    path = write_gguf(BUILTIN, tmp_path / "b.gguf", name="mine", temperature=0.7)
    config = json.loads((BUILTIN / "config.json").read_text())
    assert field(path, "general.architecture") == "qwen2"
    assert field(path, "general.name") == "mine"
    assert field(path, "general.sampling.temp") == pytest.approx(0.7)
    assert field(path, "qwen2.context_length") == config["max_position_embeddings"]
    assert field(path, "qwen2.attention.head_count_kv") == config["num_key_value_heads"]
    assert field(path, "qwen2.attention.key_length") == 32
    assert field(path, "qwen2.rope.freq_base") == config["rope_parameters"]["rope_theta"]
    assert field(path, "tokenizer.ggml.pre") == "qwen2"
    assert field(path, "tokenizer.ggml.eos_token_id") == 4
    assert field(path, "tokenizer.ggml.add_bos_token") is False
    assert field(path, "tokenizer.chat_template") == (BUILTIN / "chat_template.jinja").read_text()
    assert "output.weight" not in tensors(path), "tied to the embeddings"
    assert [*tmp_path.iterdir()] == [path]


def test_q8_0_is_within_half_a_step_of_its_block(tmp_path: Path) -> None:
    """And a little more: the step itself is rounded to f16."""
    path = write_gguf(BUILTIN, tmp_path / "b.gguf", "q8_0")
    own = load_file(BUILTIN / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].numpy()
    found = tensors(path)["blk.0.ffn_up.weight"]
    assert found.tensor_type == gguf.GGMLQuantizationType.Q8_0
    read = gguf.quants.dequantize(found.data, found.tensor_type).reshape(own.shape)
    step = np.abs(own.reshape(-1, 32)).max(1, keepdims=True) / 127
    assert (np.abs(read - own).reshape(-1, 32) <= 0.57 * step + 1e-7).all()
    assert np.abs(read - own).max() > 0
    assert tensors(path)["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_weights_in_bfloat16_and_in_several_files(tmp_path: Path) -> None:
    folder = saved("qwen2", tmp_path / "m")
    own = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    for number, names in enumerate(([*own][:5], [*own][5:]), 1):
        save_file({name: own[name] for name in names}, folder / f"model-0000{number}-of-00002.safetensors")
    found = tensors(write_gguf(folder, tmp_path / "m.gguf"))
    assert len(found) == len(own)
    kept = own["model.layers.1.self_attn.o_proj.weight"].half()
    assert torch.equal(torch.from_numpy(found["blk.1.attn_output.weight"].data.copy()), kept)


def test_positions_of_llama_3(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder = saved("llama", tmp_path / "m")
    model = tiny_model("llama", 616)
    rope = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text()) | {"rope_parameters": rope}
    (folder / "config.json").write_text(json.dumps(config))
    model.config.rope_parameters = rope
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, device="cpu")
    plain = 500.0 ** (-torch.arange(0, 8, 2) / 8)
    factors = torch.from_numpy(tensors(write_gguf(folder, tmp_path / "m.gguf"))["rope_freqs.weight"].data.copy())
    assert torch.allclose(plain / factors, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "gpt2"}, "writes no GGUF of gpt2 models"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding windows"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rotary positions"),
    ],
)
def test_a_model_that_llama_cpp_would_run_otherwise_is_refused(
    changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    config = json.loads((BUILTIN / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=what):
        read_source(tmp_path)


def test_weights_beyond_f16_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    folder = saved("qwen2", tmp_path / "m")
    own = load_file(folder / "model.safetensors")
    own["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(own, folder / "model.safetensors")
    with pytest.raises(DataError, match="that f16 cannot hold"):
        write_gguf(folder, tmp_path / "m.gguf")
    assert [*tmp_path.iterdir()] == [folder]


def test_llama_cpp_answers_as_transformers_does(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = write_gguf(BUILTIN, tmp_path / "b.gguf")
    other = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(str(BUILTIN), dtype=torch.float32).eval()
    text = "<|user|>Ann has 4 cups and buys 5 more. How many cups does Ann have now?<|assistant|>"
    ids = other.tokenize(text.encode(), add_bos=False, special=True)
    assert ids == AutoTokenizer.from_pretrained(str(BUILTIN))(text).input_ids
    ours = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    theirs: list[int] = []
    for token in other.generate(ids, temp=0.0, top_k=1):
        theirs.append(token)
        if token == 4 or len(theirs) == 24:
            break
    assert theirs == ours


WIDE = {
    "vocab_size": 616, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 128, "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 4,
    "tie_word_embeddings": True,
}  # fmt: skip
KINDS = {
    "llama": LlamaConfig(num_hidden_layers=2, attention_bias=True, mlp_bias=False, **WIDE),
    "qwen3": Qwen3Config(num_hidden_layers=2, **WIDE),
    "olmo2": Olmo2Config(num_hidden_layers=2, **{k: v for k, v in WIDE.items() if k not in ("head_dim", "tie_word_embeddings")}),
    "smollm3": SmolLM3Config(num_hidden_layers=4, **{k: v for k, v in WIDE.items() if k != "head_dim"}),
    "gemma3": Gemma3TextConfig(
        num_hidden_layers=6, sliding_window=8, query_pre_attn_scalar=32, rope_parameters=ROPE,
        layer_types=["sliding_attention"] * 5 + ["full_attention"], **WIDE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", [*KINDS])
def test_llama_cpp_computes_what_transformers_does(family: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(KINDS[family]).eval()
        for name, weight in model.named_parameters():
            if "norm" in name:  # of ones, where an offset or an order would not show
                weight.data.add_(torch.randn_like(weight) * 0.2)
    model = model.half().float()
    model.save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(str(BUILTIN)).save_pretrained(tmp_path / "m")
    other = llama_cpp.Llama(str(write_gguf(tmp_path / "m", tmp_path / "m.gguf")), n_ctx=128, n_threads=1, verbose=False)
    ids = [(7 * i) % 600 + 5 for i in range(40)]
    other.eval(ids)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0, -1]
    found = torch.from_numpy(np.array(other._ctx.get_logits_ith(-1)[:616]))
    assert float((found - wanted).abs().max()) < 0.03 * float(wanted.std()) + 0.01


def test_llama_cpp_reads_pieces_as_transformers_does(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = saved("llama", tmp_path / "m")
    for file in folder.glob("*token*"):
        file.unlink()
    tokenizer = pieces()
    tokenizer.save_pretrained(folder)
    other = llama_cpp.Llama(str(write_gguf(folder, tmp_path / "m.gguf")), vocab_only=True, verbose=False)
    for text in ("seven and fourteen", "  two  seven", "an \u00fc\n7 x", "sevenseven"):
        assert (
            other.tokenize(text.encode(), add_bos=False, special=True)
            == tokenizer(text, add_special_tokens=False).input_ids
        )
