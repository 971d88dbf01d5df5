"""Values of logits and their gradient against plain formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from slimrl.kernels.native import has_kernels
from slimrl.kernels.vocabulary import exponentiate, kept_gradient, logit_gradient, summarize

pytestmark = pytest.mark.skipif(not has_kernels(torch.float32), reason="no compiler, or no AVX2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("vocabulary", [3, 16, 100, 1024, 2500])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradient(dtype: torch.dtype, keep: bool, vocabulary: int, temperature: float) -> None:
    if not has_kernels(dtype):
        pytest.skip("the processor does not multiply bfloat16")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, vocabulary, generator=generator) * 6
    logits[1, 0] = -200.0  # of probability 0
    targets = torch.randint(1, vocabulary, (7,), generator=generator)
    gradient = torch.randn(7, generator=generator)
    exact = logits.double().requires_grad_()
    logp = torch.log_softmax(exact / temperature, -1)
    chosen = logp.gather(-1, targets[:, None]).squeeze(-1)
    (chosen * gradient).sum().backward()
    given = logits.clone()
    logprobs, entropies, normalizers = summarize(given, targets, temperature, keep=keep)
    torch.testing.assert_close(logprobs.double(), chosen.detach(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), -(logp.exp() * logp).sum(-1).detach(), atol=2e-5, rtol=1e-5)
    assert torch.equal(given, logits) != keep
    out = given if dtype == torch.float32 else torch.empty_like(given, dtype=dtype)
    chunk = (given, targets, normalizers, gradient / temperature, out)
    if keep:
        kept_gradient(*chunk)
    else:
        logit_gradient(*chunk, temperature)
    rounding = 2e-5 if dtype == torch.float32 else 1 / 256
    torch.testing.assert_close(out.double(), exact.grad, atol=1e-6 + rounding / 100, rtol=rounding)


def test_a_logit_that_is_no_number_shows() -> None:
    logits = torch.zeros(2, 40)
    logits[0, 7] = torch.nan
    logprobs, _, _ = summarize(logits, torch.tensor([3, 3]), 1.0, keep=False)
    assert logprobs.isnan().tolist() == [True, False]


@pytest.mark.parametrize("vocabulary", [2, 16, 127, 128, 129, 300, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_exponentials_of_logits(vocabulary: int, temperature: float) -> None:
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(0)) * 9
    logits[1, 0] = -math.inf  # of probability 0
    logits[2, vocabulary // 2] = math.nan
    given = logits.clone()
    sums = exponentiate(given, temperature, 128)
    z = logits.double() / temperature
    exact = (z - z.nan_to_num(-math.inf).amax(-1, keepdim=True)).exp()
    torch.testing.assert_close(given.double(), exact, rtol=1e-5, atol=1e-37, equal_nan=True)
    padded = torch.nn.functional.pad(exact, (0, -vocabulary % 128)).view(5, -1, 128).sum(-1)
    torch.testing.assert_close(sums, padded, rtol=1e-5, atol=1e-37, equal_nan=True)
    assert given[1, 0] == 0
