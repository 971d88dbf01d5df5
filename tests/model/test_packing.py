"""Packed rows give what the rows give alone, with fewer tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slimrl.model import packing
from slimrl.model.attention import CausalRows
from slimrl.model.packing import pack
from tests.tiny import FAMILIES, tiny_policy

CPU = torch.device("cpu")


def rows_of(prompts: list[int], completions: list[list[int]]) -> tuple[torch.Tensor, ...]:
    """Random rows of groups: ids [B, L], lengths, prompt lengths and groups [B]."""
    rng = np.random.default_rng(0)
    rows, lengths, prompt_lengths, groups = [], [], [], []
    for group, (prompt, sizes) in enumerate(zip(prompts, completions, strict=True)):
        shared = rng.integers(3, 61, size=prompt).tolist()
        for size in sizes:
            rows.append(shared + rng.integers(3, 61, size=size).tolist())
            lengths.append(prompt + size)
            prompt_lengths.append(prompt)
            groups.append(group)
    ids = torch.zeros((len(rows), max(lengths)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, torch.tensor(lengths), torch.tensor(prompt_lengths), torch.tensor(groups)


def test_tokens_of_a_shared_prompt_are_there_once() -> None:
    ids, lengths, prompts, groups = rows_of([4, 7], [[3, 0, 2], [5]])
    packed = pack(ids, lengths, prompts, groups, device=CPU)
    assert len(packed.ids) == 4 + 3 + 0 + 2 + 7 + 5
    for row in range(4):
        places = packed.places[row, : lengths[row]]
        assert packed.ids[places].tolist() == ids[row, : lengths[row]].tolist()
        assert packed.positions[places].tolist() == list(range(lengths[row]))
    assert packed.places[0, :4].tolist() == packed.places[1, :4].tolist() == packed.places[2, :4].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole_rows", [False, True])
def test_hidden_states_and_gradients_are_those_of_single_rows(
    family: str, whole_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both layouts: queries of completions against shared keys (CPU) and whole causal rows (GPU).

    Gemma's window of 6 is shorter than prompts and completions; groups of very unequal rows make several blocks.
    """
    monkeypatch.setattr(packing, "whole_rows", lambda _device: whole_rows)
    monkeypatch.setattr(packing, "LEAST_ROWS", 2)
    policy = tiny_policy(family)
    ids, lengths, prompts, groups = rows_of([9, 3, 14], [[30, 2, 0, 8, 31], [12, 1], [1, 1, 40]])
    packed = pack(ids, lengths, prompts, groups, device=CPU)
    assert len(packed.plan.blocks.blocks) > 2
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def gradient(total: torch.Tensor) -> torch.Tensor:
        policy.model.zero_grad()
        total.backward()
        return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])

    hidden = policy.packed_hidden(packed)
    singles = [
        policy.hidden(ids[i : i + 1, :n], torch.arange(n)[None], CausalRows())[0]
        for i, n in enumerate(lengths.tolist())
    ]
    for row, alone in enumerate(singles):
        torch.testing.assert_close(hidden[packed.places[row, : len(alone)]], alone, atol=2e-5, rtol=1e-4)
    mine = torch.stack([(hidden[packed.places[i, p - 1 : n]] @ direction).sin().sum()
                        for i, (p, n) in enumerate(zip(prompts.tolist(), lengths.tolist(), strict=True))])  # fmt: skip
    theirs = torch.stack([(alone[p - 1 :] @ direction).sin().sum() for alone, p in zip(singles, prompts, strict=True)])
    torch.testing.assert_close(gradient(mine.sum()), gradient(theirs.sum()), atol=3e-4, rtol=1e-3)


def test_a_row_that_is_all_prompt_stands_alone() -> None:
    policy = tiny_policy()
    ids, lengths, _, _ = rows_of([5, 9], [[0], [0]])
    packed = pack(ids, lengths, lengths, torch.arange(2), device=CPU)
    alone = policy.hidden(ids[1:], torch.arange(9)[None], CausalRows())[0]
    torch.testing.assert_close(policy.packed_hidden(packed)[packed.places[1]], alone, atol=2e-5, rtol=1e-4)
