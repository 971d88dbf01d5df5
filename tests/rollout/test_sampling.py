"""Draws against the definition, against the distribution, and against a computation of the same logits that rounds otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from slimrl.rollout.sampling import BLOCK, GREEDY, exponentials, sample_tokens

WORD = 2**64 - 1


def splitmix(seed: int, count: int) -> list[float]:
    """The first exponentials of a splitmix64 stream, with Python's integers."""
    found, state = [], seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        z ^= z >> 31
        found.append(-math.log(((z >> 11) + 0.5) / 2**53))
    return found


def naive(logits: np.ndarray, uniform: float, temperature: float) -> int:
    """A race among blocks by their mass, then one inside the winner, by definition."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    blocks = [weights[i : i + BLOCK] for i in range(0, len(weights), BLOCK)]
    waits = splitmix(int(uniform * 2**53), len(blocks) + min(BLOCK, len(weights)))
    block = int(np.argmax([b.sum() / wait for b, wait in zip(blocks, waits[: len(blocks)], strict=True)]))
    inside = [w / wait for w, wait in zip(blocks[block], waits[len(blocks) :], strict=False)]
    return block * BLOCK + int(np.argmax(inside))


@pytest.mark.parametrize("vocabulary", [1, 2, 61, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_and_logprob_are_those_of_the_definition(vocabulary: int, temperature: float) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = (rng.normal(size=(100, vocabulary)) * 4).astype(np.float32)
    uniform = rng.random(100)
    tokens, logprobs = sample_tokens(
        torch.from_numpy(logits.copy()), torch.from_numpy(uniform), temperature=temperature, greedy=False
    )
    assert tokens.tolist() == [naive(row, u, temperature) for row, u in zip(logits, uniform, strict=True)]
    expected = torch.log_softmax(torch.from_numpy(logits).double() / temperature, -1).gather(1, tokens[:, None])
    torch.testing.assert_close(logprobs.double(), expected.squeeze(1), atol=2e-6, rtol=0)


def test_greedy_takes_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])
    uniform = torch.full((2,), GREEDY, dtype=torch.float64)
    tokens, logprobs = sample_tokens(logits.clone(), uniform, temperature=2.0, greedy=True)
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(logprobs, torch.log_softmax(logits / 2, -1).amax(-1))


def test_exponentials_are_independent_and_standard() -> None:
    """Within a draw, and between draws whose uniform numbers are neighbours."""
    rng = np.random.default_rng(0)
    found = exponentials(torch.from_numpy(rng.random(2000)), 300).numpy()
    assert stats.kstest(found.ravel()[:200_000], "expon").pvalue > 1e-3
    assert stats.kstest(found.min(1) * 300, "expon").pvalue > 1e-3
    correlation = np.corrcoef(found, rowvar=False) - np.eye(300)
    assert np.abs(correlation).max() < 5.5 / 2000**0.5
    close = exponentials(torch.arange(2000, dtype=torch.float64) / 2**53, 2).numpy()
    assert abs(np.corrcoef(close[:-1, 0], close[1:, 0])[0, 1]) < 4 / 2000**0.5
    assert abs(np.corrcoef(close[:-1, 1], close[1:, 0])[0, 1]) < 4 / 2000**0.5


@pytest.mark.parametrize("vocabulary", [3, 2 * BLOCK + 5])
def test_draws_follow_the_distribution(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = torch.from_numpy(rng.normal(size=vocabulary).astype(np.float32))
    n = 40_000
    tokens, _ = sample_tokens(logits.repeat(n, 1), torch.from_numpy(rng.random(n)), temperature=0.8, greedy=False)
    expected = torch.softmax(logits.double() / 0.8, 0).numpy() * n
    assert stats.chisquare(np.bincount(tokens.numpy(), minlength=vocabulary), expected).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_without_probability_is_never_drawn(uniform: float) -> None:
    """Not even at the ends of the interval: exp(-200) is 0 in float32, in whole blocks and at the edges of one."""
    logits = torch.full((1, 3 * BLOCK), -200.0)
    logits[0, BLOCK + 3 : BLOCK + 40] = 0.0
    tokens, logprobs = sample_tokens(
        logits.clone(), torch.tensor([uniform], dtype=torch.float64), temperature=1.0, greedy=False
    )
    assert BLOCK + 3 <= tokens.item() < BLOCK + 40
    assert logprobs.item() == pytest.approx(-np.log(37), abs=1e-6)


def test_a_logit_that_is_not_a_number_shows() -> None:
    logits = torch.zeros((1, 2 * BLOCK + 1))
    logits[0, -1] = float("nan")
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.3], dtype=torch.float64), temperature=1.0, greedy=False)
    assert tokens.item() <= 2 * BLOCK
    assert torch.isnan(logprobs).all()


def test_the_tail_of_a_large_vocabulary_is_reached() -> None:
    """Half of the mass lies on one token before 150,000 others, each below what a float32 running sum still adds."""
    vocabulary, n = 150_001, 1000
    logits = torch.zeros(vocabulary)
    logits[0] = np.log(vocabulary - 1)
    uniform = torch.from_numpy(np.random.default_rng(0).random(n))
    tokens = torch.cat(
        [sample_tokens(logits.repeat(100, 1), part, temperature=1.0, greedy=False)[0] for part in uniform.split(100)]
    )
    assert abs(int((tokens == 0).sum()) - n / 2) < 4 * (n / 4) ** 0.5
    tail = tokens[tokens > 0].double() / vocabulary
    assert stats.kstest(tail.numpy(), "uniform").pvalue > 1e-3


def test_other_rounding_changes_a_draw_no_more_often_than_it_must() -> None:
    """Two computations of the same logits differ by rounding. No coupling of two distributions can differ less often than
    their total variation; the race stays within four times that (two for each of its rounds), at a real vocabulary's size,
    where an inverse CDF differs some thirty times as often.
    """
    vocabulary, rows, error = 49_152, 64, 3e-3
    rng = np.random.default_rng(7)
    # a few likely tokens above a long tail, as a language model has them
    logits = torch.from_numpy((rng.normal(size=(rows, vocabulary)) * 2.5).astype(np.float32))
    logits[:, rng.integers(0, vocabulary, 12)] += torch.from_numpy(rng.uniform(12, 16, 12).astype(np.float32))
    other = logits + torch.from_numpy(rng.normal(scale=error, size=(rows, vocabulary)).astype(np.float32))
    p, q = (torch.softmax(x.double(), -1) for x in (logits, other))
    variation = 0.5 * float((p - q).abs().sum(-1).mean())
    differ = inverse = drawn = 0
    sums = p.cumsum(-1), q.cumsum(-1)
    for _ in range(60):
        uniform = torch.from_numpy(rng.random(rows))
        first, second = (sample_tokens(x.clone(), uniform, temperature=1.0, greedy=False)[0] for x in (logits, other))
        differ += int((first != second).sum())
        drawn += rows
        found = [torch.searchsorted(s, uniform[:, None] * s[:, -1:], right=True) for s in sums]
        inverse += int((found[0] != found[1]).sum())
    assert differ <= 4 * variation * drawn + 3 * (4 * variation * drawn) ** 0.5
    assert inverse > 3 * differ
