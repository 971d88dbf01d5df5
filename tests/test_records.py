"""The examples in the docstrings of slimrl/records.py, followed from problem to batch."""

from __future__ import annotations

import pytest
import torch

from slimrl.algorithm.batch import make_rows
from slimrl.config.files import build
from slimrl.config.schema import TrainConfig
from slimrl.records import Completion, Group, Problem, Rollout
from tests.tiny import learner_of, tiny_policy


def test_the_examples_follow_from_each_other() -> None:
    problem = Problem("gsm8k/test/00000", "Janet's ducks lay 16 eggs ...", "18", "Janet sells ...", 2.0)
    completion = Completion(prompt_ids=(11, 12), token_ids=(7, 2), logprobs=(-0.1, -0.2), finish="stop")
    right = Rollout(problem, completion, text="18", correct=True, scores={"correct": 1.0}, reward=1.0)
    other = Completion(prompt_ids=(11, 12), token_ids=(8,), logprobs=(-0.3,), finish="length")
    wrong = Rollout(problem, other, text="9", correct=False, scores={"correct": 0.0}, reward=0.0)
    groups = [Group((right, wrong), step=0)]
    rows = make_rows(groups, overlong_filtering=False, step=0, pad_id=0)
    assert rows.inputs[0].tolist() == [11, 12, 7]
    assert rows.targets[0].tolist() == [12, 7, 2]
    assert rows.completion_mask[0].int().tolist() == [0, 1, 1]
    assert rows.sampler_logprobs[0].tolist() == pytest.approx([0, -0.1, -0.2])
    assert (rows.lengths[0], rows.prompt_lengths[0]) == (3, 2)
    config = build(TrainConfig, {"algorithm": {"kl_coef": 0.0}, "optimizer": {"learning_rate": 1e-4}})
    batch, _ = learner_of(tiny_policy(), config).targets.batch(groups, rows)
    wanted = torch.tensor([[0.0, 0.71, 0.71], [0.0, -0.71, 0.0]])
    torch.testing.assert_close(batch.advantages, wanted, atol=5e-3, rtol=0)
    assert batch.old_logprobs[0].tolist() == pytest.approx([0, -0.1, -0.2])
    assert batch.importance[0].tolist() == [1, 1, 1]
    assert not any(tensor.any() for tensor in (batch.reference_logprobs, batch.values, batch.returns))
