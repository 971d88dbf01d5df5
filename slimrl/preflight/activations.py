"""Bytes that a forward pass keeps for the backward one, counted on the module itself."""

from __future__ import annotations

import torch
from torch import Tensor

from slimrl.learner.recompute import checkpointed
from slimrl.model.packing import pack
from slimrl.model.policy import Policy


def activation_bytes(policy: Policy, *, checkpointing: bool) -> int:
    """Bytes that a forward pass keeps for the backward one, a token: counted on two short rows of this very module."""
    sizes = (16, 48)
    kept = [_saved(policy, size, checkpointing) for size in sizes]
    slope = (kept[1] - kept[0]) / (sizes[1] - sizes[0])
    layers = policy.model.config.get_text_config().num_hidden_layers
    if not checkpointing:
        return int(slope * (1 + 1 / layers))
    whole = [_saved(policy, size, False) for size in sizes]
    # One layer at a time is computed again, and its gradients are held with it.
    return int(slope + 2 * (whole[1] - whole[0]) / (sizes[1] - sizes[0]) / layers)


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
