"""Bytes that a forward pass keeps for the backward one, counted on the module itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slimrl.learner.recompute import checkpointed
from slimrl.model.packing import pack
from slimrl.model.policy import Policy


def activation_bytes(policy: Policy, *, checkpointing: bool) -> int:
    """Bytes that a forward pass keeps for the backward one, a token: counted on two short rows of this very module."""
    layers = policy.model.config.get_text_config().num_hidden_layers
    kept = {again: kept_bytes(policy, again) for again in {False, checkpointing}}
    return with_gradients(kept, layers, checkpointing=checkpointing)


def kept_bytes(policy: Policy, checkpointing: bool) -> float:
    """Bytes that each further token of a row leaves to the backward pass."""
    sizes = (16, 48)
    kept = [_saved(policy, size, checkpointing) for size in sizes]
    return (kept[1] - kept[0]) / (sizes[1] - sizes[0])


def with_gradients(kept: Mapping[bool, float], layers: int, *, checkpointing: bool) -> int:
    """Bytes of a token in a model of so many layers: those that it keeps, by whether layers are computed again, and the gradients
    of the layer that the backward pass is in.
    """
    if not checkpointing:
        return int(kept[False] * (1 + 1 / layers))
    # one layer at a time is computed again, and its gradients are held with it
    return int(kept[True] + 2 * kept[False] / layers)


def _saved(policy: Policy, size: int, checkpointing: bool) -> int:
    """Bytes of distinct storages that one packed row of `size` tokens leaves to the backward pass, weights apart."""
    lengths = torch.tensor([size])
    ids = torch.arange(size)[None] * 7 % policy.head.vocabulary
    packed = pack(ids, lengths, lengths, torch.zeros(1, dtype=torch.long), device=policy.device)
    own = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    seen: dict[int, int] = {}
    held: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # no address may be given out twice while they are counted
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    with torch.enable_grad(), hooks, checkpointed(policy.model, checkpointing):
        policy.packed_hidden(packed)
    return sum(seen.values())
