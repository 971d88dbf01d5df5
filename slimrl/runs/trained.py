"""The choice between the two models that a run with an adapter leaves, where it is measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from slimrl.errors import DataError
from slimrl.model.adapter_files import find_adapter
from slimrl.terms import ADAPTER


def measured_path(run: Path, *, device: str = "auto") -> Path:
    """adapter/ of a run that has one, where it can be loaded as it was trained; otherwise the run itself, which stands for its
    final/. Merged weights of few bits have lost a part of what an adapter changes, and need nothing beside them.

    An adapter can be loaded so if the safetensors that it was trained beside are in their folder or in the cache of the Hub, and,
    where they are packed for it, a GPU and bitsandbytes are there. `device` is the setting `model.device`.
    """
    adapter = run / ADAPTER
    try:
        saved = find_adapter(str(adapter), {})
    except DataError:  # a damaged adapter, or one whose model has gone
        return run
    if saved is None or (saved.quantize is not None and not _can_unpack(device)):
        return run
    weights = saved.base_weights()
    return adapter if weights and saved.fits(weights) else run


def _can_unpack(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None
