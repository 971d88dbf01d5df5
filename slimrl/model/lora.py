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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from slimrl.config.mistakes import nearest
from slimrl.config.places import is_hub_name
from slimrl.config.sections import LoraConfig
from slimrl.errors import DataError, SettingsError
from slimrl.model.architecture import text_decoder
from slimrl.model.quantized import Bits, full_weight, packed_bits, quantized_layers
from slimrl.model.taught import FILE as TAUGHT_FILE
from slimrl.model.taught import note_taught, read_taught, taught_of

NAME = "default"
"""peft's name of the one adapter of a model."""
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
QUANTIZED_FILE = "slimrl_quantized.json"
"""Beside an adapter of packed weights: their bits."""
PREFIX = "base_model.model."
"""Of the names in an adapter's file: peft wraps the model twice."""
HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
"""Settings of a peft adapter with which it is products of two factors and nothing else, whatever their values: they choose
layers, ranks and scales, say how training began, or belong to another setting. Dropout is never on. Any other must be as peft has
it."""
PLAIN_BEGINNINGS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that set only the factors. PiSSA, CorDA, OLoRA, LoftQ and LoRA-GA change the weights beside them,
which the adapter's file does not hold (peft's LoraLayer.update_layer), and MiCA never trains B."""


@dataclass(frozen=True)
class Lora:
    """The adapter of a policy."""

    config: Any
    """peft's own, as its file has it."""
    new: bool
    """It began with this run, so the model without it is the initial policy."""

    @property
    def rank(self) -> int:
        return int(self.config.r)

    def save_config(self, folder: Path, model: PreTrainedModel) -> None:
        """peft's description of the adapter, and in files of their own what SlimRL notes in a model's config.json and the
        packing of the weights beside it.
        """
        self.config.save_pretrained(folder)
        if taught := taught_of(model).as_json():
            (folder / TAUGHT_FILE).write_text(json.dumps(taught), encoding="utf-8")
        if (bits := packed_bits(model)) is not None:
            (folder / QUANTIZED_FILE).write_text(json.dumps({"quantize": bits}), encoding="utf-8")


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter in files, and the model that it belongs to."""

    config: Any
    weights: Path
    base: str
    """Folder or Hub name."""
    revision: str
    tokenizer: bool
    """It has a tokenizer of its own, and with it perhaps another chat template."""
    taught: Path | None
    """The file with the note on how it was trained, if SlimRL did."""
    quantize: Bits | None = None
    """The packing of the weights that it was trained beside."""


def find_adapter(path: str, source: Mapping[str, Any]) -> SavedAdapter | None:
    """The adapter at a folder or a Hub name; None where there is a model of its own, or nothing.

    Raises DataError for an adapter of another kind than low-rank factors, or without its weights or its base.
    """
    file = _file(path, CONFIG_FILE, source)
    if file is None:
        return None
    import peft  # takes a second, which no other run should spend

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on settings that do not act, and on unknown ones, which are judged below
            config = peft.PeftConfig.from_pretrained(str(file.parent))
    except Exception as error:  # peft raises many kinds for one cause
        raise DataError(f"{file}: peft cannot read it ({str(error).splitlines()[0][:200]})") from error
    if type(config) is not peft.LoraConfig:
        raise DataError(
            f"model.path={path} is an adapter of the kind {config.peft_type}, and SlimRL knows LoRA; merge it into its model "
            "with peft and give the merged folder"
        )
    for key, found in _variant(json.loads(file.read_text(encoding="utf-8"))).items():
        raise DataError(
            f"model.path={path} is an adapter with {key}={found!r}, which SlimRL does not train; merge it into its model "
            "with peft and give the merged folder"
        )
    weights = _file(path, WEIGHTS_FILE, source)
    if weights is None:
        raise DataError(f"model.path={path} has {CONFIG_FILE} but no {WEIGHTS_FILE}; add it")
    base = config.base_model_name_or_path or ""
    if not base or not (Path(base).is_dir() or is_hub_name(base)):  # the path of an empty name is this folder
        raise DataError(
            f"model.path={path} is an adapter for {base or 'a model that it does not name'}, which is not here; set "
            f"base_model_name_or_path in its {CONFIG_FILE} to the folder of that model"
        )
    config.inference_mode = False
    config.init_lora_weights = True  # the factors are read anyway
    words = [_file(path, name, source) for name in ("tokenizer_config.json", "tokenizer.json")]
    taught, packed = (_file(path, name, source) for name in (TAUGHT_FILE, QUANTIZED_FILE))
    bits = None if packed is None else _bits(packed)
    return SavedAdapter(config, weights, base, config.revision or "main", all(words), taught, bits)


def _variant(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an adapter's file by which it is more than products of two factors, or may be: those that the installed peft
    does not know, and would leave out, are among them.
    """
    import peft

    usual, beginning = peft.LoraConfig(), given.get("init_lora_weights", True)
    beginning = beginning.lower() if isinstance(beginning, str) else bool(beginning)
    odd = {} if beginning in PLAIN_BEGINNINGS else {"init_lora_weights": beginning}
    for key in given.keys() - HARMLESS:
        found, plain = given[key], getattr(usual, key, None)
        if found != plain and (found or plain):  # older files say null for an empty list, and the other way round
            odd[key] = found
    return odd


def _bits(file: Path) -> Bits:
    """The packing that a file names; raises DataError for another file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["quantize"]
    except (ValueError, KeyError, TypeError):
        found = None
    if found not in get_args(Bits):
        raise DataError(f"{file}: it names no packing of weights that SlimRL knows; restore it")
    return cast(Bits, found)


def _file(path: str, name: str, source: Mapping[str, Any]) -> Path | None:
    """A file of a folder or of a Hub repository; None where it has none."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")}
    try:
        found = cached_file(path, name, revision=source.get("revision", "main"), **quiet)
    except OSError:  # no such repository, which the loading of the model says better
        return None
    return None if found is None else Path(found)


def add_adapter(model: PreTrainedModel, settings: LoraConfig, *, base: str, revision: str = "main", seed: int) -> Lora:
    """Put a new adapter into a model, whose own weights are frozen; `seed` decides its first factors A.

    The adapter's files name `base`, a folder or a Hub name with its `revision`.

    Raises SettingsError for targets that the model does not have, or that are no linear layers.
    """
    import peft

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
    return Lora(config, new=True)


def place_adapter(model: PreTrainedModel, saved: SavedAdapter) -> Lora:
    """Put the layers of a saved adapter into its model; their factors are not read. Raises DataError where they do not fit."""
    try:
        _put(model, saved.config)
    except SettingsError:
        raise
    except (TypeError, ValueError) as error:  # peft finds none of its layers, or a rank or an alpha that is none
        raise _unfit(saved, str(error).splitlines()[0][:120]) from error
    return Lora(saved.config, new=False)


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
    import peft

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
