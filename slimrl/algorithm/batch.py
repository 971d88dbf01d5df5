"""From groups to rows: the only shift, the only padding, the only place where tokens are masked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from slimrl.records import Group, Rows

SomeRows = TypeVar("SomeRows", bound=Rows)


def rewards_of(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Rewards [P, G] float64, and which of them could be scored [P, G] bool."""
    rewards = torch.tensor([[r.reward for r in g.rollouts] for g in groups], dtype=torch.float64)
    return rewards, torch.tensor([[not r.unscorable for r in g.rollouts] for g in groups])


def returns_of(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Returns [P, T, G] float64 of completions from each turn on, 0 behind their last turn, and which of them have the turn and
    could be scored, [P, T, G] bool; T is the number of turns of the longest.

    G_t is the sum of the rewards of turns u >= t and of those that are paid at the end, undiscounted (return-to-go: Sutton and
    Barto, Reinforcement Learning, 2nd edition, 13.3; by turn of a group: arXiv:2505.11821).
    """
    rows = [[rollout.turn_returns for rollout in group.rollouts] for group in groups]
    turns = max(len(returns) for row in rows for returns in row)
    padded = [[returns + (0.0,) * (turns - len(returns)) for returns in row] for row in rows]
    reached = torch.tensor([[len(returns) for returns in row] for row in rows])
    _, scorable = rewards_of(groups)
    present = (torch.arange(turns)[:, None] < reached[:, None]) & scorable[:, None]
    return torch.tensor(padded, dtype=torch.float64).transpose(1, 2), present


def components_of(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Each reward's scores [P, G] float64 before weights, NaN where it does not apply."""
    names = dict.fromkeys(name for g in groups for r in g.rollouts for name in r.scores)
    return {
        name: torch.tensor([[r.scores.get(name, torch.nan) for r in g.rollouts] for g in groups], dtype=torch.float64)
        for name in names
    }


def make_rows(groups: Sequence[Group], *, overlong_filtering: bool, step: int, pad_id: int) -> Rows:
    """All rows of a step. Truncated rows under `overlong_filtering` keep their place in baseline and denominators (DAPO,
    arXiv:2503.14476, section 3.4; TRL counts the same way); unscorable rows carry neither loss nor baseline.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scorable = torch.tensor([not rollout.unscorable for rollout in rollouts])
    completions = [rollout.completion for rollout in rollouts]
    lengths = torch.tensor([len(c.prompt_ids) + len(c.token_ids) - 1 for c in completions])
    width = int(lengths.max())
    ids = torch.full((len(completions), width + 1), pad_id)
    sampler = torch.zeros((len(completions), width))
    first = torch.tensor([len(c.prompt_ids) - 1 for c in completions])
    for row, c in enumerate(completions):
        ids[row, : lengths[row] + 1] = torch.tensor([*c.prompt_ids, *c.token_ids])
        sampler[row, first[row] : lengths[row]] = torch.tensor(c.logprobs)
    position = torch.arange(width)[None]
    completion_mask = (position >= first[:, None]) & (position < lengths[:, None])
    for row, c in enumerate(completions):
        if c.given:
            completion_mask[row, first[row] : lengths[row]] &= ~torch.tensor(c.given)
    trained = scorable
    if overlong_filtering:
        trained = trained & torch.tensor([c.finish == "stop" for c in completions])
    return Rows(
        inputs=ids[:, :-1],
        targets=ids[:, 1:],
        lengths=lengths,
        prompt_lengths=first + 1,
        completion_mask=completion_mask,
        loss_mask=completion_mask & trained[:, None],
        sampler_logprobs=sampler,
        on_policy=torch.tensor([g.step == step for g in groups for _ in g.rollouts]),
        groups=torch.tensor([index for index, g in enumerate(groups) for _ in g.rollouts]),
    )


def at_tokens(advantages: Tensor, completion_mask: Tensor) -> Tensor:
    """[P, G] numbers of completions -> [B, L] float32 at each of their tokens, 0 elsewhere."""
    return advantages.float().reshape(-1, 1) * completion_mask


def turn_numbers(completion_mask: Tensor) -> Tensor:
    """[B, L] bool -> [B, L] long: the turn, from 0, in which each token of the mask was drawn. Between two turns it has a gap."""
    before = torch.nn.functional.pad(completion_mask[:, :-1], (1, 0))
    return ((completion_mask & ~before).cumsum(1) - 1).clamp(min=0)


def at_turns(numbers: Tensor, completion_mask: Tensor) -> Tensor:
    """[P, T, G] numbers of the turns of completions -> [B, L] float32 at each of their tokens, 0 elsewhere."""
    rows = numbers.float().transpose(1, 2).reshape(len(completion_mask), -1)
    return rows.gather(1, turn_numbers(completion_mask)) * completion_mask


def at_turn_ends(numbers: Tensor, completion_mask: Tensor) -> Tensor:
    """The same at the last token of each turn, 0 elsewhere."""
    after = torch.nn.functional.pad(completion_mask[:, 1:], (0, 1))
    return at_turns(numbers, completion_mask) * ~after


def from_turns_on(values: Tensor, completion_mask: Tensor, *, groups: int, turns: int) -> Tensor:
    """[B, L] values of tokens -> [P, T, G] float64: their sums over each turn of a completion and all that follow it."""
    rows = torch.zeros(len(values), turns, dtype=torch.float64)
    rows = rows.scatter_add(1, turn_numbers(completion_mask), (values * completion_mask).double())
    earlier = rows.cumsum(1) - rows
    rest = values.sum(1).double()[:, None] - earlier  # of a single turn the sum itself
    return rest.reshape(groups, -1, turns).transpose(1, 2)


def take(rows: SomeRows, chosen: Tensor) -> SomeRows:
    """The chosen rows [n], padded only as far as the longest of them needs."""
    width = int(rows.lengths[chosen].max()) if len(chosen) else 0
    tensors = tensors_of(rows).items()
    return type(rows)(**{name: t[chosen, :width] if t.ndim == 2 else t[chosen] for name, t in tensors})


def to_device(rows: SomeRows, device: torch.device) -> SomeRows:
    """The same rows on another device."""
    return type(rows)(**{name: tensor.to(device) for name, tensor in tensors_of(rows).items()})


def tensors_of(rows: Rows) -> dict[str, Tensor]:
    """The tensors of rows, or of a batch, by name."""
    return {field.name: getattr(rows, field.name) for field in fields(rows)}


class _Row(NamedTuple):
    """A row on the way into a micro-batch."""

    number: int
    alone: int
    """Its tokens as the first of a micro-batch."""
    behind: int
    """Its tokens behind the row before it, whose prompt it may share."""


def microbatches(
    lengths: Tensor, prompt_lengths: Tensor, groups: Tensor, *, max_tokens: int, ranks: int = 1
) -> list[Tensor]:
    """Row indices [n] per micro-batch, as many as fit `max_tokens` (one at least). For several `ranks` they are as small as they
    can be without becoming more than the next multiple of the number of ranks.

    Rows of a group share their prompt, so they stay together and its tokens count once. Groups of long rows come first,
    so that a memory shortage shows early.
    """
    rows = _in_order(lengths.tolist(), prompt_lengths.tolist(), groups.tolist())
    parts = _filled(rows, max_tokens)
    if ranks > 1:
        most = -(-len(parts) // ranks) * ranks
        # larger parts are never more
        smallest = bisect_left(range(max_tokens), True, key=lambda tokens: len(_filled(rows, tokens)) <= most)
        parts = _filled(rows, smallest)
    return [torch.tensor([row.number for row in part]) for part in parts]


def _in_order(sizes: Sequence[int], prompts: Sequence[int], groups: Sequence[int]) -> list[_Row]:
    longest: dict[int, int] = {}
    for group, size in zip(groups, sizes, strict=True):
        longest[group] = max(longest.get(group, 0), size)
    order = sorted(range(len(sizes)), key=lambda row: (-longest[groups[row]], groups[row], -sizes[row]))
    first = [place == 0 or groups[row] != groups[order[place - 1]] for place, row in enumerate(order)]
    return [
        _Row(row, sizes[row], sizes[row] - (0 if new else prompts[row])) for row, new in zip(order, first, strict=True)
    ]


def _filled(rows: Sequence[_Row], max_tokens: int) -> list[list[_Row]]:
    """The rows in parts, each of which takes as many as fit."""
    parts: list[list[_Row]] = []
    tokens = 0
    for row in rows:
        if not parts or tokens + row.behind > max_tokens:
            parts.append([])
            tokens = row.alone - row.behind
        parts[-1].append(row)
        tokens += row.behind
    return parts


def balanced(costs: Sequence[float], count: int) -> list[list[int]]:
    """Indices of `costs` in `count` parts of about the same sum: each goes, the largest first, to the part with the least."""
    parts: list[list[int]] = [[] for _ in range(count)]
    sums = [0.0] * count
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        least = sums.index(min(sums))
        parts[least].append(index)
        sums[least] += costs[index]
    return [sorted(part) for part in parts]


def packed_tokens(rows: Rows) -> int:
    """Tokens that a forward pass over the rows computes: prompts once per group, completions each."""
    groups, row_of = torch.unique(rows.groups, return_inverse=True)
    prompts = torch.zeros(len(groups), dtype=torch.long).scatter(0, row_of, rows.prompt_lengths)
    return int((rows.lengths - rows.prompt_lengths).sum() + prompts.sum())


def minibatches(groups: Tensor, *, count: int) -> list[Tensor]:
    """Row indices of `count` nearly equal parts of whole groups, in their order (fewer parts where groups are few)."""
    present = torch.unique(groups)
    parts = torch.tensor_split(present, min(count, len(present)))
    return [torch.isin(groups, part).nonzero().squeeze(-1) for part in parts]
