"""The memory plan of a run on GPUs that are not here, from a model's config.json alone: no weights, no data, no GPU.

Weights are counted on the model without storage (torch's meta device). The bytes that a token leaves to the backward pass are
counted on two cuts of it with few layers and a small vocabulary, and carried on to all layers: they grow by the same number with
each repetition of the pattern of layers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from slimrl.config.defaults import choose
from slimrl.config.files import build, merge, with_chosen
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import LoraConfig
from slimrl.errors import SettingsError
from slimrl.kernels.native import paused
from slimrl.learner.recompute import can_checkpoint
from slimrl.model.adapter_files import SavedAdapter, find_adapter
from slimrl.model.architecture import context_of, freeze_towers
from slimrl.model.head import Head
from slimrl.model.loading import check_adapter, resolve, source_of, unusable
from slimrl.model.lora import add_adapter, place_adapter
from slimrl.model.policy import Policy
from slimrl.model.probe import install_hook
from slimrl.preflight.activations import kept_bytes
from slimrl.preflight.estimate import MemoryEstimate
from slimrl.preflight.memory import Call, Devices, plan_memory, rows_of_a_call

PROMPT = 512
"""Tokens of the longest prompt that a plan reckons with, since it reads no data."""
VOCABULARY = 512
"""Of the cuts."""
AS_SET = "as set"
TRIED: Mapping[str, Mapping[str, Any]] = {
    "optimizer.sharded=true": {"optimizer": {"sharded": True}},
    "parallel=fsdp": {"parallel": "fsdp"},
    "model.lora.rank=16": {"model": {"lora": {"rank": 16}}},
}
"""Settings that lower the memory of a device, which a plan is made with too."""


@dataclass(frozen=True)
class FleetPlan:
    """Plans of one run with several settings, for each of some devices."""

    model: str
    """Class of the model."""
    parameters: int
    adapter: int
    """Rank of the adapter that is trained with the settings as they are; 0 for none."""
    dtype: str
    devices: int
    gib: float
    """Memory of each device."""
    prompt: int
    """Tokens of the longest prompt reckoned with."""
    new_tokens: int
    rows: int
    """Completions of a step, on all devices."""
    estimates: Mapping[str, MemoryEstimate]
    """Memory of one device, by the settings that are added."""

    def table(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(replace(self, estimates={})) | {
            "estimates": {name: estimate.table() for name, estimate in self.estimates.items()}
        }


def read_devices(text: str) -> tuple[int, float]:
    """`8x80` -> 8 devices of 80 GiB; raises SettingsError for another form."""
    found = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)", text.strip().lower())
    if found is None:
        raise SettingsError(f"--devices {text} is not COUNTxGIB; write 8x80 for eight GPUs of 80 GiB")
    if int(found[1]) < 1 or float(found[2]) < 1:
        raise SettingsError(f"--devices {text} is less than one GPU of 1 GiB; write 8x80 for eight GPUs of 80 GiB")
    return int(found[1]), float(found[2])


def plan_elsewhere(config: TrainConfig, count: int, gib: float) -> FleetPlan:
    """The plan for `count` devices of `gib` GiB, with the settings as they are and with each of `TRIED` that changes something.

    Raises SettingsError for packed weights and for a teacher, and what `load_policy` raises for a model that cannot be read.
    """
    if config.model.quantize != "none":
        raise SettingsError(f"--devices has no plan for model.quantize={config.model.quantize}; leave one of them out")
    if config.rollout.engine == "vllm" and count > 1:
        raise SettingsError(f"rollout.engine=vllm works on one device, and --devices has {count}; write 1x{gib:g}")
    if config.algorithm.reference:
        raise SettingsError(
            f"--devices has no plan for another model as algorithm.reference={config.algorithm.reference}; leave one of them out"
        )
    config, adapter = _on_its_base(config.model_copy(update={"devices": count}))
    dtype = torch.bfloat16 if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    saved = _read_config(config)
    whole = shape_of(config, saved, dtype, adapter)
    chosen = choose(
        config,
        parameters=whole.parameters,
        adapter=whole.lora is not None,
        context=whole.context,
        longest_prompt=lambda: min(PROMPT, whole.context // 2),
        longest_solution=lambda: 0,
    )
    config = with_chosen(config, chosen.values)
    estimates: dict[str, MemoryEstimate] = {}
    shapes: dict[int, tuple[Policy, Mapping[bool, float]]] = {}  # by the rank of the adapter, all that they depend on
    for name, more in {AS_SET: {}, **TRIED}.items():
        tried = build(TrainConfig, merge(config.model_dump(), more))
        if name != AS_SET and (tried == config or config.model.lora.rank or (count == 1 and "model" not in more)):
            continue
        rank = tried.model.lora.rank
        if rank not in shapes:
            shapes[rank] = _counted(tried, saved, dtype, adapter)
        policy, kept = shapes[rank]
        estimates[name] = _estimate(tried, policy, Devices(count, gib, kept))
    return FleetPlan(
        model=type(whole.model).__name__,
        parameters=whole.parameters,
        adapter=0 if whole.lora is None else whole.lora.rank,
        dtype=str(dtype).removeprefix("torch."),
        devices=count,
        gib=gib,
        prompt=_prompt_tokens(config, whole),
        new_tokens=config.rollout.budget,
        rows=config.rollout.problems * config.rollout.group_size,
        estimates=estimates,
    )


def _counted(
    config: TrainConfig, saved: Any, dtype: torch.dtype, adapter: SavedAdapter | None
) -> tuple[Policy, Mapping[bool, float]]:
    """The whole model without storage, and the bytes that a token of it leaves to the backward pass, as in `Devices`."""
    policy = shape_of(config, saved, dtype, adapter)
    if adapter is not None:
        adapter = replace(adapter, config=_on_every_layer(adapter.config, policy))
    cuts = [cut_of(config, saved, dtype, times, adapter) for times in (1, 2)]
    layers = saved.get_text_config().num_hidden_layers
    pattern = cuts[0].attention
    policy = replace(policy, attention=tuple(pattern[i % len(pattern)] for i in range(layers)))
    ways = (False, True) if can_checkpoint(policy.model) else (False,)
    return policy, {again: _carried_on(cuts, layers, again) for again in ways}


def _on_every_layer(config: Any, policy: Policy) -> Any:
    """A saved adapter's configuration for a cut of the model, which may lack the layers that it names: adapted is what it adapts
    anywhere, so the plan is not too small.
    """
    kinds = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in policy.model.named_modules() if ".lora_A" in name
    }
    cut = copy.deepcopy(config)
    cut.target_modules, cut.exclude_modules, cut.layers_to_transform, cut.layers_pattern = kinds, None, None, None
    return cut


def _estimate(config: TrainConfig, policy: Policy, devices: Devices) -> MemoryEstimate:
    call = Call(_prompt_tokens(config, policy), rows_of_a_call(config, config.evaluation.problems), devices)
    return plan_memory(policy, config, call, training=True)


def _prompt_tokens(config: TrainConfig, policy: Policy) -> int:
    return min(PROMPT, max(1, policy.context - config.rollout.budget))


def _carried_on(cuts: list[Policy], layers: int, again: bool) -> float:
    with paused():  # a GPU has none of the kernels of a CPU
        few, more = (kept_bytes(cut, again) for cut in cuts)
    first, second = (len(cut.attention) for cut in cuts)
    return few + (more - few) * (layers - first) / (second - first)


def _on_its_base(config: TrainConfig) -> tuple[TrainConfig, SavedAdapter | None]:
    """The settings with the model of a saved adapter and its rank, and the adapter; None where `model.path` is no adapter."""
    path = resolve(config.model.path)
    adapter = find_adapter(path, source_of(config.model, path))
    if adapter is None:
        return config, None
    check_adapter(config.model, adapter)
    if adapter.quantize is not None:
        raise SettingsError(
            f"--devices has no plan for model.path={config.model.path}, an adapter beside weights in {adapter.quantize}; leave "
            "--devices out, or name another model"
        )
    changes = {"path": adapter.base, "revision": adapter.revision, "lora": LoraConfig(rank=adapter.config.r)}
    return config.model_copy(update={"model": config.model.model_copy(update=changes)}), adapter


def _read_config(config: TrainConfig) -> Any:
    path = resolve(config.model.path)
    source = source_of(config.model, path)
    try:
        return AutoConfig.from_pretrained(path, **source)
    except Exception as error:
        raise unusable(config.model, path, "", error) from error


def shape_of(config: TrainConfig, saved: Any, dtype: torch.dtype, adapter: SavedAdapter | None = None) -> Policy:
    """The whole model without storage; its attention is not known."""
    with torch.device("meta"):
        model = _made(saved, dtype)
    return _policy(config, model, adapter)


def cut_of(
    config: TrainConfig, saved: Any, dtype: torch.dtype, times: int, adapter: SavedAdapter | None = None
) -> Policy:
    """The model with so many repetitions of its pattern of layers, and with a small vocabulary."""
    cut = copy.deepcopy(saved)
    text = cut.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or ["full"] * text.num_hidden_layers)
    period = next(n for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
    for name in cut.sub_configs:  # towers for images and sound, through which text does not pass
        tower: Any = getattr(cut, name, None)
        if tower is not text and hasattr(tower, "num_hidden_layers"):
            tower.num_hidden_layers = 1
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = times * period, VOCABULARY, None
    if getattr(text, "layer_types", None):
        text.layer_types = kinds[:period] * times
    policy = _policy(config, _made(cut, dtype).eval(), adapter)
    return replace(policy, attention=install_hook(policy))


def _made(saved: Any, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(saved, dtype=dtype, attn_implementation="eager")
    freeze_towers(model)
    return model


def _policy(config: TrainConfig, model: PreTrainedModel, adapter: SavedAdapter | None) -> Policy:
    text = model.config.get_text_config()
    lora = None if adapter is None else place_adapter(model, adapter)
    if lora is None and config.model.lora.rank:
        lora = add_adapter(model, config.model.lora, base=resolve(config.model.path), seed=0)
    head = Head(model.get_output_embeddings(), float(getattr(text, "final_logit_softcapping", None) or 0.0))
    return Policy(model=model, tokenizer=None, head=head, stop_ids=(), pad_id=0, context=context_of(text)[0], lora=lora)
