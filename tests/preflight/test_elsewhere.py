"""Memory plans for GPUs that are not here: counted as on the whole model, from its config.json alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, PreTrainedConfig, Qwen2Config

from slimrl.config.files import build
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import LoraConfig
from slimrl.errors import DataError, SettingsError
from slimrl.kernels.native import paused
from slimrl.model.adapter_files import QUANTIZED_FILE, WEIGHTS_FILE
from slimrl.model.head import Head
from slimrl.model.lora import add_adapter
from slimrl.model.policy import Policy, cost_of
from slimrl.model.probe import install_hook
from slimrl.preflight.activations import activation_bytes
from slimrl.preflight.elsewhere import AS_SET, cut_of, plan_elsewhere, read_devices
from slimrl.preflight.memory import SHARE
from tests.tiny import SHAPE

CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(vocab_size=600, **SHAPE | {"num_hidden_layers": 5}),
    "gemma3": Gemma3TextConfig(  # its pattern of layers is cut short at the end
        vocab_size=600,
        head_dim=16,
        sliding_window=6,
        layer_types=[
            "sliding_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
        ],
        **SHAPE | {"num_hidden_layers": 5},
    ),
}


def settings(folder: Path, **sections: dict[str, Any]) -> TrainConfig:
    sections["model"] = {"path": str(folder)} | sections.get("model", {})
    return build(TrainConfig, {"rollout": {"problems": 4, "group_size": 4, "max_new_tokens": 40}} | sections)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_plan_of_the_whole_model(name: str, rank: int, tmp_path: Path) -> None:
    """The whole model in bfloat16 on this CPU, without its kernels, has the same parts."""
    CONFIGS[name].save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"], "no weights and no tokenizer"
    config = settings(tmp_path, model={"lora": {"rank": rank}})
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.bfloat16, attn_implementation="eager").eval()
    lora = add_adapter(model, config.model.lora, base=str(tmp_path), seed=0) if rank else None
    whole = Policy(model, None, Head(model.get_output_embeddings(), 0.0), stop_ids=(), pad_id=0, context=128, lora=lora)
    whole = replace(whole, attention=install_hook(whole))
    trained = sum(p.numel() for p in whole.trainable.values())

    plan = plan_elsewhere(config, 2, 1.0)
    assert (plan.prompt, plan.new_tokens) == (88, 40), "no more than the context of 128 tokens has room for"
    assert (plan.parameters, plan.dtype, plan.devices) == (whole.parameters, "bfloat16", 2)
    found = plan.estimates[AS_SET]
    assert found.free == int(SHARE * 2**29), "CUDA takes half a GiB for itself"
    assert found.weights == cost_of(whole).weight_bytes
    assert (found.masters, found.moments) == (4 * trained, 8 * trained)
    assert found.cache == found.plan.slots * 128 * cost_of(whole).cache_bytes
    assert found.cache_stays
    with paused():
        exact = activation_bytes(whole, checkpointing=found.plan.recompute)
    assert found.token_bytes == pytest.approx(exact, rel=0.02)


def test_a_tower_is_counted_and_not_trained(tmp_path: Path) -> None:
    """Gemma 3 for images too: text passes through its language model alone."""
    text = CONFIGS["gemma3"].to_dict() | {"num_hidden_layers": 5}
    tower = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    Gemma3Config(text_config=text, vision_config=tower | {"patch_size": 14}, mm_tokens_per_image=1).save_pretrained(
        tmp_path
    )
    both = plan_elsewhere(settings(tmp_path), 1, 1.0).estimates[AS_SET]
    CONFIGS["gemma3"].save_pretrained(tmp_path)
    alone = plan_elsewhere(settings(tmp_path), 1, 1.0).estimates[AS_SET]
    assert both.weights > alone.weights
    assert (both.moments, both.token_bytes, both.cache) == (alone.moments, alone.token_bytes, alone.cache)


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    CONFIGS["qwen2"].save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"model\.revision=other has no effect on the local folder"):
        plan_elsewhere(settings(tmp_path, model={"revision": "other"}), 1, 1.0)


def test_what_saves_memory_is_planned_too(tmp_path: Path) -> None:
    CONFIGS["qwen2"].save_pretrained(tmp_path)
    plan = plan_elsewhere(settings(tmp_path), 4, 1.0)
    whole, sharded, fsdp, adapter = (
        plan.estimates[name] for name in (AS_SET, "optimizer.sharded=true", "parallel=fsdp", "model.lora.rank=16")
    )
    assert sharded.moments == pytest.approx(whole.moments / 4, rel=1e-3)
    assert replace(sharded, masters=0, moments=0) == replace(whole, masters=0, moments=0)
    assert fsdp.moments == sharded.moments
    shape = AutoModelForCausalLM.from_config(CONFIGS["qwen2"])
    layers = sum(p.numel() for p in shape.model.layers.parameters())
    assert fsdp.released == 2 * layers
    assert whole.gradients - fsdp.gradients == (4 + 2) * layers - 4 * layers / 4
    assert fsdp.gathered == (3 * 2 + 2 * 4) * layers / 5
    assert fsdp.peak < sharded.peak
    assert adapter.weights > whole.weights
    assert [*plan_elsewhere(settings(tmp_path), 1, 1.0).estimates] == [AS_SET, "model.lora.rank=16"]
    assert [*plan_elsewhere(settings(tmp_path, model={"lora": {"rank": 2}}), 4, 1.0).estimates] == [AS_SET]


def test_settings_that_leave_the_model_as_it_is_count_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cuts of the model are made for its weights and two with an adapter, which takes most of the time."""
    CONFIGS["qwen2"].save_pretrained(tmp_path)
    made = []

    def cut(*given: Any) -> Policy:
        made.append(given)
        return cut_of(*given)

    monkeypatch.setattr("slimrl.preflight.elsewhere.cut_of", cut)
    assert len(plan_elsewhere(settings(tmp_path), 4, 1.0).estimates) == 4
    assert len(made) == 4


def test_slots_are_for_the_share_of_a_device(tmp_path: Path) -> None:
    """Of 4 groups of 4, which stay whole, a device of three has 2 at most."""
    CONFIGS["qwen2"].save_pretrained(tmp_path)
    evaluation = {"problems": 10, "samples": 1, "greedy": False}
    slots = {
        count: plan_elsewhere(settings(tmp_path, evaluation=evaluation), count, 4.0).estimates[AS_SET].plan.slots
        for count in (1, 3)
    }
    assert slots == {1: 16, 3: 8}


@pytest.mark.parametrize("text", ["0x80", "8x0", "8x0.5"])
def test_less_than_a_device_is_refused(text: str) -> None:
    with pytest.raises(
        SettingsError, match=f"{text} is less than one GPU of 1 GiB; write 8x80 for eight GPUs of 80 GiB"
    ):
        read_devices(text)


@pytest.mark.parametrize("text", ["8", "8x", "x80", "8x-1", "8 x 80", "eightx80", "8x80GB"])
def test_what_is_not_a_number_of_devices_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not COUNTxGIB; write 8x80 for eight GPUs of 80 GiB"):
        read_devices(text)


def test_devices_are_read() -> None:
    assert read_devices("8x80") == (8, 80.0)
    assert read_devices("1X23.5") == (1, 23.5)


@pytest.mark.parametrize(
    "sections",
    [{"model": {"quantize": "4bit", "lora": {"rank": 8}}}, {"algorithm": {"reference": "other", "kl_coef": 0.1}}],
)
def test_what_cannot_be_planned_is_refused(sections: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--devices has no plan for .*; leave one of them out"):
        plan_elsewhere(settings(tmp_path, **sections), 8, 80.0)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_an_adapter_is_planned_with_the_model_that_it_belongs_to(targets: Any, tmp_path: Path) -> None:
    """As a new one of its rank and layers is."""
    CONFIGS["qwen2"].save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen2"])
    lora = add_adapter(model, LoraConfig(rank=4, targets=targets), base=str(tmp_path / "model"), seed=0)
    lora.save_config(tmp_path / "adapter", model)
    (tmp_path / "adapter" / WEIGHTS_FILE).touch()
    found = plan_elsewhere(settings(tmp_path / "adapter"), 1, 80)
    new = settings(tmp_path / "model", model={"lora": {"rank": 4, "targets": targets}})
    assert found == plan_elsewhere(new, 1, 80)
    with pytest.raises(SettingsError, match=r"is an adapter of rank 4 .*remove model.lora"):
        plan_elsewhere(settings(tmp_path / "adapter", model={"lora": {"rank": 8}}), 1, 80)
    (tmp_path / "adapter" / QUANTIZED_FILE).write_text('{"quantize": "4bit"}')
    with pytest.raises(SettingsError, match=r"--devices has no plan for .*an adapter beside weights in 4bit; leave"):
        plan_elsewhere(settings(tmp_path / "adapter"), 1, 80)


@pytest.mark.parametrize("which", ["layers_to_transform", "target_modules"])
def test_an_adapter_of_late_layers_is_planned(which: str, tmp_path: Path) -> None:
    """The cuts of the model from which activations are reckoned have none of them."""
    given = CONFIGS["qwen2"]
    last = given.num_hidden_layers - 1
    assert last >= 2
    given.save_pretrained(tmp_path / "model")
    model, one = AutoModelForCausalLM.from_config(given), LoraConfig(rank=4, targets=["q_proj"])
    lora = add_adapter(model, one, base=str(tmp_path / "model"), seed=0)
    lora.config.target_modules = {"q_proj"} if which == "layers_to_transform" else f".*layers[.]{last}[.].*q_proj"
    lora.config.layers_to_transform = [last] if which == "layers_to_transform" else None
    lora.save_config(tmp_path / "adapter", model)
    (tmp_path / "adapter" / WEIGHTS_FILE).touch()
    few = plan_elsewhere(settings(tmp_path / "adapter"), 1, 80).estimates[AS_SET]
    every = settings(tmp_path / "model", model={"lora": one.model_dump()})
    whole = plan_elsewhere(every, 1, 80).estimates[AS_SET]
    assert 0 < few.masters == whole.masters // given.num_hidden_layers
    assert few.token_bytes == whole.token_bytes


def test_a_model_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard of"}')
    with pytest.raises(DataError, match=r"model\.path=.*: transformers cannot load it"):
        plan_elsewhere(settings(tmp_path), 8, 80.0)
