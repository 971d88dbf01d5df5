"""A narrow model run in float32 without a second copy of it: what rounding does is then no part of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slimrl.kernels.native import has_kernels, paused

NARROW = (torch.bfloat16, torch.float16)
WIDE = 512
"""Numbers of a hidden state from which on products are most of the time that a model takes on a CPU."""
PICKING = frozenset(
    {
        "__getitem__", "chunk", "contiguous", "detach", "dim", "expand", "flatten", "numel", "permute", "reshape", "size",
        "split", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
    }
)  # fmt: skip
"""Functions that only select or lay out numbers: widening their result is enough, and cheaper."""


def usual_dtype(device: torch.device, config: Any) -> torch.dtype:
    """The type that `model.dtype=auto` stands for, given a model's text configuration.

    bfloat16 on a GPU, and on a CPU that multiplies it (AVX512-BF16, measured 2.1 to 5 times as fast as float32) for models
    wide enough to gain by it; else float32. It depends on the processor and on a compiler being there, not on a measurement, so
    that a run can be repeated.
    """
    if device.type == "cuda":
        return torch.bfloat16
    wide = (getattr(config, "hidden_size", None) or 0) >= WIDE
    return torch.bfloat16 if wide and has_kernels(torch.bfloat16) else torch.float32


def is_narrow(model: nn.Module) -> bool:
    """True where the weights are narrower than float32."""
    return next(model.parameters()).dtype in NARROW


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """While this is entered, every operation on the model's bfloat16 or float16 weights is computed in float32.

    Weights are widened operation by operation, so that a forward pass holds one widened matrix at a time in addition to the
    model: a few hundred MiB for the layers of a model of 4 billion parameters, 1.5 GiB for its head. Nothing that is
    entered may write into a narrow tensor in place. A float32 model runs as it is.
    """
    if not is_narrow(model):
        yield
        return
    with paused(), _InFloat32():  # kernels would read the narrow weights themselves
        yield


class _InFloat32(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "__get__":  # a property of a tensor; a narrow dtype is what code would cast to
            found = func(*args, **kwargs)
            return _wide(found) if isinstance(found, torch.dtype) else found
        if name in PICKING:
            return func(*args, **kwargs)
        if name == "embedding":  # a few rows of a large table
            return _wide(func(*args, **kwargs))
        return func(*map(_wide, args), **{key: _wide(value) for key, value in kwargs.items()})


def _wide(value: Any) -> Any:
    """The same in float32, tensors and types, also inside of lists and tuples."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in NARROW else value
    if type(value) in (list, tuple):
        return type(value)(map(_wide, value))
    return value
