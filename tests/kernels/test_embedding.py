"""Gradients that are added where they lie are the gradients that autograd would have summed."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slimrl.kernels.embedding import (
    SummedEmbedding,
    drop_gradients,
    sum_in_place,
    use_summed_embeddings,
    wide_gradient,
)
from slimrl.model.head import Head, token_logprobs
from tests.tiny import tiny_policy


def gradients(family: str, *, marked: bool, chunk_elements: int) -> dict[str, Tensor]:
    policy = tiny_policy(family)
    policy.model.set_attn_implementation("sdpa")  # which needs no plan
    if marked:
        sum_in_place(policy.model.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batches = torch.randint(0, 61, (3, 1, 20))
    batches[:, 0, 3] = 0  # the padding of these models
    for ids in batches:
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


class Made(TorchDispatchMode):
    """Numbers of the largest tensor that any operation has made in memory of its own."""

    largest = 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("marked", [True, False])
def test_nothing_of_the_size_of_a_table_is_made(tied: bool, marked: bool) -> None:
    """From the second micro-batch on, when there is a sum to add to; unmarked weights show that it would be seen."""
    table = nn.Embedding(500, 8, padding_idx=0)
    head = Head(nn.Linear(8, 500, bias=False))
    if tied:
        head.projection.weight = table.weight
    use_summed_embeddings(nn.ModuleList([table]))
    if marked:
        sum_in_place({table.weight, head.weight})
    ids = torch.tensor([1, 5, 5, 0, 7])
    made = Made()
    for number in range(3):
        with made if number else nullcontext():
            logprobs, _ = token_logprobs(head, table(ids), ids, temperature=1.0, chunk_elements=1000)
            logprobs.sum().backward()
    assert (made.largest >= table.weight.numel()) == (not marked)


def test_padding_gets_no_gradient_and_repeated_ids_add_up() -> None:
    policy = tiny_policy()
    table = policy.model.get_input_embeddings()
    assert type(table) is SummedEmbedding
    sum_in_place([table.weight])
    for _ in range(3):
        table(torch.tensor([1, 5, 5, 0])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad[:, 0].tolist()[:6] == [0, 3, 0, 0, 0, 6]


def test_a_narrow_table_has_a_wide_sum() -> None:
    """300 times 1: in bfloat16 a sum stands still at 256."""
    table = nn.Embedding(10, 4, dtype=torch.bfloat16)
    use_summed_embeddings(nn.ModuleList([table]))
    sum_in_place([table.weight])
    for _ in range(300):
        table(torch.tensor([3])).sum().backward()
    found = wide_gradient(table.weight)
    assert found is not None
    assert table.weight.grad is None
    assert found[:, 0].tolist() == [0, 0, 0, 300, 0, 0, 0, 0, 0, 0]
    drop_gradients(table.weight)
    assert wide_gradient(table.weight) is None


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
