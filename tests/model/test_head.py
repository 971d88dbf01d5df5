"""The chunked head: the plain computation's values and gradients, and a peak that the number of tokens cannot move."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimrl.kernels.native import paused
from slimrl.model.head import Head, _Logprobs, token_logprobs, token_statistics


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunks_equal_the_plain_computation(softcap: float, temperature: float) -> None:
    torch.manual_seed(0)
    projection = nn.Linear(8, 23)
    hidden = torch.randn(40, 8, requires_grad=True)
    targets = torch.randint(23, (40,))
    upstream = torch.randn(40)

    logits = projection(hidden)
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    logprobs = torch.log_softmax(logits / temperature, -1)
    wanted = logprobs.gather(1, targets[:, None]).squeeze(1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    grads = torch.autograd.grad((wanted * upstream).sum(), [hidden, *projection.parameters()])

    for chunk in (1, 23 * 7, 10**6):
        got, measured = token_logprobs(
            Head(projection, softcap), hidden, targets, temperature=temperature, chunk_elements=chunk
        )
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(measured, entropy)
        assert not measured.requires_grad
        for ours, theirs in zip(
            torch.autograd.grad((got * upstream).sum(), [hidden, *projection.parameters()]), grads, strict=True
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("chunk", [23 * 7, 10**6])
def test_an_entropy_that_nobody_reads_changes_nothing_else(compiled: bool, chunk: int) -> None:
    projection, targets, upstream = nn.Linear(8, 23), torch.randint(23, (40,)), torch.randn(40)
    hidden = torch.randn(40, 8, requires_grad=True)

    def found(with_entropy: bool) -> list[torch.Tensor]:
        logprobs, entropy = token_logprobs(
            Head(projection), hidden, targets, temperature=0.7, with_entropy=with_entropy, chunk_elements=chunk
        )
        assert bool(entropy.any()) is with_entropy
        return [logprobs, *torch.autograd.grad((logprobs * upstream).sum(), [hidden, *projection.parameters()])]

    with nullcontext() if compiled else paused():
        assert all(map(torch.equal, found(True), found(False)))


def test_no_token_is_no_error() -> None:
    nothing = (Head(nn.Linear(8, 5)), torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    for found in (token_logprobs(*nothing, temperature=1.0), token_statistics(*nothing, temperature=1.0)):
        assert [len(part) for part in found] == [0] * len(found)


class Outputs(TorchDispatchMode):
    """Numbers of every tensor that any operation makes, forward or backward, and how many of the largest live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_no_tensor_of_rows_by_vocabulary_is_ever_made(softcap: float) -> None:
    head = Head(nn.Linear(4, 1000, bias=False), softcap)
    hidden = torch.randn(500, 4, requires_grad=True)
    with Outputs() as outputs:
        logprobs, _ = token_logprobs(
            head, hidden, torch.zeros(500, dtype=torch.long), temperature=0.9, chunk_elements=20_000
        )
        logprobs.sum().backward()
    assert outputs.largest == 20_000
    assert head.weight.grad is not None


def test_a_narrow_head_sums_its_gradient_in_float32() -> None:
    """512 equal shares of 1/256: a bfloat16 sum stops growing at 1, a float32 one reaches 2."""
    projection = nn.Linear(1, 2, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        projection.weight.zero_()
    hidden = torch.full((512, 1), 1 / 128, dtype=torch.bfloat16)
    logprobs, _ = token_logprobs(
        Head(projection), hidden, torch.zeros(512, dtype=torch.long), temperature=1.0, chunk_elements=2
    )
    logprobs.sum().backward()
    assert projection.weight.grad is not None
    assert projection.weight.grad.flatten().tolist() == [2.0, -2.0]


def test_nothing_of_a_chunk_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small tensor that did would lie in the room of the chunk's logits, and the heap would grow by them with every chunk: by 3 GiB
    over 6,000 positions of a vocabulary of 151,936.
    """
    alive: list[weakref.ref[Tensor]] = []
    own = _Logprobs.forward

    def watched(self: _Logprobs, logits: Tensor, targets: Tensor, rows: slice) -> Any:
        assert all(one() is None for one in alive)
        found = own(self, logits, targets, rows)
        alive.extend(weakref.ref(part) for part in (logits, *found) if part is not None)
        return found

    monkeypatch.setattr(_Logprobs, "forward", watched)
    torch.manual_seed(0)
    head, hidden = Head(nn.Linear(8, 50, bias=False)), torch.randn(20, 8, requires_grad=True)
    logprobs, _ = token_logprobs(head, hidden, torch.arange(20), temperature=1.0, chunk_elements=150)
    assert len(alive) == 7 * 5
    logprobs.sum().backward()
    whole = torch.log_softmax(head(hidden.detach()), -1)
    torch.testing.assert_close(logprobs.detach(), whole[torch.arange(20), torch.arange(20)])
