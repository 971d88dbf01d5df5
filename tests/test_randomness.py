from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from slimrl.randomness import generator, uniforms
from slimrl.rollout.sampling import GREEDY, sample_tokens


def test_every_part_of_the_key_matters_and_nothing_else() -> None:
    base = {"seed": 0, "stream": "train", "step": 3, "problem_id": "gsm8k/train/00017", "samples": 2, "positions": 5}

    def made(**changes: object) -> np.ndarray:
        return uniforms(**{**base, **changes})  # type: ignore[arg-type]

    assert np.array_equal(made(), made())
    for change in ({"seed": 1}, {"stream": "evaluate"}, {"step": 4}, {"problem_id": "gsm8k/train/00018"}):
        assert not np.intersect1d(made(), made(**change)).size
    assert np.array_equal(made(samples=1)[0], made()[0]), "more samples leave the first ones as they were"
    assert np.array_equal(made(positions=9)[:, :5], made()), "a longer budget leaves the first positions as they were"
    state = np.random.get_state()[1].copy()
    made()
    assert np.array_equal(state, np.random.get_state()[1])


def test_uniforms_are_uniform_and_independent_across_rows() -> None:
    u = np.concatenate([uniforms(0, "train", s, f"p{i}", samples=4, positions=50) for s in range(5) for i in range(10)])
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.25
    assert u.min() >= 0
    assert u.max() < 1


def test_keys_do_not_run_together() -> None:
    assert generator("a", 1, 23).random() != generator("a", 12, 3).random()


def test_temperature_and_greedy_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(6, 3)
    u = torch.tensor([0.0, 0.1999, 0.2001, 0.6999, 0.7001, 0.999999], dtype=torch.float64)
    tokens, logprobs = sample_tokens(logits.clone(), u, temperature=1.0, greedy=False)
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.2, 0.5, 0.3])[tokens])
    cold, _ = sample_tokens(logits.clone(), u, temperature=1e-3, greedy=False)
    assert cold.tolist() == [1] * 6
    some = torch.where(torch.arange(6) < 3, u, GREEDY)
    best, logprob = sample_tokens(logits.clone(), some, temperature=1.0, greedy=True)
    assert best.tolist() == [*tokens[:3].tolist(), 1, 1, 1], "a draw does not depend on its company"
    torch.testing.assert_close(logprob.exp()[3:], torch.full((3,), 0.5))


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).expand(1001, 5)
    u = torch.linspace(0, 1, 1002, dtype=torch.float64)[:-1]
    tokens, _ = sample_tokens(logits.clone(), u, temperature=1.0, greedy=False)
    assert set(tokens.tolist()) == {1, 3}
