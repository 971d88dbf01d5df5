"""GGUF, the format of llama.cpp and Ollama: a model's tensors in f16 or q8_0, its sizes, and its tokenizer, in one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer

from slimrl.errors import DataError
from slimrl.export.rope import frequency_factors, plain_rope
from slimrl.export.vocabulary import adds_bos, stop_ids_of, vocabulary_of
from slimrl.model.taught import KEY, read_taught
from slimrl.runs.files import UNFINISHED

Kind = Literal["f16", "q8_0"]
KINDS: tuple[Kind, ...] = ("f16", "q8_0")
FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
BLOCK = 32
"""Numbers that share a scale in q8_0."""


@dataclass(frozen=True)
class Family:
    """The differences between a model's files and llama.cpp's form of it."""

    architecture: str
    """llama.cpp's name."""
    paired_rope: bool = False
    """Rotary positions turn neighbours there, and the two halves of a head in transformers: rows of queries and keys move."""
    norm_offset: float = 0.0
    """Added to the weights of norms."""
    activation: str = "silu"


FAMILIES = {
    "llama": Family("llama", paired_rope=True),
    "mistral": Family("llama", paired_rope=True),
    "smollm3": Family("smollm3", paired_rope=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "olmo2": Family("olmo2"),
    "gemma3_text": Family("gemma3", norm_offset=1.0, activation="gelu_pytorch_tanh"),
}
"""By the `model_type` of config.json."""


@dataclass(frozen=True)
class Source:
    """The files of a model."""

    folder: Path
    config: Mapping[str, Any]
    family: Family

    def tensors(self) -> Iterator[tuple[str, Callable[[], Tensor], tuple[int, ...]]]:
        """Name, reader and shape of every tensor that llama.cpp needs."""
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (no mapping)
                    if name == "lm_head.weight" and self.config.get("tie_word_embeddings"):
                        continue
                    yield name, lambda n=name, o=opened: o.get_tensor(n), tuple(opened.get_slice(name).get_shape())  # type: ignore[misc]

    @property
    def heads(self) -> int:
        return int(self.config["num_attention_heads"])

    @property
    def key_heads(self) -> int:
        return int(self.config.get("num_key_value_heads") or self.heads)

    @property
    def head_width(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)

    def converted(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor in llama.cpp's form, float32."""
        tensor = tensor.float()
        if self.family.norm_offset and name.endswith("norm.weight"):
            tensor = tensor + self.family.norm_offset
        if self.family.paired_rope and (".q_proj." in name or ".k_proj." in name):
            heads = self.heads if ".q_proj." in name else self.key_heads
            tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        return tensor


def read_source(folder: Path) -> Source:
    """The model in a folder; raises DataError for one that is not of a known family, or has what llama.cpp's form of it lacks."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise DataError(
            f"SlimRL writes no GGUF of {kind} models (it does of {', '.join(FAMILIES)}); convert the folder of --for "
            "transformers with llama.cpp's own script"
        )
    family = FAMILIES[kind]
    for what, fits in _demands(config, family).items():
        if not fits:
            raise DataError(
                f"llama.cpp's form of {kind} models has no place for this model's {what}; use --for transformers"
            )
    return Source(folder, config, family)


def _demands(config: Mapping[str, Any], family: Family) -> dict[str, bool]:
    """Properties of a model, and whether llama.cpp's architecture has them as they are."""
    types, gemma = config.get("layer_types") or [], family.architecture == "gemma3"
    local = [kind == "sliding_attention" for kind in types]
    pattern = [(i + 1) % 6 != 0 for i in range(len(local))] if gemma else [False] * len(local)
    no_rope = config.get("no_rope_layers") or []
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    window = config.get("sliding_window") if config.get("model_type") == "mistral" else None
    return {
        "activation": (config.get("hidden_act") or config.get("hidden_activation")) == family.activation,
        "sliding windows": local == pattern and window is None,
        "rotary positions": plain_rope(config) and config.get("partial_rotary_factor", 1.0) == 1.0,
        "layers without positions": no_rope == [int((i + 1) % 4 != 0) for i in range(len(no_rope))],
        "scale of attention": not gemma or config.get("query_pre_attn_scalar") == width,
        "tied embeddings": family.architecture != "olmo2" or not config.get("tie_word_embeddings"),
        "soft caps": not config.get("final_logit_softcapping") and not config.get("attn_logit_softcapping"),
    }


def write_gguf(folder: Path, target: Path, kind: Kind = "f16", *, name: str = "", temperature: float = 1.0) -> Path:
    """Write the model in a folder of safetensors into one file, which appears when it is whole.

    One tensor at a time is in memory. Matrices are stored as `kind`, vectors as float32. `temperature` is the one at which the
    model was measured, without top-k and top-p: llama.cpp samples so unless it is told otherwise.

    Raises DataError for models and tokenizers that are not known (`read_source`, `vocabulary_of`), and for weights beyond f16.
    """
    source = read_source(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    temporary = target.with_name(f"{UNFINISHED}{target.name}")
    writer = gguf.GGUFWriter(temporary, source.family.architecture)
    try:
        writer.add_name(name or folder.name)
        writer.add_file_type(FILE_TYPES[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_sampling_temp(temperature)
        writer.add_sampling_top_k(0)
        writer.add_sampling_top_p(1.0)
        writer.add_sampling_min_p(0.0)
        _add_sizes(writer, source)
        _add_tokenizer(writer, tokenizer, source)
        _write_tensors(writer, source, kind)
        writer.close()
        temporary.replace(target)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
    return target


def _add_sizes(writer: gguf.GGUFWriter, source: Source) -> None:
    config = source.config
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(source.heads)
    writer.add_head_count_kv(source.key_heads)
    writer.add_key_length(source.head_width)
    writer.add_value_length(source.head_width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    rope = config.get("rope_parameters") or {}
    both = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(source.head_width)
    writer.add_rope_freq_base(float(both.get("rope_theta") or config.get("rope_theta") or 10000.0))
    if both.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(both["factor"]))
    if source.family.architecture == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        local = rope.get("sliding_attention", {}).get("rope_theta") or config.get("rope_local_base_freq") or 10000.0
        writer.add_rope_freq_base_swa(float(local))


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, source: Source) -> None:
    found = vocabulary_of(tokenizer, source.config["vocab_size"])
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.words)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    if found.merges:
        writer.add_token_merges(found.merges)
    if found.scores:
        writer.add_token_scores(found.scores)
        writer.add_add_space_prefix(found.space_prefix)
    keys = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, stop in zip(keys, stop_ids_of(source.folder, tokenizer), strict=False):  # the card names those beyond
        add(stop)
    bos = tokenizer.bos_token_id
    if bos is not None:
        writer.add_bos_token_id(bos)
    plain = read_taught(source.config.get(KEY)).plain
    writer.add_add_bos_token(adds_bos(tokenizer, plain=plain))
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.chat_template and not plain:
        writer.add_chat_template(tokenizer.get_chat_template())


def _write_tensors(writer: gguf.GGUFWriter, source: Source, kind: Kind) -> None:
    """Announce every tensor, then write one after the other."""
    architecture = gguf.MODEL_ARCH_NAMES.items()
    number = next(arch for arch, name in architecture if name == source.family.architecture)
    names = gguf.get_tensor_name_map(number, source.config["num_hidden_layers"])
    extra = frequency_factors(source.config, source.head_width)
    if extra is not None:
        writer.add_tensor_info("rope_freqs.weight", extra.shape, extra.dtype, extra.nbytes)
    for name, _, shape in source.tensors():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise DataError(f"llama.cpp's form of this model has no tensor for {name}; use --for transformers")
        stored = _stored(shape, kind)
        if stored == gguf.GGMLQuantizationType.Q8_0:
            block, size = gguf.GGML_QUANT_SIZES[stored]
            in_bytes = (*shape[:-1], shape[-1] // block * size)
            writer.add_tensor_info(theirs, in_bytes, np.dtype(np.uint8), int(np.prod(in_bytes)), raw_dtype=stored)
        else:
            dtype = np.dtype(np.float16 if stored == gguf.GGMLQuantizationType.F16 else np.float32)
            writer.add_tensor_info(theirs, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if extra is not None:
        writer.write_tensor_data(extra)
    for name, read, shape in source.tensors():
        writer.write_tensor_data(_as_stored(name, source.converted(name, read()), _stored(shape, kind)))


def _stored(shape: tuple[int, ...], kind: Kind) -> gguf.GGMLQuantizationType:
    """The type in which a tensor is stored: vectors in float32, and matrices whose rows are no whole blocks in f16."""
    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    whole = kind == "q8_0" and shape[-1] % BLOCK == 0
    return gguf.GGMLQuantizationType.Q8_0 if whole else gguf.GGMLQuantizationType.F16


def _as_stored(name: str, tensor: Tensor, stored: gguf.GGMLQuantizationType) -> NDArray[Any]:
    if stored == gguf.GGMLQuantizationType.F32:
        return tensor.contiguous().numpy()
    if stored == gguf.GGMLQuantizationType.F16:
        narrow = tensor.to(torch.float16)
        if not torch.isfinite(narrow).all():
            raise DataError(
                f"{name} has weights that f16 cannot hold (largest {tensor.abs().max():g}); use --for transformers"
            )
        return narrow.contiguous().numpy()
    found: NDArray[Any] = gguf.quants.quantize(tensor.contiguous().numpy(), stored)
    return found
