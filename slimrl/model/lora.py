"""Low-rank adaptation (LoRA, arXiv:2106.09685): small trained factors beside frozen weights, through peft.

peft's layers are put into the model in place of its linear layers, so the model keeps its class, its trunk and its head. The
layer of a weight W [outputs, inputs] computes x (W + scaling B A)^T with A [rank, inputs] and B [outputs, rank]. B begins at 0,
so a new adapter changes nothing, and the model without it is the initial policy.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrl.config.mistakes import nearest
from slimrl.config.sections import LoraConfig
from slimrl.errors import DataError, SettingsError
from slimrl.model.adapter_files import BASE_FILE, QUANTIZED_FILE, SavedAdapter, fingerprint, load_peft, weight_files
from slimrl.model.architecture import text_decoder
from slimrl.model.quantized import full_weight, packed_bits, quantized_layers
from slimrl.model.taught import FILE as TAUGHT_FILE
from slimrl.model.taught import note_taught, read_taught, taught_of

NAME = "default"
"""peft's name of the one adapter of a model."""
PREFIX = "base_model.model."
"""Of the names in an adapter's file: peft wraps the model twice."""


@dataclass(frozen=True)
class Lora:
    """The adapter of a policy."""

    config: Any
    """peft's own, as its file has it."""
    new: bool
    """It began with this run, so the model without it is the initial policy."""
    beside: str = ""
    """The fingerprint of the files of the weights beside it; empty where they are not safetensors on this machine."""

    @property
    def rank(self) -> int:
        return int(self.config.r)

    def save_config(self, folder: Path, model: PreTrainedModel) -> None:
        """peft's description of the adapter, and in files of their own what SlimRL notes in a model's config.json, and the
        fingerprint and the packing of the weights beside it.
        """
        self.config.save_pretrained(folder)
        if self.beside:
            (folder / BASE_FILE).write_text(json.dumps({"weights": self.beside}), encoding="utf-8")
        if taught := taught_of(model).as_json():
            (folder / TAUGHT_FILE).write_text(json.dumps(taught), encoding="utf-8")
        if (bits := packed_bits(model)) is not None:
            (folder / QUANTIZED_FILE).write_text(json.dumps({"quantize": bits}), encoding="utf-8")


def add_adapter(model: PreTrainedModel, settings: LoraConfig, *, base: str, revision: str = "main", seed: int) -> Lora:
    """Put a new adapter into a model, whose own weights are frozen; `seed` decides its first factors A.

    The adapter's files name `base`, a folder or a Hub name with its `revision`.

    Raises SettingsError for targets that the model does not have, or that are no linear layers.
    """
    peft = load_peft()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets_of(model, settings.targets),
        base_model_name_or_path=str(Path(base).resolve()) if Path(base).is_dir() else base,
        revision=None if Path(base).is_dir() else revision,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():  # peft draws A with torch's generator, which is put back as it was
        torch.random.manual_seed(seed)
        _put(model, config)
    return Lora(config, new=True, beside=fingerprint(weight_files(base, revision)))


def place_adapter(model: PreTrainedModel, saved: SavedAdapter) -> Lora:
    """Put the layers of a saved adapter into its model; their factors are not read. Raises DataError where they do not fit."""
    try:
        _put(model, saved.config)
    except SettingsError:
        raise
    except (TypeError, ValueError) as error:  # peft finds none of its layers, or a rank or an alpha that is none
        raise _unfit(saved, str(error).splitlines()[0][:120]) from error
    return Lora(saved.config, new=False, beside=fingerprint(saved.base_weights()))


def load_adapter(model: PreTrainedModel, saved: SavedAdapter) -> Lora:
    """Put a saved adapter into its model; raises DataError where its tensors are not those of this model."""
    placed = place_adapter(model, saved)
    try:
        found = load_file(saved.weights)
        taught = None if saved.taught is None else json.loads(saved.taught.read_text(encoding="utf-8"))
    except Exception as error:  # safetensors has an error of its own for a damaged file
        raise DataError(
            f"{saved.weights}: the adapter cannot be read ({str(error).splitlines()[0][:120]}); restore it"
        ) from error
    wanted = adapter_tensors(model)
    odd = sorted(found.keys() ^ wanted.keys())
    if odd or any(found[name].shape != tensor.shape for name, tensor in wanted.items()):
        name = odd[0] if odd else next(name for name, tensor in wanted.items() if found[name].shape != tensor.shape)
        raise _unfit(saved, name)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(found[name])
    if taught is not None:
        note_taught(model, read_taught(taught))
    return placed


def _unfit(saved: SavedAdapter, what: str) -> DataError:
    return DataError(f"{saved.weights} does not fit {saved.base} ({what}); give the model that it was trained on")


def _put(model: PreTrainedModel, config: Any) -> None:
    peft = load_peft()
    known = {*linear_layers(model)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on patterns that peft itself adds for layers of experts
        peft.inject_adapter_in_model(config, model, adapter_name=NAME)
    for name, layer in adapted_layers(model):
        if name not in known or not isinstance(layer, peft.tuners.lora.Linear):
            raise SettingsError(
                f"model.lora: an adapter beside {name} of {type(model).__name__}, which is no linear layer of its text decoder, "
                "is not trained; name the layers of attention in model.lora.targets, as [q_proj, v_proj], or merge a saved "
                "adapter into its model with peft"
            )
    for parameter in adapter_parameters(model).values():  # which peft makes float32
        parameter.data = parameter.data.to(model.dtype)
        parameter.requires_grad_(True)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers of the text decoder, without the head."""
    inside = {id(module) for module in text_decoder(model).modules() if isinstance(module, nn.Linear)}
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if id(module) in inside and module is not head]


def targets_of(model: PreTrainedModel, wanted: str | Sequence[str]) -> list[str]:
    """The full names of the linear layers that `model.lora.targets` names; raises SettingsError for a name that is none."""
    names = linear_layers(model)
    kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
    if not names:
        raise SettingsError(
            f"model.lora: {type(model).__name__} has no linear layers to put an adapter beside; remove model.lora to train the "
            "weights themselves"
        )
    if isinstance(wanted, str):
        return names
    for name in wanted:
        if name not in kinds:
            raise SettingsError(
                f"model.lora.targets: this model has no linear layer {name!r}; it has {', '.join(kinds)}"
                f"{nearest(name, kinds)}"
            )
    return [name for name in names if name.rsplit(".", 1)[-1] in wanted]


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """peft's layers of a model, by name."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The factors of all adapters, by their names in the model."""
    return {
        f"{name}.{factor}.{NAME}.weight": getattr(layer, factor)[NAME].weight
        for name, layer in adapted_layers(model)
        for factor in ("lora_A", "lora_B")
    }


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The same by their names in peft's files."""
    return {
        PREFIX + name.removesuffix(f".{NAME}.weight") + ".weight": parameter
        for name, parameter in adapter_parameters(model).items()
    }


def shared_copy(module: Any) -> Any:
    """A copy of a module that shares all frozen parameters with it."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    scales = [layer.scales for _, layer in quantized_layers(module)]
    return copy.deepcopy(module, {id(shared): shared for shared in (*frozen, *scales)})


def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The model under an adapter, which shares its weights."""
    plain: PreTrainedModel = shared_copy(model)
    _remove(plain)
    return plain


@torch.no_grad()
def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The model with W + scaling B A, summed in float32, in place of every weight W that has an adapter; it shares all others,
    but for packed ones, which are widened.
    """
    plain: PreTrainedModel = shared_copy(model)
    for _, layer in adapted_layers(plain):
        layer.base_layer = _with_weight(layer.base_layer, _sum(layer))
    _remove(plain)
    for name, packed in list(quantized_layers(plain)):
        plain.set_submodule(name, _with_weight(packed, full_weight(packed)))
    return plain


@torch.no_grad()
def merged_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `merge(model)` by their names there, on the model's device, each sum made when it is asked for; not for
    packed weights.
    """
    layers = dict(adapted_layers(model))
    for name, tensor in model.state_dict().items():
        owner, inside, rest = name.partition(".base_layer.")
        if inside and rest == "weight" and owner in layers:
            tensor = _sum(layers[owner])
        if not any(f".{factor}." in name for factor in ("lora_A", "lora_B")):
            yield owner + "." * bool(inside) + rest, tensor


@torch.no_grad()
def rounding_error(model: PreTrainedModel) -> float:
    """The part of the adapter's change that `merge` loses by rounding: |merged - (W + scaling B A)| / |scaling B A| over all
    adapted weights; 0 where nothing has changed.
    """
    lost = change = 0.0
    for _, layer in adapted_layers(model):
        exact = _exact_sum(layer)
        lost += float((_rounded(layer, exact).float() - exact).square().sum())
        change += float((exact - full_weight(layer.base_layer).float()).square().sum())
    return math.sqrt(lost / change) if change else 0.0


def _sum(layer: Any) -> Tensor:
    """W + scaling B A of an adapted layer, summed in float32, in the type of A."""
    return _rounded(layer, _exact_sum(layer))


def _exact_sum(layer: Any) -> Tensor:
    a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    return full_weight(layer.base_layer).float().addmm(b.float(), a.float(), alpha=layer.scaling[NAME])


def _rounded(layer: Any, exact: Tensor) -> Tensor:
    return exact.to(layer.lora_A[NAME].weight.dtype)


def _with_weight(layer: nn.Linear, weight: Tensor) -> nn.Linear:
    """A plain layer with another weight, which is only saved: a GPU may have no room for it."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight.cpu(), requires_grad=False)
    plain.bias = layer.bias
    return plain


def _remove(model: PreTrainedModel) -> None:
    """Put the layers under adapters in their places."""
    for name, layer in list(adapted_layers(model)):
        model.set_submodule(name, layer.base_layer)
    vars(model).pop("peft_config", None)
