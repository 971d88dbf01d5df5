"""Python code that comes with a model: refused unless it was asked for, and then only what was read and pinned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name

from slimrl.config.sections import ModelConfig
from slimrl.errors import DataError, SettingsError


def check_code(config: ModelConfig, path: str, hub: Mapping[str, Any]) -> list[str]:
    """Notes on code in the model's folder that is not run; `hub` holds the arguments of from_pretrained.

    Raises DataError for a model or a tokenizer that is nothing without its code, and, where code may run,
    SettingsError for code that `model.revision` does not pin and for a model that brings none.
    """
    shape: dict[str, Any] = PreTrainedConfig.get_config_dict(path, **hub)[0]
    words: dict[str, Any] = get_tokenizer_config(path, **hub)
    own_class = str(words.get("tokenizer_class") or "PreTrainedTokenizerFast")
    parts = {
        "config.json": (_code(shape), shape.get("model_type") in CONFIG_MAPPING),
        "tokenizer_config.json": (_code(words), tokenizer_class_from_name(own_class) is not None),
    }
    if config.trust_remote_code:
        _check_pin(config, path, [entry for code, _ in parts.values() for entry in code])
        return []
    notes = []
    for file, (code, is_known) in parts.items():
        if code and not is_known:
            raise DataError(
                f"model.path={config.path}: {file} needs Python code that comes with the model ({code[0]}), which is never "
                "run unasked; choose a model that transformers knows, or read the code, then set "
                "model.trust_remote_code=true and model.revision"
            )
        if code:
            notes.append(
                f"{file} names Python code that comes with the model ({code[0]}); it was not run, transformers' own was"
            )
    return notes


def fingerprint_of_code(folder: Path) -> str:
    """40 digits that change with any Python file of a folder; for a local folder, what a commit is for the Hub."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:40]


def _check_pin(config: ModelConfig, path: str, code: list[str]) -> None:
    if not code:
        raise SettingsError(
            f"model.trust_remote_code has no effect: {config.path} brings no code of its own; remove it and model.revision"
        )
    elsewhere = next((entry for entry in code if "--" in entry), "")
    if elsewhere:
        raise DataError(
            f"model.path={config.path} takes code from another repository ({elsewhere}), which model.revision cannot pin; "
            "copy that code into the model's folder, and read it"
        )
    if Path(path).is_dir() and config.revision != (pin := fingerprint_of_code(Path(path))):
        raise SettingsError(
            f"model.revision={config.revision} does not pin the Python files of the local folder {config.path}; read them, "
            f"then set model.revision={pin}, which stands for them as they are"
        )


def _code(settings: Mapping[str, Any]) -> list[str]:
    """Modules and classes under `auto_map`, as `module.Class`."""
    found = settings.get("auto_map")
    values = found.values() if isinstance(found, dict) else [found]
    return [str(entry) for value in values for entry in (value if isinstance(value, list) else [value]) if entry]
