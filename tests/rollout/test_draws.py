"""Draws against the definition: the first token whose cumulative probability exceeds the uniform number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slimrl.rollout.draws import BLOCK, draw


def naive(logits: np.ndarray, uniform: float, temperature: float) -> int:
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return int(np.searchsorted(np.cumsum(weights), uniform * weights.sum(), side="right"))


@pytest.mark.parametrize("vocabulary", [1, 2, 61, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_and_logprob_are_those_of_the_definition(vocabulary: int, temperature: float) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = (rng.normal(size=(200, vocabulary)) * 4).astype(np.float32)
    uniform = rng.random(200)
    tokens, logprobs = draw(
        torch.from_numpy(logits.copy()), torch.from_numpy(uniform), temperature=temperature, greedy=False
    )
    assert tokens.tolist() == [naive(row, u, temperature) for row, u in zip(logits, uniform, strict=True)]
    expected = torch.log_softmax(torch.from_numpy(logits).double() / temperature, -1).gather(1, tokens[:, None])
    torch.testing.assert_close(logprobs.double(), expected.squeeze(1), atol=2e-6, rtol=0)


def test_greedy_takes_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])
    tokens, logprobs = draw(logits.clone(), torch.zeros(2, dtype=torch.float64), temperature=2.0, greedy=True)
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(logprobs, torch.log_softmax(logits / 2, -1).amax(-1))


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_without_probability_is_never_drawn(uniform: float) -> None:
    """Not even at the ends of the interval: exp(-200) is 0 in float32, in whole blocks and at the edges of one."""
    logits = torch.full((1, 3 * BLOCK), -200.0)
    logits[0, BLOCK + 3 : BLOCK + 40] = 0.0
    tokens, logprobs = draw(logits.clone(), torch.tensor([uniform], dtype=torch.float64), temperature=1.0, greedy=False)
    assert BLOCK + 3 <= tokens.item() < BLOCK + 40
    assert logprobs.item() == pytest.approx(-np.log(37), abs=1e-6)


def test_the_tail_of_a_large_vocabulary_is_reached() -> None:
    """Half of the mass lies on one token before 150,000 others, each below what a float32 running sum still adds."""
    vocabulary = 150_001
    logits = torch.zeros((1, vocabulary))
    logits[0, 0] = np.log(vocabulary - 1)
    uniform = np.linspace(0.5001, 0.9999, 500)
    tokens, _ = draw(logits.expand(500, -1).clone(), torch.from_numpy(uniform), temperature=1.0, greedy=False)
    expected = (uniform - 0.5) * 2 * (vocabulary - 1)
    np.testing.assert_allclose(tokens.numpy(), expected, atol=2)
