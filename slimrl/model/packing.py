"""Rows on one axis of tokens: no padding in any product, and the prompt of a group computed once for all its rows.

A padded batch of G completions of one prompt runs the model over G copies of that prompt and over the padding behind
short completions. Packed, it runs over each prompt once and over each completion token once; only attention, which is
little work at these lengths, sees rows again, in blocks of similar length. A row's tokens see exactly the keys that
they would see alone, so log-probabilities and gradients are those of the padded batch up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from slimrl.kernels.packed import Spans
from slimrl.model.attention import Block, Blocks, PackedRows

LEAST_ROWS = 8
"""Rows of a block at least: below that, another call costs more than the padding it saves."""
FILL = 0.75
"""A row shorter than this share of its block's longest opens a block of its own."""


@dataclass(frozen=True)
class Packed:
    """N tokens of B rows."""

    ids: Tensor
    """[N] long."""
    positions: Tensor
    """[N] long: place of a token in its row."""
    places: Tensor
    """[B, L] long: the place of a row's token among the N; 0 beyond the row."""
    plan: PackedRows


def pack(inputs: Tensor, lengths: Tensor, prompt_lengths: Tensor, groups: Tensor, *, device: torch.device) -> Packed:
    """Right-padded ids [B, L], lengths, prompt lengths and groups [B] (all on the CPU) -> packed tokens on `device`.

    Rows of one group must open with the same `prompt_lengths` tokens. A row that is all prompt shares nothing.
    """
    rows, width = inputs.shape
    _, group = torch.unique(groups, return_inverse=True)
    shown = torch.full((int(group.max()) + 1,), rows).scatter_reduce(0, group, torch.arange(rows), "amin")
    prompts, rest = prompt_lengths[shown], lengths - prompt_lengths
    prompt_start, rest_start = prompts.cumsum(0) - prompts, int(prompts.sum()) + rest.cumsum(0) - rest
    column = torch.arange(width)[None]
    places = torch.where(
        column < prompt_lengths[:, None],
        prompt_start[group][:, None] + column,
        rest_start[:, None] + column - prompt_lengths[:, None],
    )
    valid = column < lengths[:, None]
    places = places.masked_fill(~valid, 0)
    tokens = int(prompts.sum() + rest.sum())
    ids, positions = torch.zeros(tokens, dtype=torch.long), torch.zeros(tokens, dtype=torch.long)
    ids[places[valid]] = inputs[valid]
    positions[places[valid]] = column.expand(rows, width)[valid]
    spans = _spans(prompt_start, prompts, rest_start, rest, group)
    return Packed(
        ids.to(device),
        positions.to(device),
        places.to(device),
        PackedRows(spans, partial(_all_blocks, places, lengths, prompt_lengths, shown, tokens, device)),
    )


def _spans(prompt_start: Tensor, prompts: Tensor, rest_start: Tensor, rest: Tensor, group: Tensor) -> Spans:
    """The table that the compiled attention reads: in each group the prompt [G], then the rows [B] that follow it."""
    none = torch.zeros_like(prompts)
    first = torch.stack([prompt_start, prompts, none, none], dim=1)
    own = torch.stack([rest_start, rest, prompt_start[group], prompts[group]], dim=1)
    table, owner = torch.cat([first, own]), torch.cat([torch.arange(len(prompts)), group])
    order = torch.argsort(owner, stable=True)
    order = order[table[order, 1] > 0]
    counts = torch.bincount(owner[order], minlength=len(prompts))
    return Spans(table[order], torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]))


def _all_blocks(
    places: Tensor, lengths: Tensor, prompt_lengths: Tensor, shown: Tensor, tokens: int, device: torch.device
) -> Blocks:
    """Blocks for torch's operations; `shown` [G] is the row in which each group's prompt is seen."""
    rows, prompts = torch.arange(len(lengths)), prompt_lengths[shown]
    if whole_rows(device):
        indices = _blocks(places, rows, torch.zeros_like(lengths), lengths)
    else:
        indices = _blocks(places, shown, torch.zeros_like(prompts), prompts)
        indices += _blocks(places, rows, prompt_lengths, lengths)
    outputs = torch.zeros(tokens, dtype=torch.long)
    done = 0
    for queries, _, _, real in indices:
        outputs[queries[real]] = done + real.flatten().nonzero().squeeze(-1)
        done += queries.numel()
    blocks = [Block(q.to(device), k.to(device), None if f is None else f.to(device)) for q, k, f, _ in indices]
    return Blocks(blocks, outputs.to(device))


def whole_rows(device: torch.device) -> bool:
    """True where attention runs over whole causal rows, prompt queries repeated, instead of over completions with a mask.

    A GPU's fused kernels share key heads and skip unseen keys in the causal case alone; a CPU's do both under any mask.
    """
    return device.type != "cpu"


def _blocks(
    places: Tensor, rows: Tensor, first: Tensor, end: Tensor
) -> list[tuple[Tensor, Tensor, Tensor | None, Tensor]]:
    """Blocks of the given rows with queries from `first` to `end`: (queries, keys, first or None for whole rows, real).

    `real` [R, Q] marks the queries that are tokens and not padding.
    """
    sizes = end - first
    order = torch.argsort(sizes, descending=True, stable=True)
    order = order[sizes[order] > 0]
    blocks: list[list[int]] = []
    length = sizes.tolist()
    for index in order.tolist():
        if not blocks or (len(blocks[-1]) >= LEAST_ROWS and length[index] < FILL * length[blocks[-1][0]]):
            blocks.append([])
        blocks[-1].append(index)
    made = []
    for block in blocks:
        chosen = torch.tensor(block)
        offset = torch.arange(int(sizes[chosen].max()))[None]
        real = offset < sizes[chosen][:, None]
        column = (first[chosen][:, None] + offset).clamp(max=places.shape[1] - 1)
        queries = places[rows[chosen]].gather(1, column).masked_fill(~real, 0)
        keys = places[rows[chosen], : int(end[chosen].max())]
        made.append((queries, keys, first[chosen] if first.any() else None, real))
    return made
