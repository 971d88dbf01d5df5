"""The model that TRL trains, its adapter and the data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from slimrl.config import foreign_names
from slimrl.config.places import DATA_SUFFIXES
from slimrl.translate.rewards import CORRECT
from slimrl.translate.translation import Setting
from slimrl.translate.values import Keyed, Values

PEFT_TARGETS = ["q_proj", "v_proj"]
"""The layers that peft adapts in Llama, Qwen, Gemma and SmolLM where none are named."""
LAYERS = re.compile(r"(?:q|k|v|o|gate|up|down)_proj")
"""Names of linear layers, which a pattern may hold."""
ROWS = {"openai/gsm8k": 7473, "gsm8k": 7473}
"""Training problems of data sets that SlimRL knows by name."""
TASKS = {"openai/gsm8k": "gsm8k", "gsm8k": "gsm8k"}
WITH_OWNER = {"gsm8k": "openai/gsm8k"}
"""Data sets that `datasets` finds by a name without its owner too, which names a file here."""
ONLY_CONFIG = {"openai/gsm8k": "main"}
"""The configuration to take of a data set where none is named."""


def model_settings(trl: Values) -> Iterator[Keyed]:
    """The model and its precision."""
    path = trl.given.get("model_name_or_path")
    if not isinstance(path, str):
        yield _missing(trl, "model.path", "./MODEL", "model_name_or_path")
    else:
        yield trl.set("model.path", path, "model_name_or_path")
    dtype = trl.given.get("torch_dtype", trl.given.get("dtype", ""))
    narrow = next((name for name in ("bf16", "fp16") if trl.given.get(name) is True), "")
    if narrow:
        yield trl.set("model.dtype", {"bf16": "bfloat16", "fp16": "float16"}[narrow], "bf16", "fp16")
    elif trl.given.get("bf16") is False:
        yield trl.set("model.dtype", "float32", "bf16")
    elif dtype and dtype != "auto":
        known = foreign_names.VALUES["model.dtype"]
        yield trl.set("model.dtype", known.get(str(dtype), dtype), "torch_dtype", "dtype")
    trl.read.update(("torch_dtype", "dtype", "bf16", "fp16"))


def _missing(trl: Values, key: str, stand_in: str, name: str) -> Keyed:
    """A path that the file does not say, or says in a way that cannot be read."""
    trl.depends(key, name)
    what = "model" if name == "model_name_or_path" else "data"
    found = trl.because(name) if name in trl.source.unread else f"the file names no {what}"
    return key, Setting(stand_in, f"{found}: put your file or folder, or the name on the Hub, here")


def adapter_settings(trl: Values) -> Iterator[Keyed]:
    """Rank, alpha and layers of an adapter."""
    trl.read.update(("use_peft", "lora_r", "lora_alpha", "lora_target_modules", "use_rslora"))
    if not trl.given.get("use_peft"):
        return
    rank, alpha = trl.whole("lora_r"), trl.number("lora_alpha")
    yield trl.set("model.lora.rank", rank, "lora_r", "use_peft")
    if trl.given.get("use_rslora"):
        exact = max(1, round(alpha * math.sqrt(rank)))
        yield trl.set("model.lora.alpha", exact, "lora_alpha", "use_rslora", why="times the root of the rank")
    else:
        yield trl.set("model.lora.alpha", max(1, round(alpha)), "lora_alpha")
    yield from _targets(trl)
    row = foreign_names.row("lora_dropout")
    if "lora_dropout" not in trl.given and trl.values.get("lora_dropout") and row:
        trl.leave("lora_dropout", f"{trl.values['lora_dropout']:g}, TRL's default", row.note)


def _targets(trl: Values) -> Iterator[Keyed]:
    """The adapted layers; of a pattern the names that stand in it."""
    key, name = "model.lora.targets", "lora_target_modules"
    targets = trl.given.get(name)
    if targets in ("all-linear", ["all-linear"]):
        yield trl.set(key, "all-linear", name)
    elif isinstance(targets, list):
        yield trl.set(key, targets, name)
    elif targets is None:
        yield key, Setting(PEFT_TARGETS, "peft's own where no layers are named")
    elif "(?" not in str(targets) and (named := list(dict.fromkeys(LAYERS.findall(str(targets))))):
        trl.leave(name, targets, f"a pattern; the names in it are written, for every layer: {', '.join(named)}")
        yield trl.set(key, named, name)
    else:
        trl.leave(name, targets, "a pattern; list the names of the layers, or all-linear acts instead")


def data_settings(trl: Values) -> Iterator[Keyed]:
    """The data, the form of its answers and the instruction."""
    name, config = trl.given.get("dataset_name"), trl.given.get("dataset_config")
    symbolic = any(one.name in CORRECT and not one.is_local for one in trl.source.rewards)
    trl.read |= {"dataset_name", "dataset_config"}
    if not isinstance(name, str):
        yield _missing(trl, "task.path", "./DATA.jsonl", "dataset_name")
    elif name in TASKS and config in (None, "main", "default") and has_whole_split(trl):
        trl.read |= {"dataset_train_split", "dataset_test_split"}
        yield trl.set("task.name", TASKS[name], "dataset_name", "dataset_config")
    else:
        yield from _named_data(trl, name, config)
    if symbolic:
        yield "task.style", Setting("boxed", "accuracy_reward looks for \\boxed{} first")
    if symbolic and name not in TASKS:
        reason = "accuracy_reward compares with math-verify, here the extra `math`"
        yield "task.checker", Setting("symbolic", reason)
        yield "task.columns.answer", Setting("solution", "the column that accuracy_reward reads")
    if isinstance(trl.given.get("system_prompt"), str):
        yield trl.set("task.instruction", trl.given["system_prompt"], "system_prompt")
    else:
        reason = (
            "no system prompt is in the file, and SlimRL's own asks for the form of task.style; slimrl doctor shows the "
            "first prompt, and task.instruction sets another or, empty, none"
        )
        trl.leave("prompts", "", reason)


def _named_data(trl: Values, name: str, config: object) -> Iterator[Keyed]:
    """The path of a file or a data set on the Hub, and the configuration of the data set."""
    why = "a tenth is held out unless test_split or test_path is set"
    is_file = name.lower().endswith(DATA_SUFFIXES) or name.startswith((".", "/"))
    path = WITH_OWNER.get(name, name)
    if "/" not in path and not is_file:
        path, why = f"OWNER/{name}", f"put the owner of the data set on the Hub here, or give a file; {why}"
    yield trl.set("task.path", path, "dataset_name", why=why)
    if is_file:
        _leave_splits(trl)
    if isinstance(config, str):
        yield trl.set("task.subset", config, "dataset_config")
    elif path in ONLY_CONFIG:
        yield "task.subset", Setting(ONLY_CONFIG[path], "its configuration with one solution a problem")


def _leave_splits(trl: Values) -> None:
    """Splits of files, of which `train` is all that there is; others are listed."""
    whole = has_whole_split(trl)
    for name, key in (("dataset_train_split", "task.path"), ("dataset_test_split", "task.test_path")):
        if name in trl.given and not (whole and key == "task.path"):
            trl.leave(name, trl.given[name], f"a part of files; write its rows into a file of their own, for {key}")
        trl.read.add(name)


def has_whole_split(trl: Values) -> bool:
    """True where the file trains on all of the split `train`, as far as it can be read."""
    name = "dataset_train_split"
    return bool(trl.given.get(name, "train") == "train" and name not in trl.source.unread)


def known_rows(trl: Values) -> int:
    """Training problems of a data set that SlimRL knows by name; 0 of any other."""
    return ROWS.get(str(trl.given.get("dataset_name")), 0) if has_whole_split(trl) else 0
