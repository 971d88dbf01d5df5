"""The chunked head: the plain computation's values and gradients, and a peak that the number of tokens cannot move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimrl.model.logprobs import Head, token_logprobs


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


def test_no_token_is_no_error() -> None:
    logprobs, entropy = token_logprobs(
        Head(nn.Linear(8, 5)), torch.zeros(0, 8), torch.zeros(0, dtype=torch.long), temperature=1.0
    )
    assert len(logprobs) == len(entropy) == 0


def test_no_tensor_of_rows_by_vocabulary_is_ever_made() -> None:
    """Watches every tensor that autograd saves and every output of the head."""
    largest = 0

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal largest
            out = super().forward(x)
            largest = max(largest, out.numel())
            return out

    head = Head(Watched(4, 1000, bias=False))
    hidden = torch.randn(500, 4, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        logprobs, _ = token_logprobs(
            head, hidden, torch.zeros(500, dtype=torch.long), temperature=1.0, chunk_elements=20_000
        )
    logprobs.sum().backward()
    assert largest == 20_000
    assert max(saved, default=0) < 20_000
