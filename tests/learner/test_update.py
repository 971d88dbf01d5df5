"""Laws of the update: no split and no order changes the gradient; one update has ratio 1; several really clip."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from slimrl.algorithm.advantages import group_advantages
from slimrl.algorithm.batch import at_tokens, make_rows, rewards_of, tensors_of
from slimrl.config.files import build, load_config
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import OptimizerConfig
from slimrl.learner.learner import Learner, UpdateResult
from slimrl.learner.means import TokenMeans
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.targets import trained_rows
from slimrl.learner.trace import begin_trace
from slimrl.model.policy import Policy, freeze
from slimrl.randomness import uniforms
from slimrl.records import Batch, Completion, Group, Problem, Rollout, Rows
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from slimrl.runs.durable import digest
from tests.conftest import ROOT
from tests.tiny import FAMILIES, learner_of, microbatcher_of, tiny_policy

AGGREGATIONS = ("sequence_mean", "token_mean", "prompt_token_mean", "fixed_length")


def settings(**sections: dict[str, object]) -> TrainConfig:
    base: dict[str, dict[str, object]] = {
        "rollout": {"problems": 4, "group_size": 4, "max_new_tokens": 14},
        "optimizer": {"learning_rate": 2e-4},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return build(TrainConfig, base)


_SAMPLED: dict[object, list[tuple[Completion, ...]]] = {}


def groups_of(policy: Policy, config: TrainConfig, *, sampled_at: int = 0) -> tuple[Group, ...]:
    """Real rollouts of the tiny policy with made-up rewards; equal weights and settings are sampled from once."""
    rng = np.random.default_rng(1)
    problems = [Problem(f"p{i}", "?", "1") for i in range(config.rollout.problems)]
    prompts = [tuple(rng.integers(3, 61, size=3 + i).tolist()) for i in range(len(problems))]
    sizes = (len(problems), config.rollout.group_size, config.rollout.budget)
    key = (repr(policy.model), digest(policy.model.state_dict().items()), tuple(policy.stop_ids), *sizes)
    if key not in _SAMPLED:
        requests = [
            Request(prompt, uniforms(0, "train", 0, p.id, samples=sizes[1], positions=sizes[2]))
            for prompt, p in zip(prompts, problems, strict=True)
        ]
        _SAMPLED[key] = RolloutEngine(policy, slots=8).generate(requests, max_new_tokens=sizes[2])
    return tuple(
        Group(tuple(Rollout(p, c, "", False, {}, float(rng.integers(3))) for c in completions), sampled_at)
        for p, completions in zip(problems, _SAMPLED[key], strict=True)
    )


def rows_of(groups: tuple[Group, ...], config: TrainConfig, *, step: int = 0) -> Rows:
    return make_rows(groups, overlong_filtering=config.algorithm.overlong_filtering, step=step, pad_id=0)


def batch_of(policy: Policy, config: TrainConfig, *, step: int = 0, sampled_at: int = 0) -> Batch:
    """Their rows, with advantages within groups and nothing else but what the sampler said."""
    groups = groups_of(policy, config, sampled_at=sampled_at)
    rows = rows_of(groups, config, step=step)
    advantages = group_advantages(*rewards_of(groups), config.algorithm.scale_rewards)
    return filled(rows, at_tokens(advantages, rows.completion_mask))


def filled(rows: Rows, advantages: torch.Tensor) -> Batch:
    """A batch whose other tensors are neutral."""
    blank = torch.zeros_like(rows.sampler_logprobs)
    return Batch(
        **tensors_of(rows),
        advantages=advantages,
        old_logprobs=rows.sampler_logprobs,
        reference_logprobs=blank,
        importance=torch.ones_like(blank),
        values=blank,
        returns=blank,
    )


def made(learner: Learner, groups: tuple[Group, ...], *, step: int = 0) -> tuple[Batch, dict[str, float]]:
    """The batch of a step as the learner makes it, and its metrics."""
    return learner.targets.batch(groups, rows_of(groups, learner.config, step=step))


def logprobs_of(policy: Policy, batch: Rows, config: TrainConfig) -> torch.Tensor:
    return microbatcher_of(config).logprobs(policy, batch, batch.loss_mask)


def first_gradient(learner: Learner, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """The flat gradient of one optimizer update, which is not applied, and its metrics."""
    found = []

    def caught() -> float:
        found.append(
            torch.cat([learner.optimizer.gradients()[i].flatten() for i in sorted(learner.optimizer.gradients())])
        )
        learner.drop()
        return math.inf

    learner.optimizer.gradient_norm = caught  # type: ignore[method-assign]
    trace = begin_trace(batch, learner.config.log)
    metrics = learner._minibatch(batch, learner.targets.vocabulary_kl(batch), 0, 0, trace, lambda _: None)
    return found[0], metrics


def gradient(policy: Policy, batch: Batch, reference: torch.Tensor | None, config: TrainConfig) -> torch.Tensor:
    """The flat gradient of one optimizer update, with these log-probabilities of a reference."""
    if reference is not None:
        batch = dataclasses.replace(batch, reference_logprobs=reference)
    return first_gradient(learner_of(policy, config), batch)[0]


def shuffled(batch: Batch, order: torch.Tensor) -> Batch:
    return Batch(**{name: tensor[order] for name, tensor in tensors_of(batch).items()})


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("overlong", [False, True])
def test_gradient_does_not_depend_on_microbatches_or_row_order(aggregation: str, overlong: bool) -> None:
    policy = tiny_policy()
    algorithm = {"aggregation": aggregation, "overlong_filtering": overlong, "kl_coef": 0.1}
    config = settings(algorithm=algorithm)
    batch = batch_of(policy, config)
    assert 0 < batch.loss_mask.any(1).sum() <= 16
    reference = logprobs_of(freeze(tiny_policy(seed=1)), batch, config)
    whole = gradient(policy, batch, reference, config)
    assert whole.norm() > 1e-3
    for tokens in (1, 30, 77):
        split = settings(algorithm=algorithm, optimizer={"microbatch_tokens": tokens})
        torch.testing.assert_close(gradient(policy, batch, reference, split), whole, atol=1e-6, rtol=0)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    mixed = gradient(policy, shuffled(batch, order), reference[order], settings(algorithm=algorithm))
    torch.testing.assert_close(mixed, whole, atol=1e-6, rtol=0)


SURROGATES = ("clip", "reinforce", "gpg", "cispo", "gspo", "gspo_token", "sapo")
PENALTIES: dict[str, dict[str, object]] = {
    **{kind: {"kl_estimator": kind} for kind in ("k1", "k2", "k3", "k3_k2", "reverse", "forward")},
    "gkl": {"kl_estimator": "gkl", "gkl": {"weights": "global", "gamma": 0.7}},
    "none": {"kl_coef": 0.0},
    "reward": {"kl_estimator": "k1", "kl_place": "reward", "scale_rewards": "none"},
}


def learned(
    config: TrainConfig, *, shuffle: bool = False, spoil: Callable[[Group], Group] | None = None
) -> torch.Tensor:
    """The gradient of the first update through all of `update`, on rollouts of another policy: two groups are said to be stale,
    so their ratios differ from 1, one to be fresh, so its importance weights do; two rows carry no loss.
    """
    policy, seen = tiny_policy(), {}
    reference = freeze(tiny_policy(seed=1)) if config.algorithm.kl_coef else None
    learner = learner_of(policy, config, reference)
    groups = groups_of(tiny_policy(seed=2), config, sampled_at=-1)
    broken = (dataclasses.replace(groups[1].rollouts[0], unscorable="why"), *groups[1].rollouts[1:])
    groups = (
        groups[0],
        dataclasses.replace(groups[1], rollouts=broken),
        dataclasses.replace(groups[2], step=0),
        *groups[3:],
    )
    if spoil is not None:
        groups = (spoil(groups[0]), *groups[1:])
    if shuffle:
        groups = tuple(dataclasses.replace(g, rollouts=g.rollouts[::-1]) for g in groups[::-1])
    norm = learner.optimizer.gradient_norm

    def seen_norm() -> float:
        seen["gradient"] = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
        return norm()

    learner.optimizer.gradient_norm = seen_norm  # type: ignore[method-assign]
    learner.update(groups, 0)
    return seen["gradient"]


@pytest.mark.parametrize("kl", PENALTIES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", SURROGATES)
def test_the_invariance_contract(name: str, aggregation: str, kl: str) -> None:
    """No split into micro-batches, no order of rows or groups and no row without loss changes a gradient."""
    by_token = {} if name == "gspo" else {"entropy_share": 0.6}
    algorithm = {
        "surrogate": name, "aggregation": aggregation, "kl_coef": 0.1, "entropy_coef": 0.01,
        "importance": "truncate", "importance_level": "sequence" if name == "gspo" else "token", **by_token, **PENALTIES[kl],
    }  # fmt: skip
    small = {"problems": 3, "group_size": 3, "max_new_tokens": 7}
    whole = learned(settings(rollout=small, algorithm=algorithm))
    assert whole.norm() > 1e-4
    split = settings(rollout=small, algorithm=algorithm, optimizer={"microbatch_tokens": 23})
    torch.testing.assert_close(learned(split, shuffle=True), whole, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_without_loss_change_nothing_but_the_denominators(name: str, aggregation: str) -> None:
    """A group that could not be scored is as good as one whose rewards are equal: no token of it pulls."""
    algorithm = {"surrogate": name, "aggregation": aggregation, "kl_coef": 0.0}
    small = settings(rollout={"problems": 3, "group_size": 3, "max_new_tokens": 7}, algorithm=algorithm)

    def unscorable(group: Group) -> Group:
        return dataclasses.replace(
            group, rollouts=tuple(dataclasses.replace(r, unscorable="why") for r in group.rollouts)
        )

    def equal(group: Group) -> Group:
        return dataclasses.replace(group, rollouts=tuple(dataclasses.replace(r, reward=1.0) for r in group.rollouts))

    torch.testing.assert_close(learned(small, spoil=unscorable), learned(small, spoil=equal), atol=1e-6, rtol=0)


def test_the_contract_meets_ratios_and_importance_weights_that_are_not_one() -> None:
    config = settings(
        rollout={"problems": 3, "group_size": 3, "max_new_tokens": 7},
        algorithm={"importance": "truncate", "kl_coef": 0.0},
    )
    batch, _ = made(learner_of(tiny_policy(), config), groups_of(tiny_policy(seed=2), config, sampled_at=0))
    trained = batch.loss_mask & (batch.advantages != 0)
    assert (batch.importance != 1)[trained].float().mean() > 0.5


def test_a_minibatch_without_loss_is_a_skipped_update() -> None:
    config = settings(optimizer={"minibatches": 2})
    policy = tiny_policy()
    whole = groups_of(policy, config)
    spoiled = tuple(
        dataclasses.replace(g, rollouts=tuple(dataclasses.replace(r, unscorable="why") for r in g.rollouts))
        for g in whole[:2]
    )
    found = learner_of(policy, config).update((*spoiled, *whole[2:]), 0).metrics
    assert found["update/skipped"] == 0.5
    assert found["update/applied_fraction"] > 0.8, "over the updates that were made"


def test_equal_rewards_and_a_critic_that_knows_nothing_leave_nothing_to_whiten() -> None:
    config = settings(
        algorithm={"baseline": "critic", "scale_rewards": "none", "kl_coef": 0.0}, critic={"gae_lambda": 1.0}
    )
    policy = tiny_policy()
    groups = tuple(
        dataclasses.replace(g, rollouts=tuple(dataclasses.replace(r, reward=0.7) for r in g.rollouts))
        for g in groups_of(policy, config)
    )
    batch, _ = made(learner_of(policy, config), groups)
    assert batch.advantages.abs().max() < 0.01, "rounding is no advantage"


def test_the_first_advantages_of_ppo_are_those_of_no_baseline() -> None:
    """Long rows, with the recipe's critic as it is by default: the reward reaches the first token whole."""
    sizes = [
        "rollout.problems=4",
        "rollout.group_size=4",
        "rollout.max_new_tokens=90",
        "critic.whiten=false",
        "optimizer.learning_rate=1e-4",
    ]
    config = load_config(TrainConfig, [str(ROOT / "recipes" / "ppo.yaml")], sizes)
    policy = tiny_policy()
    groups = groups_of(policy, config)
    batch = rows_of(groups, config)
    assert batch.lengths.max() > 60
    blank = torch.zeros_like(batch.sampler_logprobs)
    targets = learner_of(policy, config).targets
    assert targets.critic is not None
    values = targets.critic.values(batch, targets.microbatcher)
    found, _, _ = targets.critic_advantages(groups, batch, values, blank)
    alone = group_advantages(*rewards_of(groups), "none", "none")
    expected = alone.reshape(-1, 1).float() * batch.completion_mask
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected)


def test_the_critic_recomputes_its_activations_where_the_policy_does() -> None:
    entered = {}
    for again in ("off", "on"):
        config = settings(
            algorithm={"baseline": "critic", "scale_rewards": "none", "kl_coef": 0.0},
            optimizer={"activation_checkpointing": again},
        )
        policy = tiny_policy()
        learner = learner_of(policy, config)
        batch, _ = made(learner, groups_of(policy, config))
        count: list[int] = []
        layer = learner.critic.critic.trunk.layers[0]
        layer.self_attn.register_forward_hook(lambda *_, count=count: count.append(1))
        learner._critic_gradient(batch, 0, TokenMeans(first=True))
        entered[again] = len(count)
    assert entered["on"] == 2 * entered["off"]


def test_progress_counts_completions_over_all_passes() -> None:
    config = settings(optimizer={"epochs": 2, "minibatches": 2, "microbatch_tokens": 48})
    policy = tiny_policy()
    learner, told = learner_of(policy, config), []
    learner.microbatcher.progress = lambda *counts: told.append(counts)
    groups = groups_of(policy, config)
    learner.update(groups, 0)
    total = 2 * sum(len(group.rollouts) for group in groups)
    done, totals = zip(*told, strict=True)
    assert (done[0], done[-1], {*totals}) == (0, total, {total})
    assert list(done) == sorted(done)
    assert len({*done}) > 5, "more often than once an update"


def test_nothing_that_carries_loss_is_no_update() -> None:
    config, policy = settings(), tiny_policy()
    groups = tuple(
        dataclasses.replace(g, rollouts=tuple(dataclasses.replace(r, unscorable="why") for r in g.rollouts))
        for g in groups_of(policy, config)
    )
    learner = learner_of(policy, config)
    for given in (groups, ()):
        assert learner.update(given, 0) == UpdateResult({"update/skipped": 1.0})


@pytest.mark.parametrize("name", SURROGATES)
def test_on_policy_every_surrogate_has_one_gradient(name: str) -> None:
    """With one update per batch the choice is inert, but for GPG's alpha."""
    base = gradient_of_first(settings(algorithm={"kl_coef": 0.0}))
    other = gradient_of_first(settings(algorithm={"kl_coef": 0.0, "surrogate": name}))
    factor = 1.0
    if name == "gpg":
        rewards, _ = rewards_of(groups_of(tiny_policy(), settings()))
        factor = 4 / int((rewards.amax(1) > rewards.amin(1)).sum())
    torch.testing.assert_close(other, factor * base, atol=1e-6, rtol=1e-4)


def gradient_of_first(config: TrainConfig) -> torch.Tensor:
    policy = tiny_policy()
    learner = learner_of(policy, config)
    groups = groups_of(policy, config)
    found = {}
    norm = learner.optimizer.gradient_norm
    learner.optimizer.gradient_norm = lambda: (  # type: ignore[method-assign]
        found.update(g=torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])),
        norm(),
    )[1]
    learner.update(groups, 0)
    return found["g"]


def test_importance_correction_is_exactly_inert_where_sampler_and_trainer_agree() -> None:
    """In float32 on a CPU they do, to 1e-4 nats: runs with and without are equal to the last bit."""
    several = {"learning_rate": 1e-2, "minibatches": 2}
    for kind in ("truncate", "mask"):
        for level in ("token", "sequence"):
            algorithm = {"importance": kind, "importance_level": level}
            base, _ = weights_after(settings(optimizer={"learning_rate": 1e-2}))
            other, metrics = weights_after(settings(optimizer={"learning_rate": 1e-2}, algorithm=algorithm))
            assert torch.equal(base, other)
            assert all(m["importance/mean"] == m["importance/max"] == 1.0 for m in metrics)
    plain, _ = weights_after(settings(optimizer=several))
    corrected, _ = weights_after(settings(optimizer=several, algorithm={"importance": "mask"}))
    torch.testing.assert_close(corrected, plain, atol=1e-4, rtol=0)


def test_a_penalty_in_the_reward_moves_advantages_and_no_token_by_itself() -> None:
    config = settings(algorithm={"kl_estimator": "k1", "kl_place": "reward", "kl_coef": 0.5, "scale_rewards": "none"})
    policy, reference = tiny_policy(), freeze(tiny_policy(seed=1))
    groups = groups_of(policy, config)
    learner = learner_of(policy, config, reference)
    batch, means = made(learner, groups)
    apart = ((batch.sampler_logprobs - batch.reference_logprobs) * batch.completion_mask).sum(1).view(4, 4).double()
    wanted = group_advantages(rewards_of(groups)[0] - 0.5 * apart, torch.ones(4, 4, dtype=torch.bool), "none")
    torch.testing.assert_close(batch.advantages, at_tokens(wanted, batch.completion_mask))
    assert means["kl"] == pytest.approx(float(apart.sum() / batch.completion_mask.sum()))
    assert "kl" not in first_gradient(learner, batch)[1]


def test_the_entropy_bonus_raises_entropy_and_the_top_share_leaves_the_rest_alone() -> None:
    def entropy_after(**algorithm: object) -> float:
        config = settings(
            optimizer={"learning_rate": 3e-3}, algorithm={"kl_coef": 0.0, "surrogate": "reinforce", **algorithm}
        )
        _, metrics = weights_after(config, steps=6)
        return metrics[-1]["entropy"]

    assert entropy_after(entropy_coef=0.3) > entropy_after() + 0.01
    policy = tiny_policy()
    config = settings(algorithm={"kl_coef": 0.0, "entropy_share": 0.3})
    batch = batch_of(policy, config)
    steered = learner_of(policy, config)._gradient_mask(batch, may_stop=True)
    assert steered.sum() == pytest.approx(0.3 * batch.loss_mask.sum(), abs=1)
    assert not (steered & ~batch.loss_mask).any()


def test_a_critic_learns_the_values_and_its_advantages_reach_every_token() -> None:
    config = settings(
        rollout={"group_size": 4},
        algorithm={"baseline": "critic", "scale_rewards": "none", "kl_coef": 0.0},
        critic={"learning_rate": 1e-2, "whiten": False, "gae_lambda": 1.0},
        optimizer={"learning_rate": 1e-12},
    )
    policy = tiny_policy()
    learner = learner_of(policy, config)
    groups = groups_of(policy, config)
    before = [p.detach().clone() for p in policy.model.parameters()]
    runs = [learner.update(groups, step).metrics for step in range(40)]
    assert runs[-1]["critic/loss"] < 0.3 * runs[0]["critic/loss"]
    assert runs[-1]["critic/explained_variance"] > 0.5 > runs[0]["critic/explained_variance"]
    assert all(torch.allclose(p, b, atol=1e-6) for p, b in zip(policy.model.parameters(), before, strict=True))
    first, _ = made(learner_of(policy, config), groups)
    rewards = rewards_of(groups)[0].flatten().float()
    torch.testing.assert_close(first.advantages, rewards[:, None] * first.completion_mask)
    torch.testing.assert_close(first.returns, first.advantages)  # values of 0 leave the returns alone


def test_critic_gradients_do_not_depend_on_microbatches() -> None:
    def critic_gradient(tokens: int) -> torch.Tensor:
        config = settings(
            algorithm={"baseline": "critic", "scale_rewards": "none", "kl_coef": 0.0},
            optimizer={"microbatch_tokens": tokens},
        )
        policy = tiny_policy()
        learner = learner_of(policy, config)
        critic = learner.critic.critic
        torch.nn.init.constant_(critic.head.weight, 0.1)
        batch, _ = made(learner, groups_of(policy, config))
        learner._critic_gradient(batch, 0, TokenMeans(first=True))
        return torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None])

    whole = critic_gradient(16384)
    assert whole.norm() > 1e-3
    torch.testing.assert_close(critic_gradient(25), whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_that_cannot_move_anything_are_not_computed(aggregation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without KL a group of equal rewards has no gradient; with KL every row has one."""
    policy = tiny_policy()
    config = settings(algorithm={"aggregation": aggregation, "kl_coef": 0})
    batch = batch_of(policy, config)
    advantages = batch.advantages.clone()
    advantages[4:12] = 0
    batch = dataclasses.replace(batch, advantages=advantages)
    assert trained_rows(batch, batch.advantages, config.algorithm).tolist() == [
        i for i in range(16) if advantages[i].any()
    ]
    skipped = gradient(policy, batch, None, config)
    everything = batch.loss_mask.any(1).nonzero().squeeze(-1)
    monkeypatch.setattr("slimrl.learner.learner.trained_rows", lambda *_: everything)
    torch.testing.assert_close(skipped, gradient(policy, batch, None, config), atol=1e-7, rtol=1e-5)
    monkeypatch.undo()
    pulled = settings(algorithm={"aggregation": aggregation, "kl_coef": 0.1})
    assert trained_rows(batch, batch.advantages, pulled.algorithm).tolist() == everything.tolist()
    still = dataclasses.replace(batch, advantages=torch.zeros_like(batch.advantages))
    assert len(trained_rows(still, still.advantages, config.algorithm)) == 1
    assert gradient(policy, still, None, config).abs().max() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_activations_give_the_same_gradient(family: str) -> None:
    policy = tiny_policy(family)
    plain = settings()
    batch = batch_of(policy, plain)
    reference = logprobs_of(freeze(tiny_policy(family, seed=1)), batch, plain)
    again = settings(optimizer={"activation_checkpointing": "on"})
    entered: list[bool] = []
    layer = policy.model.base_model.layers[0]
    hook = layer.self_attn.register_forward_hook(lambda module, *_: entered.append(module.training))
    kept = gradient(policy, batch, reference, plain)
    once = len(entered)
    torch.testing.assert_close(gradient(policy, batch, reference, again), kept, atol=1e-7, rtol=0)
    hook.remove()
    assert len(entered) == 3 * once
    assert not any(entered)
    assert not any(module.training for module in policy.model.modules())


def test_trl_bnpo_does_depend_on_microbatches() -> None:
    """Why microbatch_token_mean is for replication only."""
    policy = tiny_policy()
    bnpo = {"aggregation": "microbatch_token_mean", "kl_coef": 0}
    config = settings(algorithm=bnpo, optimizer={"microbatch_tokens": 16384})
    batch = batch_of(policy, config)
    token_mean = gradient(policy, batch, None, settings(algorithm={"aggregation": "token_mean", "kl_coef": 0}))
    torch.testing.assert_close(gradient(policy, batch, None, config), token_mean, atol=1e-6, rtol=0)
    split = settings(
        algorithm={"aggregation": "microbatch_token_mean", "kl_coef": 0}, optimizer={"microbatch_tokens": 40}
    )
    assert (gradient(policy, batch, None, split) - token_mean).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_autograd_through_the_plain_model(family: str) -> None:
    """The chunked, masked, hooked path against logits of the model's own forward pass and a formula in the open."""
    policy = tiny_policy(family)
    config = settings(algorithm={"kl_coef": 0, "scale_rewards": "none"})
    batch = batch_of(policy, config)
    ours = gradient(policy, batch, None, config)
    policy.model.set_attn_implementation("eager")
    for parameter in policy.model.parameters():
        parameter.grad = None
    loss = torch.zeros(())
    for row in range(16):
        ids = batch.inputs[row : row + 1, : batch.lengths[row]]
        logits = policy.model(input_ids=ids).logits[0]
        mask = batch.completion_mask[row, : batch.lengths[row]]
        targets = batch.targets[row, : batch.lengths[row]][mask]
        logprobs = torch.log_softmax(logits[mask], -1).gather(1, targets[:, None]).squeeze(1)
        loss = loss - (batch.advantages[row, : batch.lengths[row]][mask] * logprobs).mean() / 16
    loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def weights_after(config: TrainConfig, *, steps: int = 2) -> tuple[torch.Tensor, list[dict[str, float]]]:
    policy = tiny_policy()
    learner = learner_of(policy, config)
    metrics = []
    for step in range(steps):
        groups = groups_of(policy, config, sampled_at=step)
        metrics.append(learner.update(groups, step).metrics)
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()]), metrics


def test_one_update_has_ratio_one_and_clip_bounds_are_bitwise_inert() -> None:
    base, metrics = weights_after(settings(optimizer={"learning_rate": 1e-2}))
    for bounds in ({"clip_high": 0.28}, {"clip_low": 0.0, "clip_high": 0.0}):
        other, _ = weights_after(settings(optimizer={"learning_rate": 1e-2}, algorithm=bounds))
        assert torch.equal(base, other)
    assert all(m["clip_ratio/region_mean"] == 0 for m in metrics)
    assert all(m["sampling/sampling_logp_difference/max"] < 1e-4 for m in metrics)
    start = torch.cat([p.detach().flatten() for p in tiny_policy().model.parameters()])
    assert not torch.equal(base, start)


def test_several_updates_clip_and_the_bounds_matter() -> None:
    several = {"learning_rate": 3e-2, "minibatches": 2, "epochs": 2}
    base, metrics = weights_after(settings(optimizer=several))
    higher, _ = weights_after(settings(optimizer=several, algorithm={"clip_high": 0.28}))
    assert metrics[0]["clip_ratio/region_mean"] > 0
    assert metrics[0]["sampling/sampling_logp_difference/max"] < 1e-4, "of the first update alone"
    assert not torch.equal(base, higher)


def test_carried_groups_use_the_sampler_as_old_policy() -> None:
    """A group sampled by an earlier policy has a ratio; its clip can act even with one update."""
    policy = tiny_policy()
    config = settings(algorithm={"kl_coef": 0})
    batch = batch_of(policy, config, step=1, sampled_at=0)
    assert not batch.on_policy.any()
    stale = dataclasses.replace(
        batch, sampler_logprobs=torch.where(batch.completion_mask, batch.sampler_logprobs - 1, 0)
    )
    stale = dataclasses.replace(stale, old_logprobs=stale.sampler_logprobs)
    _, means = first_gradient(learner_of(policy, config), stale)
    assert means["clip_ratio/high_mean"] > 0
    assert "sampling/sampling_logp_difference/mean" not in means


def test_kl_pulls_towards_the_reference_and_zero_coefficient_needs_none() -> None:
    policy, config = tiny_policy(), settings(algorithm={"kl_coef": 0.5})
    batch = batch_of(policy, config)
    same = logprobs_of(freeze(policy), batch, config)
    with_same = gradient(policy, batch, same, config)
    without = gradient(policy, batch, None, settings(algorithm={"kl_coef": 0}))
    torch.testing.assert_close(with_same, without, atol=1e-5, rtol=0)  # k3 is flat where both policies are equal
    other = logprobs_of(freeze(tiny_policy(seed=5)), batch, config)
    assert (gradient(policy, batch, other, config) - without).norm() > 1e-2


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_numbers_that_are_not_finite_never_reach_the_weights(poison: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, config = tiny_policy(), settings(algorithm={"kl_coef": 0})
    groups = groups_of(policy, config)
    before = [p.detach().clone() for p in policy.model.parameters()]
    hook: Callable[[], None] = lambda: None  # noqa: E731
    if poison == "loss":
        monkeypatch.setattr("slimrl.learner.learner.surrogate", lambda *a: a[1] * float("nan"))
    else:
        handle = policy.model.base_model.norm.weight.register_hook(lambda g: g * float("inf"))
        hook = handle.remove
    updated = learner_of(policy, config).update(groups, 0)
    assert updated.fault is not None
    assert updated.metrics["update/nonfinite"] == updated.metrics["update/skipped"] == 1.0
    hook()
    assert all(torch.equal(p, b) for p, b in zip(policy.model.parameters(), before, strict=True))


def make_masters(policy: Policy) -> MasterAdamW:
    return MasterAdamW(policy.trainable, OptimizerConfig())


def test_float32_masters_move_what_bfloat16_weights_cannot() -> None:
    """20 steps of 1e-5: each is below half a digit of most bf16 weights, their sum is not."""
    policy = tiny_policy()
    policy.model.to(torch.bfloat16)
    optimizer = make_masters(policy)
    start = [p.detach().clone() for p in policy.model.parameters()]
    fractions = []
    for _ in range(20):
        optimizer.sums = {i: torch.ones_like(m) for i, m in optimizer.masters.items()}
        fractions.append(optimizer.step(1e-5, optimizer.gradient_norm())["update/applied_fraction"])
    assert fractions[0] < 0.2
    for s, m in zip(start, optimizer.masters.values(), strict=True):
        torch.testing.assert_close(m.detach(), s.float() - 20e-5, atol=2e-6, rtol=0)
    moved = [(p != s).float().mean().item() for p, s in zip(policy.model.parameters(), start, strict=True)]
    assert np.mean(moved) > 0.3


def test_float16_loss_scale_skips_an_overflow_and_halves() -> None:
    policy = tiny_policy()
    policy.model.to(torch.float16)
    optimizer = make_masters(policy)
    before = [p.detach().clone() for p in policy.model.parameters()]
    scale = optimizer.loss_scale
    weight = policy.model.get_input_embeddings().weight
    optimizer.backward((weight.float() * 1e4).sum())
    assert optimizer.step(1e-3, optimizer.gradient_norm()) == {"update/skipped": 1.0}
    assert optimizer.loss_scale == scale / 2
    assert all(torch.equal(p, b) for p, b in zip(policy.model.parameters(), before, strict=True))
    optimizer.backward(weight.float().sum())
    assert optimizer.step(1e-3, optimizer.gradient_norm())["grad_norm"] == pytest.approx(
        weight.numel() ** 0.5, rel=1e-3
    )


def test_gradients_of_microbatches_are_summed_in_float32() -> None:
    policy = tiny_policy()
    policy.model.to(torch.bfloat16)
    optimizer = make_masters(policy)
    weight = policy.model.base_model.norm.weight
    for _ in range(300):  # 1 + 299/256: a bf16 sum would stand still at 256 x the smallest addend
        optimizer.backward((weight * 1.0).sum())
    index = [p is weight for p in optimizer.parameters].index(True)
    assert optimizer.gradients()[index].max() == 300


def test_wide_gradients_and_those_of_autograd_are_one_sum() -> None:
    """A narrow table that is read in its own way too, before and after its wide sum exists."""
    policy = tiny_policy()
    policy.model.to(torch.bfloat16)
    optimizer = make_masters(policy)
    table = policy.model.get_input_embeddings()
    index = [p is table.weight for p in optimizer.parameters].index(True)
    optimizer.backward(table.weight[5].sum())
    for _ in range(2):
        optimizer.backward(table(torch.tensor([5, 6])).sum() + table.weight[5].sum())
    found = optimizer.gradients()[index]
    assert found.dtype == torch.float32
    assert found[5:8, 0].tolist() == [5, 2, 0]
    optimizer.drop()
    assert optimizer.gradients() == {}
    optimizer.backward(table(torch.tensor([6])).sum())
    assert optimizer.gradients()[index][5:7, 0].tolist() == [0, 1]
