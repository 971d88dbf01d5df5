"""The engine's contract: the trainer's distribution, generate's tokens, and nothing that depends on scheduling."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from slimrl.algorithm.batch import make_rows
from slimrl.config.files import build
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.kernels import linear
from slimrl.model.policy import Policy
from slimrl.randomness import uniforms
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.rollout import Request, state
from slimrl.rollout.engine import RolloutEngine
from slimrl.rollout.graphs import CudaGraphs
from tests.tiny import FAMILIES, FUSIBLE, microbatcher_of, tiny_policy

VOCABULARY = 61


def requests(count: int, samples: int, positions: int, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [
        Request(
            tuple(rng.integers(3, VOCABULARY, size=rng.integers(3, 17)).tolist()),
            uniforms(seed, "train", 0, f"p{i}", samples=samples, positions=positions),
        )
        for i in range(count)
    ]


def trainer_gaps(policy: Policy, groups: list, temperature: float) -> torch.Tensor:
    """|trainer - sampler| log-probabilities of every drawn token, through the batch that training builds."""
    problem = Problem("p", "q", "1")
    made = [
        Group(tuple(Rollout(problem, c, "", True, {}, float(i % 2)) for i, c in enumerate(group)), 0)
        for group in groups
    ]
    batch = make_rows(made, overlong_filtering=False, step=0, pad_id=0)
    config = build(TrainConfig, {"rollout": {"temperature": temperature}})
    logprobs = microbatcher_of(config).logprobs(policy, batch, batch.loss_mask)
    return (logprobs - batch.sampler_logprobs).abs()[batch.loss_mask]


@pytest.mark.parametrize("family", [*FAMILIES, *FUSIBLE])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_trainer_agree(family: str, temperature: float) -> None:
    policy = tiny_policy(family)
    groups = RolloutEngine(policy, slots=7).generate(requests(9, 4, 24), max_new_tokens=24, temperature=temperature)
    gaps = trainer_gaps(policy, groups, temperature)
    assert len(gaps) > 300
    assert gaps.max() < 1e-4
    assert gaps.mean() < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one batch with samples, which are what they are without greedy company."""
    policy = tiny_policy(family)
    alone = requests(6, 2, 20)
    asked = [replace(request, greedy=i % 3) for i, request in enumerate(alone)]
    engine, prefilled = RolloutEngine(policy, slots=4), []
    monkeypatch.setattr(
        "slimrl.rollout.engine.prefill", lambda p, prompts: (prefilled.extend(prompts), state.prefill(p, prompts))[1]
    )
    ours = engine.generate(asked, max_new_tokens=20)
    assert prefilled == [request.prompt_ids for request in alone], "each prompt once"
    sampled = engine.generate(alone, max_new_tokens=20)
    assert [[c.token_ids for c in group[:2]] for group in ours] == [[c.token_ids for c in group] for group in sampled]
    policy.model.set_attn_implementation("sdpa")
    greedy = [(request, completion) for request, group in zip(asked, ours, strict=True) for completion in group[2:]]
    assert len(greedy) == sum(request.greedy for request in asked)
    for request, completion in greedy:
        ids = torch.tensor([request.prompt_ids])
        theirs = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=0
        )
        assert completion.token_ids == tuple(theirs[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("least_weights", [linear.LEAST_WEIGHTS, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_do_not_depend_on_slots_or_company(
    family: str, least_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on which product of few rows a batch happens to be large enough for."""
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", least_weights)
    policy = tiny_policy(family)
    assert any(isinstance(module, linear.FewRowsLinear) for module in policy.model.modules()) == (least_weights == 1)
    asked = requests(8, 5, 16)
    runs = {slots: RolloutEngine(policy, slots=slots).generate(asked, max_new_tokens=16) for slots in (1, 3, 64)}
    tokens = {s: [[c.token_ids for c in group] for group in groups] for s, groups in runs.items()}
    assert tokens[1] == tokens[3] == tokens[64]
    reverse = RolloutEngine(policy, slots=5).generate(asked[::-1], max_new_tokens=16)
    assert [[c.token_ids for c in group] for group in reverse[::-1]] == tokens[1]
    assert trainer_gaps(policy, runs[64], 1.0).max() < 1e-4


class Recorded:
    """Replays as a CUDA graph would: the first step of a key is what runs for every later one, whoever asks."""

    keeps = True

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.recorded: dict[Hashable, Callable[[], None]] = {}
        self.runs = 0

    def round_up(self, count: int, unit: int) -> int:
        return -(-count // unit) * unit

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        self.recorded.setdefault(key, step)()
        self.runs += 1

    def clear(self) -> None:
        self.recorded.clear()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 5])
def test_recorded_steps_draw_the_same_tokens(family: str, steps: int) -> None:
    """Rounded shapes, several steps between looks, buffers and recordings that live on from call to call."""
    policy = tiny_policy(family)
    runner = Recorded(steps)
    plain, recorded = RolloutEngine(policy, slots=20), RolloutEngine(policy, slots=20, runner=runner)
    for seed in range(3):
        asked = requests(9, 5, 18, seed)
        ours = recorded.generate(asked, max_new_tokens=18)
        theirs = plain.generate(asked, max_new_tokens=18)
        assert [[c.token_ids for c in g] for g in ours] == [[c.token_ids for c in g] for g in theirs]
        assert [[c.finish for c in g] for g in ours] == [[c.finish for c in g] for g in theirs]
    assert trainer_gaps(policy, ours, 1.0).max() < 1e-4
    assert len(runner.recorded) < runner.runs / 2
    kept = recorded.state
    recorded.generate(requests(2, 5, 18, 7), max_new_tokens=18)
    assert recorded.state is kept
    longer = [Request(tuple([5] * 70), uniforms(0, "train", 0, "p", samples=3, positions=18))]
    again = recorded.generate(longer, max_new_tokens=18)
    assert recorded.state is not kept
    assert again[0][0].token_ids == plain.generate(longer, max_new_tokens=18)[0][0].token_ids


def test_graph_sizes_are_few_and_large_enough() -> None:
    graphs = CudaGraphs()
    sizes = {graphs.round_up(count, 16) for count in range(1, 513)}
    assert all(graphs.round_up(count, 16) >= count for count in range(1, 513))
    assert len(sizes) < 24


def test_rows_of_all_ages_share_a_ring_of_columns() -> None:
    """Four slots for 60 samples of 2 to 16 tokens: the clock goes round the columns many times."""
    policy = tiny_policy("gemma3")
    asked = requests(12, 5, 16)
    narrow = RolloutEngine(policy, slots=4).generate(asked, max_new_tokens=16)
    assert trainer_gaps(policy, narrow, 1.0).max() < 1e-4
    lengths = [len(c.token_ids) for g in narrow for c in g]
    assert min(lengths) < 5
    assert max(lengths) == 16
    assert sum(lengths) / 4 > 5 * 16


def test_groups_are_handed_over_whole_as_they_finish() -> None:
    policy = tiny_policy()
    asked = requests(10, 3, 16)
    handed: list[tuple[int, tuple[Completion, ...]]] = []
    result = RolloutEngine(policy, slots=3).generate(
        asked, max_new_tokens=16, on_group=lambda index, group: handed.append((index, group))
    )
    assert sorted(index for index, _ in handed) == list(range(10))
    assert all(group == result[index] for index, group in handed)


def test_progress_counts_completions_also_where_memory_runs_out() -> None:
    for fails_at in (0, 40):
        engine, told, steps = RolloutEngine(tiny_policy("qwen2"), slots=6), [], []
        step = engine.step

        def failing(*arguments: Any, fails_at: int = fails_at, step: Any = step, steps: list[int] = steps) -> None:
            steps.append(len(steps))
            if steps[-1] == fails_at > 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            step(*arguments)

        engine.step = failing
        engine.generate(requests(9, 4, 24), max_new_tokens=24, progress=lambda *counts, told=told: told.append(counts))
        done, totals = zip(*told, strict=True)
        assert (done[0], done[-1], {*totals}) == (0, 36, {36})
        assert len(told) > 5
        assert engine.slots == (3 if fails_at else 6)
        fell = [later < before for before, later in pairwise(done)]
        assert fell.count(True) <= (1 if fails_at else 0), "only what is sampled again comes again"


def test_a_full_budget_of_one_token() -> None:
    policy = tiny_policy()
    groups = RolloutEngine(policy, slots=4).generate(requests(3, 3, 1), max_new_tokens=1)
    assert [len(c.token_ids) for g in groups for c in g] == [1] * 9


def test_finish_reason_and_budget() -> None:
    policy = tiny_policy()
    groups = RolloutEngine(policy, slots=8).generate(requests(12, 8, 12), max_new_tokens=12)
    completions = [c for group in groups for c in group]
    assert {c.finish for c in completions} == {"stop", "length"}
    for c in completions:
        assert (c.token_ids[-1] == 2) == (c.finish == "stop")
        assert 2 not in c.token_ids[:-1]
        assert len(c.token_ids) == len(c.logprobs) <= 12
        assert c.finish == "stop" or len(c.token_ids) == 12


def test_every_stop_id_ends_a_completion() -> None:
    policy = tiny_policy()
    stops = (2, 5, 9)

    groups = RolloutEngine(replace(policy, stop_ids=stops), slots=8).generate(requests(12, 8, 12), max_new_tokens=12)
    ended = {c.token_ids[-1] for group in groups for c in group if c.finish == "stop"}
    assert ended == set(stops)


def test_draws_follow_the_distribution() -> None:
    """20,000 first tokens of one prompt against the model's own softmax: chi-square within its 99.9 % quantile."""
    from scipy.stats import chi2

    policy = tiny_policy()
    prompt = (5, 7, 11)
    n = 20_000
    request = Request(prompt, uniforms(3, "train", 0, "p", samples=n, positions=1))
    (group,) = RolloutEngine(policy, slots=n).generate([request], max_new_tokens=1, temperature=1.3)
    counts = np.bincount([c.token_ids[0] for c in group], minlength=VOCABULARY)
    policy.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = torch.softmax(policy.model(torch.tensor([prompt])).logits[0, -1].double() / 1.3, -1).numpy() * n
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(0.999, VOCABULARY - 1)


def test_a_prompt_is_prefilled_once_for_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = RolloutEngine(tiny_policy(), slots=2)
    seen: list[tuple[int, ...]] = []
    original = state.prefill
    noted = lambda policy, prompts: (seen.extend(prompts), original(policy, prompts))[1]  # noqa: E731
    monkeypatch.setattr("slimrl.rollout.engine.prefill", noted)
    asked = requests(5, 6, 8)
    engine.generate(asked, max_new_tokens=8)
    assert sorted(seen) == sorted(r.prompt_ids for r in asked)


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    policy = tiny_policy()
    request = Request(tuple([3] * 120), uniforms(0, "train", 0, "p", samples=1, positions=16))
    with pytest.raises(ValueError, match="context of 128"):
        RolloutEngine(policy, slots=1).generate([request], max_new_tokens=16)


def test_no_request_no_completion() -> None:
    assert RolloutEngine(tiny_policy(), slots=4).generate([], max_new_tokens=8) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch by torch, on the way to its compiler
@pytest.mark.parametrize(("family", "least_weights"), [("qwen3", linear.LEAST_WEIGHTS), ("wide mistral", 1)])
def test_compiled_steps_draw_the_same_tokens(family: str, least_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of both are as wide as a vector, so attention is the compiled one where there is one; layers of one are fused."""
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", least_weights)
    policy = tiny_policy(family)
    asked = requests(3, 3, 5)
    plain = RolloutEngine(policy, slots=5).generate(asked, max_new_tokens=5)
    engine = RolloutEngine(policy, slots=5, compiled=True)
    compiled = engine.generate(asked, max_new_tokens=5)
    assert [[c.token_ids for c in g] for g in compiled] == [[c.token_ids for c in g] for g in plain]
    assert trainer_gaps(policy, compiled, 1.0).max() < 1e-4


def test_where_nothing_can_be_compiled_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand many lines")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(SettingsError, match=r"rollout\.compile=true, but torch\.compile does not work here"):
        RolloutEngine(tiny_policy(), slots=2, compiled=True)
