"""Adapters in files, as peft writes them: found in a folder or on the Hub, known as low-rank factors and nothing else, and told
from those that were trained beside other weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from slimrl.config.places import is_hub_name
from slimrl.errors import DataError
from slimrl.model.quantized import Bits
from slimrl.model.taught import FILE as TAUGHT_FILE

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
QUANTIZED_FILE = "slimrl_quantized.json"
"""Beside an adapter of packed weights: their bits."""
BASE_FILE = "slimrl_base.json"
"""The same, with the fingerprint of the weights that it was trained beside."""
BLOCKS, BLOCK = 16, 2**20
"""Blocks of a file that its fingerprint is made of, and bytes of each: training changes some number in every one."""
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
    beside: str = ""
    """The fingerprint of these weights; empty where its files do not say."""

    def base_weights(self) -> list[Path]:
        """The files of the weights that would be loaded with it, if all are on this machine."""
        return weight_files(self.base, self.revision)

    def fits(self, weights: Sequence[Path]) -> bool:
        """True for the weights that it was trained beside, as far as its files say."""
        return not self.beside or self.beside == fingerprint(weights)


def load_peft() -> Any:
    """peft, whose import takes a second that no other run should spend. On a CPU bitsandbytes, which it imports where that is
    installed, warns that kernels for packed weights are missing, where none are packed.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import peft
    finally:
        logger.setLevel(level)
    return peft


def find_adapter(path: str, source: Mapping[str, Any]) -> SavedAdapter | None:
    """The adapter at a folder or a Hub name; None where there is a model of its own, or nothing.

    Raises DataError for an adapter of another kind than low-rank factors, or without its weights or its base.
    """
    file = _file(path, CONFIG_FILE, source)
    if file is None:
        return None
    peft = load_peft()
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
    beside = _beside(_file(path, BASE_FILE, source))
    return SavedAdapter(config, weights, base, config.revision or "main", all(words), taught, bits, beside)


def _variant(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an adapter's file by which it is more than products of two factors, or may be: those that the installed peft
    does not know, and would leave out, are among them.
    """
    peft = load_peft()
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
        local = source.get("local_files_only", False)
        found = cached_file(path, name, revision=source.get("revision", "main"), local_files_only=local, **quiet)
    except OSError:  # no such repository, which the loading of the model says better
        return None
    return None if found is None else Path(found)


def _beside(file: Path | None) -> str:
    """The fingerprint in a file; empty where there is none that can be read."""
    try:
        return "" if file is None else str(json.loads(file.read_text(encoding="utf-8"))["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def weight_files(model: str, revision: str = "main") -> list[Path]:
    """The safetensors of a model in a folder or in the cache of the Hub; empty where not all of it is there."""
    if not Path(model).is_dir() and not is_hub_name(model):
        return []
    source = {"revision": revision, "local_files_only": True}
    names = [SAFE_WEIGHTS_NAME]
    if (index := _file(model, SAFE_WEIGHTS_INDEX_NAME, source)) is not None:
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError):
            return []
    files = [file for name in names if (file := _file(model, name, source)) is not None]
    whole = len(files) == len(names) and _file(model, "config.json", source) is not None
    return files if whole else []


def fingerprint(files: Sequence[Path]) -> str:
    """The SHA-256 of the sizes of weight files and of blocks of them; empty without any."""
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(size.to_bytes(8, "little"))
        with file.open("rb") as opened:
            for number in range(BLOCKS):
                opened.seek(max(0, size - BLOCK) * number // (BLOCKS - 1))
                found.update(opened.read(BLOCK))
    return found.hexdigest() if files else ""
