"""Activation checkpointing: keep each layer's input, compute the layer again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from slimrl.errors import SettingsError


@contextmanager
def checkpointed(model: PreTrainedModel, on: bool) -> Iterator[None]:
    """Within the block a forward pass with gradients keeps layer inputs only, if `on`; backward stays within it.

    transformers checkpoints layers in training mode alone. Only the layer's own flag is raised, not its children's, so
    dropout stays off and the trainer's policy remains the sampler's. Raises SettingsError where layers know no
    checkpointing.
    """
    if not on:
        yield
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise SettingsError(
            f"{type(model).__name__} has no layers that can be checkpointed; set optimizer.activation_checkpointing=off"
        )
    recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    for layer in layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func, layer.training = True, recompute, True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing, layer.training = False, False
