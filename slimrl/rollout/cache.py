"""A preallocated key/value cache: one contiguous slot per completion being decoded."""

from __future__ import annotations

import torch
from torch import Tensor

from slimrl.model.attention import Prefill


class SlotCache:
    """Keys and values of every layer, [slots, K, positions, d]; active completions occupy the first slots."""

    def __init__(self, example: Prefill, *, slots: int, positions: int) -> None:
        """Allocate for the layers, heads and widths seen in a prefill."""

        def allocate(parts: dict[int, Tensor]) -> dict[int, Tensor]:
            return {i: t.new_zeros((slots, t.shape[1], positions, t.shape[3])) for i, t in parts.items()}

        self.keys = allocate(example.keys)
        self.values = allocate(example.values)

    def fill(self, first: int, prefill: Prefill, rows: Tensor) -> None:
        """Copy the prompts `rows` [n] of a prefill into the slots from `first` on."""
        for layer, keys in prefill.keys.items():
            length = keys.shape[2]
            self.keys[layer][first : first + len(rows), :, :length] = keys[rows]
            self.values[layer][first : first + len(rows), :, :length] = prefill.values[layer][rows]

    def move(self, source: Tensor, target: Tensor, length: int) -> None:
        """Move slots `source` [n] into `target` [n], their first `length` positions."""
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[target, :, :length] = tensor[source, :, :length]


class DecodeStep:
    """The attention plan of one decode step: write each row's key at its position, attend to what is before it."""

    def __init__(self, cache: SlotCache, positions: Tensor, length: int) -> None:
        """`positions` [n] of the tokens fed now; `length` is the largest of them plus one."""
        self.cache = cache
        self.positions = positions
        self.length = length
        self.rows = torch.arange(len(positions), device=positions.device)
        self.masks: dict[int | None, Tensor] = {}

    def hidden_keys(self, window: int | None) -> Tensor:
        """[n, 1, 1, length] bool: keys that a row must not see; computed once per window width."""
        if window not in self.masks:
            keys = torch.arange(self.length, device=self.positions.device)[None]
            mask = keys > self.positions[:, None]
            if window is not None:
                mask |= keys <= self.positions[:, None] - window
            self.masks[window] = mask[:, None, None]
        return self.masks[window]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> Tensor:
        n, heads, _, width = query.shape
        kv_heads = key.shape[1]
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows, :, self.positions] = key[:, :, 0]
        values[self.rows, :, self.positions] = value[:, :, 0]
        # Query heads that share a key head are rows of one small product, so keys are never repeated.
        grouped = query.reshape(n, kv_heads, heads // kv_heads, width)
        scores = (grouped @ keys[:n, :, : self.length].transpose(2, 3)).float() * scaling
        weights = scores.masked_fill(self.hidden_keys(window), float("-inf")).softmax(-1).to(query.dtype)
        return (weights @ values[:n, :, : self.length]).reshape(n, heads, 1, -1)
