"""Keys and values while decoding: one store for prompts, shared by their samples, and one for what was drawn.

Drawn tokens are stored by the engine's clock, not by their place in the row: at time t every slot writes column
t mod C, so a step writes one slice whatever the ages of its rows, and a row of at most C tokens never meets its own
tail. Which columns belong to a row follows from its age. (Keys carry their rotary positions, so order is free.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slimrl.kernels.native import decode_attention, lanes
from slimrl.model.attention import Prefill


class Cache:
    """[prompts, K, P, d] for prompts and [slots, K, C, d] for drawn tokens, in every layer."""

    def __init__(
        self, example: Prefill, *, prompts: int, width: int, slots: int, columns: int, recorded: bool = False
    ) -> None:
        """Allocate for the layers, heads and widths seen in a prefill; `width` is P, `columns` is C.

        Steps that are `recorded` have their clock in a tensor, which the compiled attention does not read.
        """

        self.native = not recorded and all(_native(example.keys[i], example.values[i]) for i in example.keys)
        """Whether the compiled attention reads it: then nothing is read before it is written."""
        new = torch.empty if self.native else torch.zeros

        def allocate(parts: dict[int, Tensor], rows: int, length: int) -> dict[int, Tensor]:
            return {
                i: new((rows, t.shape[0], length, t.shape[2]), dtype=t.dtype, device=t.device) for i, t in parts.items()
            }

        self.prompt_keys = allocate(example.keys, prompts, width)
        self.prompt_values = allocate(example.values, prompts, width)
        self.keys = allocate(example.keys, slots, columns)
        self.values = allocate(example.values, slots, columns)

    @property
    def heads(self) -> int:
        """K, the same in every layer."""
        return next(iter(self.keys.values())).shape[1]

    @property
    def columns(self) -> int:
        return next(iter(self.keys.values())).shape[2]

    @property
    def width(self) -> int:
        return next(iter(self.prompt_keys.values())).shape[2]

    def fill(self, first: int, prefill: Prefill, tokens: Tensor) -> None:
        """Copy prefilled prompts into the places from `first` on; `tokens` [prompts, length] are their packed tokens."""
        prompts, length = tokens.shape
        for kept, stored in ((prefill.keys, self.prompt_keys), (prefill.values, self.prompt_values)):
            for layer, packed in kept.items():
                found = packed.index_select(1, tokens.flatten()).view(packed.shape[0], prompts, length, -1)
                stored[layer][first : first + prompts, :, :length] = found.transpose(0, 1)

    def move_slots(self, source: Tensor, target: Tensor, extent: int) -> None:
        """Move slots `source` [n] into `target` [n], as far as columns are in use."""
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[target, :, :extent] = tensor[source, :, :extent]

    def move_prompts(self, source: Tensor, target: Tensor) -> None:
        """Move prompts `source` [n] into `target` [n]."""
        for store in (self.prompt_keys, self.prompt_values):
            for tensor in store.values():
                tensor[target] = tensor[source]


def _native(keys: Tensor, values: Tensor) -> bool:
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (keys, values))
    return plain and keys.shape == values.shape and lanes() > 0 and keys.shape[-1] % lanes() == 0


@dataclass(frozen=True)
class Seats:
    """Which rows share which prompt, as a table of prompts by seats, so that a prompt's keys are read once a step: from
    memory; the compiled attention, which goes by `prompt`, meets them in the processor's cache from the second row on.

    Entries count rows by key head, row * K + head: looked up so, queries come out as [prompts, K, seats, ...].
    """

    table: Tensor
    """[prompts, K, seats] long: the row on a seat; row 0 on empty ones."""
    seat: Tensor
    """[n * K] long: a row's seat in the flattened table."""
    prompt: Tensor
    """[n] long: a row's prompt."""


class DecodeStep:
    """The attention plan of one decode step of n rows: each sees its prompt, what it drew before, and itself."""

    def __init__(
        self,
        cache: Cache,
        seats: Seats,
        *,
        time: Tensor | int,
        ages: Tensor,
        lengths: Tensor,
        width: int,
        extent: int,
        alike: bool,
    ) -> None:
        """`time` is the engine's clock (a tensor [] where steps are recorded), `ages` [n] are the tokens that a row fed
        before, `lengths` [n] its prompt's.

        Prompts are at most `width` long and columns from `extent` on are not in use; `alike` says that no row must be
        kept from any of these places.
        """
        self.cache, self.seats = cache, seats
        column = time % cache.columns
        self.column = column[None] if isinstance(column, Tensor) else slice(column, column + 1)
        self.time, self.ages, self.lengths = time, ages, lengths
        self.width, self.extent, self.alike = width, extent, alike
        self.masks: dict[int | None, Tensor] = {}

    def hidden(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[n, 1, 1, P + extent]: minus infinity where a row must not look; computed once per window width."""
        if window not in self.masks:
            place = torch.arange(self.width, device=self.ages.device)[None]
            column = torch.arange(self.extent, device=self.ages.device)
            age = (self.time - column) % self.cache.columns
            unseen = torch.cat([place >= self.lengths[:, None], age[None] > self.ages[:, None]], dim=1)
            if window is not None:
                distance = (self.lengths + self.ages)[:, None] - place
                unseen |= torch.cat([distance >= window, (age[None] >= window).expand(len(distance), -1)], dim=1)
            mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill_(unseen, float("-inf"))
            self.masks[window] = mask[:, None, None]
        return self.masks[window]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> Tensor:
        n, heads, _, width = query.shape
        kv_heads = key.shape[1]
        cache = self.cache
        if cache.native:
            assert isinstance(self.time, int)
            done: Tensor = decode_attention(
                query, key, value, cache.keys[layer], cache.values[layer],
                cache.prompt_keys[layer], cache.prompt_values[layer],
                self.seats.prompt, self.lengths, self.ages, self.time, window or 0, scaling,
            )  # fmt: skip
            return done
        prompts, _, seats = self.seats.table.shape
        table = self.seats.table.flatten()
        keys, values = cache.keys[layer][:n], cache.values[layer][:n]
        keys[:, :, self.column] = key
        values[:, :, self.column] = value
        # Query heads that share a key head are rows of one small product, so keys are never repeated.
        q = (query * scaling).reshape(n * kv_heads, -1, width)
        group = q.shape[1]
        asked = q.index_select(0, table).view(prompts, kv_heads, seats * group, width)
        shared = asked @ cache.prompt_keys[layer][:prompts, :, : self.width].transpose(2, 3)
        shared = shared.view(-1, group, self.width).index_select(0, self.seats.seat)
        own = q @ keys[:, :, : self.extent].flatten(0, 1).transpose(1, 2)
        scores = torch.cat([shared, own], dim=-1).float()
        if window is not None or not self.alike:
            scores.view(n, kv_heads, group, -1).add_(self.hidden(window, scores.dtype))
        weights = scores.softmax(-1).to(query.dtype)
        out = weights[..., self.width :] @ values[:, :, : self.extent].flatten(0, 1)
        given = weights[..., : self.width].index_select(0, table).view(prompts, kv_heads, seats * group, self.width)
        given = given @ cache.prompt_values[layer][:prompts, :, : self.width]
        out += given.view(-1, group, out.shape[-1]).index_select(0, self.seats.seat)
        return out.view(n, heads, 1, -1)
