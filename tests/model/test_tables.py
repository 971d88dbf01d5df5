"""Gradients that are added where they lie are the gradients that autograd would have summed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from slimrl.model.logprobs import token_logprobs
from slimrl.model.tables import SummedEmbedding, sum_in_place, use_summed_embeddings
from tests.tiny import tiny_policy


def gradients(family: str, *, marked: bool, chunk_elements: int) -> dict[str, Tensor]:
    policy = tiny_policy(family)
    policy.model.set_attn_implementation("sdpa")  # which needs no plan
    if marked:
        sum_in_place(policy.model.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batches = torch.randint(0, 61, (3, 1, 20))
    for ids in batches:  # id 0 is the padding of these models
        hidden = policy.model.model(ids, use_cache=False)[0][0]
        logprobs, _ = token_logprobs(
            policy.head, hidden[:-1], ids[0, 1:], temperature=0.8, chunk_elements=chunk_elements
        )
        logprobs.sum().backward()
    return {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("chunk_elements", [61 * 4, 2**20])
def test_sums_are_those_of_autograd(family: str, chunk_elements: int) -> None:
    wanted = gradients(family, marked=False, chunk_elements=2**20)
    found = gradients(family, marked=True, chunk_elements=chunk_elements)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_nothing_large_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second micro-batch on no tensor of the table's size is allocated."""
    policy = tiny_policy()
    table = policy.model.get_input_embeddings()
    assert type(table) is SummedEmbedding
    sum_in_place([table.weight])
    made: list[tuple[int, ...]] = []
    zeros_like = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda t, **k: (made.append(tuple(t.shape)), zeros_like(t, **k))[1])
    for _ in range(3):
        table(torch.tensor([1, 5, 5, 0])).sum().backward()
    assert made == [tuple(table.weight.shape)]
    assert table.weight.grad is not None
    assert table.weight.grad[:, 0].tolist()[:6] == [0, 3, 0, 0, 0, 6]


def test_a_frozen_table_gets_none() -> None:
    policy = tiny_policy()
    table = policy.model.get_input_embeddings()
    sum_in_place([table.weight])
    table.weight.requires_grad_(False)
    assert not table(torch.tensor([1, 2])).requires_grad
    other = copy.deepcopy(table)
    assert torch.equal(other.weight, table.weight)


def test_a_table_with_habits_of_its_own_is_left_alone() -> None:
    module = nn.ModuleList([nn.Embedding(4, 2, max_norm=1.0), nn.Embedding(4, 2, sparse=True), nn.Embedding(4, 2)])
    use_summed_embeddings(module)
    assert [type(m) is SummedEmbedding for m in module] == [False, False, True]
