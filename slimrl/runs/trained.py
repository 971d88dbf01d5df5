"""The choice between the two models that a run with an adapter leaves, where it is measured."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from slimrl.config.places import ADAPTER
from slimrl.errors import DataError
from slimrl.model.lora import find_adapter


def measured_path(model: str) -> str:
    """The path at which a run is measured: that of its adapter, where it has one that loads here, since weights that are merged
    in few bits lose a part of it; otherwise the run's own, which stands for its final/. Any other model keeps its path.

    An adapter loads here if its model is in a folder or in the cache of the Hub, and a GPU is there where that model is packed.
    """
    folder = Path(model).expanduser() / ADAPTER
    try:
        saved = find_adapter(str(folder), {}) if folder.is_dir() else None
    except DataError:  # a damaged adapter, or one whose model has gone
        return model
    if saved is None or (saved.quantize is not None and not torch.cuda.is_available()):
        return model
    return str(folder) if Path(saved.base).is_dir() or _cached(saved.base, saved.revision) else model


def _cached(name: str, revision: str) -> bool:
    """A model of the Hub has its description and its weights on this machine."""
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    description, *weights = (
        cached_file(name, file, revision=revision, local_files_only=True, **quiet)
        for file in ("config.json", SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )
    return description is not None and any(weights)
