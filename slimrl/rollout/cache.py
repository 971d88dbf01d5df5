"""Keys and values while decoding: one store for prompts, shared by their samples, and one for what was drawn.

Drawn tokens are stored by the engine's clock, not by their place in the row: at time t every slot writes column
t mod C, so a step writes one slice whatever the ages of its rows, and a row of at most C tokens never meets its own
tail. Which columns belong to a row follows from its age. (Keys carry their rotary positions, so order is free.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrl.kernels.decode import block_shape, decode_attention, key_blocks, recorded_decode_attention
from slimrl.kernels.native import lanes, takes
from slimrl.kernels.stack import CachedRows, DecodeTable
from slimrl.model.attention import Prefill


class Cache:
    """[prompts, K, P, d] for prompts and [slots, K, C, d] for drawn tokens, in every layer.

    Memory is allocated by the first `fill`, for the layers, heads and widths that it brings.
    """

    def __init__(self, *, prompts: int, width: int, slots: int, columns: int, recorded: bool) -> None:
        """`width` is P, `columns` is C.

        Steps that are `recorded` have their clock in a tensor, which the compiled attention does not read.
        """
        self.prompts, self.width, self.slots, self.columns, self.recorded = prompts, width, slots, columns, recorded
        self.prompt_keys: dict[int, Tensor] = {}
        self.prompt_values: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.tables: dict[object, DecodeTable] = {}
        """See `CachedRows`."""
        self.native = False
        """True where the compiled attention reads it: then nothing is read before it is written, and the prompts' keys are
        `key_blocks`."""

    @property
    def heads(self) -> int:
        """K, the same in every layer."""
        return next(iter(self.keys.values())).shape[1]

    def fill(self, first: int, prefill: Prefill, tokens: Tensor) -> None:
        """Copy prefilled prompts into the places from `first` on; `tokens` [prompts, length] are their packed tokens."""
        if not self.keys:
            self._allocate(prefill)
        prompts, length = tokens.shape
        for packed, stored in ((prefill.keys, self.prompt_keys), (prefill.values, self.prompt_values)):
            for layer, entries in packed.items():
                found = entries.index_select(1, tokens.flatten()).view(entries.shape[0], prompts, length, -1)
                found = found.transpose(0, 1)
                if self.native and packed is prefill.keys:
                    found = key_blocks(found)
                stored[layer][first : first + prompts, :, : found.shape[2]] = found

    def _allocate(self, example: Prefill) -> None:
        self.native = not self.recorded and all(_native(example.keys[i], example.values[i]) for i in example.keys)
        new = Tensor.new_empty if self.native else Tensor.new_zeros

        def allocate(parts: dict[int, Tensor], rows: int, length: int) -> dict[int, Tensor]:
            return {i: new(tensor, (rows, len(tensor), length, tensor.shape[2])) for i, tensor in parts.items()}

        self.prompt_keys = allocate(example.keys, self.prompts, self.width)
        if self.native:  # the same numbers in blocks; nothing has been written, so no memory is taken twice
            self.prompt_keys = {i: tensor.new_empty(block_shape(tensor)) for i, tensor in self.prompt_keys.items()}
        self.prompt_values = allocate(example.values, self.prompts, self.width)
        self.keys = allocate(example.keys, self.slots, self.columns)
        self.values = allocate(example.values, self.slots, self.columns)

    def move_slots(self, source: Tensor, target: Tensor, used_columns: int) -> None:
        """Move the used columns of slots `source` [n] into `target` [n]."""
        for tensor in (*self.keys.values(), *self.values.values()):
            tensor[target, :, :used_columns] = tensor[source, :, :used_columns]

    def columns_from(self, begin: int, count: int) -> Tensor:
        """[count] the columns of the steps from time `begin` on."""
        example = next(iter(self.keys.values()))
        return (torch.arange(count, device=example.device) + begin) % self.columns

    def read_columns(self, slot: int, columns: Tensor) -> list[Tensor]:
        """A copy of a slot's keys and values [K, n, d] in `columns` [n], of every layer."""
        return [tensor[slot].index_select(1, columns) for tensor in (*self.keys.values(), *self.values.values())]

    def write_columns(self, slot: int, columns: Tensor, stored: Sequence[Tensor]) -> None:
        """Put what `read_columns` returned into other columns of a slot."""
        for tensor, part in zip((*self.keys.values(), *self.values.values()), stored, strict=True):
            tensor[slot].index_copy_(1, columns, part)

    def read_prompt(self, place: int) -> list[Tensor]:
        """A prompt's keys and values as they are stored, of every layer."""
        return [tensor[place] for tensor in (*self.prompt_keys.values(), *self.prompt_values.values())]

    def write_prompt(self, place: int, stored: Sequence[Tensor]) -> None:
        """Put what `read_prompt` returned into another place."""
        for tensor, part in zip((*self.prompt_keys.values(), *self.prompt_values.values()), stored, strict=True):
            tensor[place] = part

    def move_prompts(self, source: Tensor, target: Tensor) -> None:
        """Move prompts `source` [n] into `target` [n]."""
        for tensor in (*self.prompt_keys.values(), *self.prompt_values.values()):
            tensor[target] = tensor[source]


class Aside:
    """Keys and values that are not used for a time. A copy in the memory of the host: a GPU's is planned to the last byte."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.shapes = [part.shape for part in parts]
        self.numbers = torch.cat([part.flatten() for part in parts]).cpu()
        """Of all parts, in one piece, which is sent in one go."""

    def parts(self, device: torch.device) -> list[Tensor]:
        """The tensors on their device."""
        pieces = torch.split(self.numbers.to(device), [shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


def _native(keys: Tensor, values: Tensor) -> bool:
    return takes(keys, values) and keys.shape == values.shape and keys.shape[-1] % lanes() == 0


@dataclass(frozen=True)
class RowLayout:
    """The rows that share each prompt, as a table of prompts by seats.

    With it a prompt's keys are read from memory once a step. (The compiled attention reads `prompt` instead, and finds out
    by itself which rows share one.) Entries count rows by key head, row * K + head, so that
    looking them up gives queries as [prompts, K, seats, ...].
    """

    table: Tensor
    """[prompts, K, seats] long: the row on a seat; row 0 on empty seats."""
    seat: Tensor
    """[n * K] long: a row's seat in the flattened table."""
    prompt: Tensor
    """[n] long: the place of a row's prompt in the store."""


@dataclass(frozen=True)
class StepShape:
    """The sizes of a decode step; steps of equal shapes can share one recording."""

    rows: int
    """n: slots that take part, rounded up."""
    width: int
    """Length of the longest prompt, rounded up."""
    used_columns: int
    """Columns of drawn tokens that may hold a row's own, the one that this step writes included."""
    unmasked: bool
    """True where every row sees its whole prompt and all used columns, so that no mask is needed."""


class DecodeStep:
    """The attention plan of one decode step of n rows: each sees its prompt, what it drew before, and itself."""

    def __init__(
        self, cache: Cache, layout: RowLayout, shape: StepShape, *, time: Tensor | int, ages: Tensor, lengths: Tensor
    ) -> None:
        """`time` is the engine's clock (a tensor [] where steps are recorded), `ages` [n] are the tokens that each row fed
        before, and `lengths` [n] those of its prompt.
        """
        self.cache, self.layout, self.shape = cache, layout, shape
        column = time % cache.columns
        self.column = column[None] if isinstance(column, Tensor) else slice(column, column + 1)
        self.time, self.ages, self.lengths = time, ages, lengths
        self.masks: dict[int, Tensor] = {}

    @property
    def cached_rows(self) -> CachedRows | None:
        """Everything that the compiled attention reads, where it reads it."""
        if not self.cache.native:
            return None
        assert isinstance(self.time, int)
        cache = self.cache
        stores = (cache.keys, cache.values, cache.prompt_keys, cache.prompt_values)
        return CachedRows(stores, self.layout.prompt, self.lengths, self.ages, self.time, cache.tables)

    def hidden(self, window: int, dtype: torch.dtype) -> Tensor:
        """[n, 1, 1, width + used columns]: minus infinity where a row must not look; computed once per window width."""
        if window not in self.masks:
            place = torch.arange(self.shape.width, device=self.ages.device)[None]
            column = torch.arange(self.shape.used_columns, device=self.ages.device)
            age = (self.time - column) % self.cache.columns
            unseen = torch.cat([place >= self.lengths[:, None], age[None] > self.ages[:, None]], dim=1)
            if window:
                distance = (self.lengths + self.ages)[:, None] - place
                unseen |= torch.cat([distance >= window, (age[None] >= window).expand(len(distance), -1)], dim=1)
            mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill_(unseen, float("-inf"))
            self.masks[window] = mask[:, None, None]
        return self.masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int) -> Tensor:
        n, heads, _, head_width = query.shape
        kv_heads = key.shape[1]
        cache, layout, width, used_columns = self.cache, self.layout, self.shape.width, self.shape.used_columns
        if cache.native:
            assert isinstance(self.time, int)
            stores = (cache.keys[layer], cache.values[layer], cache.prompt_keys[layer], cache.prompt_values[layer])
            rows = (layout.prompt, self.lengths, self.ages)
            attend = recorded_decode_attention if torch.compiler.is_compiling() else decode_attention
            done: Tensor = attend(query, key, value, *stores, *rows, self.time, window, scaling)
            return done
        prompts, _, seats = layout.table.shape
        table = layout.table.flatten()
        keys, values = cache.keys[layer][:n], cache.values[layer][:n]
        keys[:, :, self.column] = key
        values[:, :, self.column] = value
        # Query heads that share a key head are rows of one small product, so keys are never repeated.
        q = (query * scaling).reshape(n * kv_heads, -1, head_width)
        group = q.shape[1]
        asked = q.index_select(0, table).view(prompts, kv_heads, seats * group, head_width)
        shared = asked @ cache.prompt_keys[layer][:prompts, :, :width].transpose(2, 3)
        shared = shared.view(-1, group, width).index_select(0, layout.seat)
        own = q @ keys[:, :, :used_columns].flatten(0, 1).transpose(1, 2)
        scores = torch.cat([shared, own], dim=-1).float()
        if window or not self.shape.unmasked:
            scores.view(n, kv_heads, group, -1).add_(self.hidden(window, scores.dtype))
        weights = scores.softmax(-1).to(query.dtype)
        out = weights[..., width:] @ values[:, :, :used_columns].flatten(0, 1)
        given = weights[..., :width].index_select(0, table).view(prompts, kv_heads, seats * group, width)
        given = given @ cache.prompt_values[layer][:prompts, :, :width]
        out += given.view(-1, group, out.shape[-1]).index_select(0, layout.seat)
        return out.view(n, heads, 1, -1)
