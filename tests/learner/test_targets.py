"""Before a weight has moved no importance ratio leaves 1, whatever rounds between a decode step and a packed row."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slimrl.algorithm.advantages import group_advantages
from slimrl.algorithm.batch import at_tokens, rewards_of
from slimrl.algorithm.metrics import Metrics
from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.learner.forward import Microbatcher
from slimrl.learner.learner import Learner
from slimrl.learner.targets import Targets
from slimrl.model.policy import Policy
from slimrl.records import Batch, Group
from tests.conftest import ROOT
from tests.learner.test_update import SURROGATES, groups_of, made, settings
from tests.tiny import learner_of, tiny_policy

NARROW = [torch.bfloat16, torch.float16]
GSPO = {"clip_low": 3e-4, "clip_high": 4e-4}
SMALL = {"problems": 4, "group_size": 4, "max_new_tokens": 14}
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def narrow_policy(dtype: torch.dtype) -> Policy:
    policy = tiny_policy()
    policy.model.to(dtype)
    return policy


def scored(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """With the one reward named, as recipes that weigh rewards apart want it."""
    return tuple(
        dataclasses.replace(g, rollouts=tuple(dataclasses.replace(r, scores={"a": r.reward}) for r in g.rollouts))
        for g in groups
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Of every micro-batch: the largest |log ratio|, and the largest gap between trainer and sampler."""
    found: list[tuple[float, float]] = []

    def note(_learner: Learner, batch: Batch, fresh: Tensor, old: Tensor, *_: Any) -> None:
        gaps = [(fresh - other).abs()[batch.loss_mask].max().item() for other in (old, batch.sampler_logprobs)]
        found.append((gaps[0], gaps[1]))

    monkeypatch.setattr(Learner, "_measure", note)
    return found


def run_update(learner: Learner) -> Metrics:
    return learner.update(scored(groups_of(learner.policy, learner.config)), 0).metrics


def still(**algorithm: object) -> dict[str, dict[str, object]]:
    """Several updates of several micro-batches, at a rate that moves no weight."""
    optimizer = {"learning_rate": 1e-30, "minibatches": 2, "epochs": 2, "microbatch_tokens": 60}
    return {"algorithm": dict(algorithm), "optimizer": optimizer}


@pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", [s for s in SURROGATES if s not in ("reinforce", "gpg")])
def test_no_ratio_leaves_one_until_a_weight_moves(
    name: str, dtype: torch.dtype, seen: list[tuple[float, float]]
) -> None:
    """To the last bit, in every minibatch; sampler and trainer are apart all the while."""
    algorithm = {"surrogate": name, **(GSPO if name.startswith("gspo") else {})}
    config = settings(**still(**algorithm))
    run_update(learner_of(narrow_policy(dtype), config))
    assert len(seen) > 4, "several micro-batches in each of four updates"
    assert [ratio for ratio, _ in seen] == [0.0] * len(seen)
    assert max(gap for _, gap in seen) > 1e-4


def test_the_first_update_takes_its_own_log_probabilities_for_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody computes them before, and the weights are to the last bit those that they lead to otherwise."""
    config = settings(optimizer={"learning_rate": 1e-2, "minibatches": 2, "microbatch_tokens": 60})
    rows: list[int] = []
    statistics = Microbatcher.statistics

    def counted(self: Microbatcher, policy: Policy, micro: Batch, *args: Any, **more: Any) -> Any:
        if "passes" not in more and policy.model.dtype == torch.bfloat16 and policy.trainable:
            rows.append(len(micro.lengths))
        return statistics(self, policy, micro, *args, **more)

    monkeypatch.setattr(Microbatcher, "statistics", counted)

    def outcome() -> tuple[int, list[Tensor], Metrics]:
        rows.clear()
        learner = learner_of(narrow_policy(torch.bfloat16), config)
        metrics = run_update(learner)
        return sum(rows), [p.detach().clone() for p in learner.policy.model.parameters()], metrics

    computed, weights, metrics = outcome()
    monkeypatch.setattr(Targets, "first_is_its_own_old", False)
    all_computed, expected, as_before = outcome()
    assert 0 < computed < all_computed
    assert all(torch.equal(*pair) for pair in zip(weights, expected, strict=True))
    assert metrics == as_before


@pytest.mark.parametrize(
    "changes",
    [
        {"entropy_coef": 0.01},
        {"kl_estimator": "reverse"},
        {"importance": "truncate"},
        {"overlong_filtering": True, "kl_coef": 0.0},
        {"aggregation": "microbatch_token_mean"},
    ],
    ids=str,
)
def test_nor_with_what_takes_another_way_through_the_model(
    changes: dict[str, object], seen: list[tuple[float, float]]
) -> None:
    config = settings(**still(**changes))
    run_update(learner_of(narrow_policy(torch.bfloat16), config))
    assert {ratio for ratio, _ in seen} == {0.0}


@pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float16"])
def test_activations_that_are_recomputed_leave_ratios_at_one(
    dtype: torch.dtype, seen: list[tuple[float, float]]
) -> None:
    wanted = still()
    wanted["optimizer"]["activation_checkpointing"] = "on"
    config = settings(**wanted)
    run_update(learner_of(narrow_policy(dtype), config))
    assert {ratio for ratio, _ in seen} == {0.0}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_first_update_of_every_recipe_clips_nothing_in_bfloat16(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(TrainConfig, [str(recipe)], ["algorithm.reference=x"] if recipe.stem == "distillation" else [])
    config = config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update=SMALL | {"slots": "auto"}),
            "optimizer": config.optimizer.model_copy(update={"warmup_steps": 0, "learning_rate": 1e-6}),
        }
    )
    first: list[Metrics] = []
    minibatch = Learner._minibatch

    def noted(*args: Any) -> Metrics:
        first.append(minibatch(*args))
        return first[-1]

    monkeypatch.setattr(Learner, "_minibatch", noted)
    metrics = run_update(learner_of(narrow_policy(torch.bfloat16), config))
    assert metrics["update/skipped"] == 0.0
    assert first[0]["sampling/sampling_logp_difference/max"] > 1e-4
    if config.algorithm.surrogate in ("clip", "cispo", "gspo", "gspo_token"):
        assert first[0]["clip_ratio/region_mean"] == 0.0


def test_recipes_with_several_updates_are_among_them() -> None:
    several = [r.stem for r in RECIPES if "minibatches" in r.read_text()]
    assert {"gspo", "dapo", "cispo", "ppo", "sapo"} <= set(several)


def test_groups_carried_over_keep_what_their_policy_said() -> None:
    config = settings(**still())
    policy = narrow_policy(torch.bfloat16)
    learner = learner_of(policy, config)
    groups = groups_of(policy, config)
    stale = tuple(dataclasses.replace(group, step=-1) for group in groups[2:])
    batch, _ = made(learner, (*groups[:2], *stale))
    assert torch.equal(batch.old_logprobs[~batch.on_policy], batch.sampler_logprobs[~batch.on_policy])
    changed = (batch.old_logprobs != batch.sampler_logprobs)[batch.on_policy & (batch.advantages != 0).any(1)]
    assert changed.any(1).all()
    assert torch.equal(batch.importance, torch.ones_like(batch.importance))


def test_only_where_it_is_needed() -> None:
    """A float32 module's sampler agrees to 1e-6 nats, one update has no ratio, and neither have reinforce and GPG."""
    several = still()
    for policy, config in (
        (tiny_policy(), settings(**several)),
        (narrow_policy(torch.bfloat16), settings()),
        (narrow_policy(torch.bfloat16), settings(**still(surrogate="reinforce"))),
        (narrow_policy(torch.bfloat16), settings(**still(surrogate="gpg"))),
    ):
        batch, _ = made(learner_of(policy, config), groups_of(policy, config))
        assert torch.equal(batch.old_logprobs, batch.sampler_logprobs)
        assert torch.equal(batch.importance, torch.ones_like(batch.importance))


def test_a_sampler_of_its_own_is_not_taken_at_its_word() -> None:
    """Another module than the trainer's, such as an inference server, may differ from it also in float32."""
    config, policy = settings(**still()), tiny_policy()
    learner = learner_of(policy, config)
    learner.targets = dataclasses.replace(learner.targets, exact_sampler=False)
    groups = groups_of(tiny_policy(seed=2), config)
    batch, _ = made(learner, groups)
    trained = batch.loss_mask & (batch.advantages != 0).any(1, keepdim=True)
    assert (batch.old_logprobs - batch.sampler_logprobs)[trained].abs().max() > 1e-2


def test_importance_compares_the_trainer_with_the_sampler() -> None:
    """The correction still sees the gap that the ratios no longer do."""
    config = settings(**still(importance="truncate"))
    policy = narrow_policy(torch.bfloat16)
    batch, _ = made(learner_of(policy, config), groups_of(policy, config))
    trained = batch.loss_mask & (batch.advantages != 0).any(1, keepdim=True)
    gap = (batch.old_logprobs - batch.sampler_logprobs)[trained]
    wanted = torch.where(gap.abs() > 1e-4, gap, 0.0).exp().clamp(max=2.0)
    torch.testing.assert_close(batch.importance[trained], wanted)
    assert (batch.importance[trained] != 1).float().mean() > 0.2


@pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float16"])
def test_a_penalty_in_the_reward_pays_nothing_for_rounding(dtype: torch.dtype) -> None:
    """The reference is the policy itself, so the penalty is 0; by the sampler's log-probabilities it is not."""
    config = settings(algorithm={"kl_estimator": "k1", "kl_place": "reward", "kl_coef": 0.5, "scale_rewards": "none"})
    learner = learner_of(narrow_policy(dtype), config)
    groups = groups_of(learner.policy, config)
    batch, means = made(learner, groups)
    assert means["kl"] == 0.0
    wanted = group_advantages(*rewards_of(groups), "none")
    assert torch.equal(batch.advantages, at_tokens(wanted, batch.completion_mask))
    by_sampler = (batch.sampler_logprobs - batch.reference_logprobs)[batch.completion_mask]
    assert by_sampler.abs().max() > 1e-4
    assert run_update(learner)["kl"] == 0.0
