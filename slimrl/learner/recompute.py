"""Around the layers of a pass: activation checkpointing, which keeps a layer's input and computes the layer again in the backward
pass, and checks for a stop, which need not wait for the end of the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from slimrl.errors import SettingsError


@contextmanager
def checkpointed(model: nn.Module, on: bool) -> Iterator[None]:
    """Within the block a forward pass with gradients keeps layer inputs only, if `on`; backward may come later.

    transformers checkpoints layers in training mode alone, which would turn dropout on and make the trainer's policy
    another than the sampler's; so their forward is wrapped instead. Raises SettingsError where there are no such layers.
    """
    if not on:
        yield
        return
    layers = layers_of(model)
    if not layers:
        raise SettingsError(
            f"{type(model).__name__} has no layers that can be checkpointed; set optimizer.activation_checkpointing=off"
        )
    for layer in layers:
        again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        vars(layer)["forward"] = again  # found before the class's own
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


@contextmanager
def checked(model: nn.Module, check: Callable[[], object]) -> Iterator[None]:
    """Within the block `check` is called after every layer's forward pass and before its backward pass; what it raises ends the
    pass.
    """

    def before_backward(_gradient: Tensor) -> None:
        check()

    def after(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        check()
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(before_backward)  # type: ignore[no-untyped-call]

    handles = [layer.register_forward_hook(after) for layer in layers_of(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def can_checkpoint(model: nn.Module) -> bool:
    """True where the model has layers that can be computed again."""
    return bool(layers_of(model))


def layers_of(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The decoder layers of a model, in their order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
