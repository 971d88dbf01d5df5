"""Slopes against finite differences and autograd; the head's one pass against the plain computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slimrl.algorithm.kl import Divergence, global_weights
from slimrl.model.head import Head, Reference, mean_probabilities, token_logprobs, token_statistics
from tests.model.test_head import Outputs

KINDS = {
    "reverse": Divergence("reverse"),
    "forward": Divergence("forward"),
    "gkl": Divergence("gkl"),
    "gkl reference": Divergence("gkl", 0.5, 2.0, "reference", 0.6),
    "gkl global": Divergence("gkl", 1.5, 0.0, "global", 0.5, global_weights(torch.linspace(0.1, 1, 23) / 12.65, 0.5)),
}


def plain(kind: Divergence, logp: Tensor, logq: Tensor) -> Tensor:
    """[n, V] each -> [n], differentiable, with weights that are not."""
    p, q = logp.exp(), logq.exp()
    if kind.kind == "reverse":
        return (p * (logp - logq)).sum(-1)
    if kind.kind == "forward":
        return (q * (logq - logp)).sum(-1)
    w = {"policy": p.detach(), "reference": torch.softmax(kind.gamma * logq, -1), "global": kind.prior}[kind.weights]
    assert w is not None
    d = logp - logq
    variance = (w * d**2).sum(-1) - (w * d).sum(-1) ** 2
    return kind.mse / 2 * variance - kind.cross_entropy * (q * logp).sum(-1)


@pytest.mark.parametrize("name", KINDS)
def test_slopes_are_finite_differences(name: str) -> None:
    """In float64; policy weights are frozen, as no gradient may reach them."""
    torch.manual_seed(0)
    kind = KINDS[name]
    if kind.prior is not None:
        kind = Divergence(kind.kind, kind.mse, kind.cross_entropy, kind.weights, kind.gamma, kind.prior.double())
    z, logq = torch.randn(3, 23, dtype=torch.float64), torch.log_softmax(torch.randn(3, 23, dtype=torch.float64), -1)
    logp = torch.log_softmax(z, -1)
    value, slope = kind(logp, logq.clone())
    torch.testing.assert_close(value, plain(kind, logp, logq))
    step = 1e-5
    for v in (0, 7, 22):
        moved = []
        for sign in (1, -1):
            there = z.clone()
            there[:, v] += sign * step
            at = torch.log_softmax(there, -1)
            if kind.kind == "gkl" and kind.weights == "policy":
                frozen = Divergence("gkl", kind.mse, kind.cross_entropy, "global", 1.0, logp.exp())
                moved.append(torch.stack([plain_row(frozen, at[i], logq[i], logp[i].exp()) for i in range(3)]))
            else:
                moved.append(kind(at, logq.clone())[0])
        torch.testing.assert_close((moved[0] - moved[1]) / (2 * step), slope[:, v], atol=1e-8, rtol=1e-6)


def plain_row(kind: Divergence, logp: Tensor, logq: Tensor, w: Tensor) -> Tensor:
    d = logp - logq
    variance = (w * d**2).sum() - (w * d).sum() ** 2
    return kind.mse / 2 * variance - kind.cross_entropy * (logq.exp() * logp).sum()


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", [None, *KINDS])
def test_one_pass_equals_the_plain_computation(name: str | None, softcap: float, temperature: float) -> None:
    torch.manual_seed(0)
    projection, other = nn.Linear(8, 23), nn.Linear(6, 23)
    hidden, seen = torch.randn(40, 8, requires_grad=True), torch.randn(40, 6)
    targets = torch.randint(23, (40,))
    upstream = torch.randn(3, 40)

    def log_softmax(head: Head, states: Tensor) -> Tensor:
        return torch.log_softmax(head(states) / temperature, -1)

    head, frozen = Head(projection, softcap), Head(other, 0.0)
    logp = log_softmax(head, hidden)
    wanted = [logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1), torch.zeros(40)]
    if name is not None:
        wanted[2] = plain(KINDS[name], logp, log_softmax(frozen, seen).detach())
    grads = torch.autograd.grad(
        sum((u * w).sum() for u, w in zip(upstream, wanted, strict=True)), [hidden, *projection.parameters()]
    )
    for chunk in (1, 23 * 7, 10**6):
        reference = None if name is None else Reference(frozen, seen, KINDS[name])
        got = token_statistics(
            head, hidden, targets, temperature=temperature, reference=reference, chunk_elements=chunk
        )
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
        total = sum((u * w).sum() for u, w in zip(upstream, got, strict=True))
        for ours, theirs in zip(torch.autograd.grad(total, [hidden, *projection.parameters()]), grads, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    assert all(parameter.grad is None for parameter in other.parameters()), "no gradient reaches the reference"


def test_it_agrees_with_the_pass_that_makes_log_probabilities_alone() -> None:
    torch.manual_seed(0)
    head, hidden, targets = Head(nn.Linear(8, 23)), torch.randn(9, 8), torch.randint(23, (9,))
    logprobs, entropy = token_logprobs(head, hidden, targets, temperature=0.7)
    again, other, apart = token_statistics(head, hidden, targets, temperature=0.7)
    torch.testing.assert_close(again, logprobs)
    torch.testing.assert_close(other, entropy)
    assert not apart.any()
    assert all(len(part) == 0 for part in token_statistics(head, hidden[:0], targets[:0], temperature=1.0))


def test_mean_probabilities_are_those_of_all_positions() -> None:
    head, hidden = Head(nn.Linear(8, 23)), torch.randn(9, 8)
    wanted = torch.softmax(head(hidden) / 0.7, -1).sum(0).double()
    for chunk in (1, 50, 10**6):
        torch.testing.assert_close(
            mean_probabilities(head, hidden, temperature=0.7, chunk_elements=chunk), wanted, atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("name", KINDS)
def test_no_tensor_of_rows_by_vocabulary_is_ever_made(name: str) -> None:
    kind = KINDS[name]
    if kind.prior is not None:
        kind = Divergence("gkl", 1.0, 1.0, "global", 1.0, torch.full((1000,), 1e-3))
    head, other = Head(nn.Linear(4, 1000, bias=False)), Head(nn.Linear(4, 1000, bias=False))
    hidden = torch.randn(500, 4, requires_grad=True)
    with Outputs() as outputs:
        found = token_statistics(
            head, hidden, torch.zeros(500, dtype=torch.long), temperature=0.9,
            reference=Reference(other, torch.randn(500, 4), kind), chunk_elements=20_000,
        )  # fmt: skip
        sum(part.sum() for part in found).backward()
    assert outputs.largest == 20_000
