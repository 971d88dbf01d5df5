"""Exact gradients: every completion of a tabular policy is enumerated, so expectations are sums and nothing is believed.

The policy has a logit for each of V tokens after each prefix; completions have T tokens. What a loss term does on average
is compared with autograd of the objective that it claims to descend, in float64, to 1e-8.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from slimrl.algorithm.advantages import generalized_advantages, group_advantages
from slimrl.algorithm.kl import Divergence, forward_kl, global_weights, kl_penalty, reverse_kl
from slimrl.algorithm.loss import Options, surrogate

V, T = 4, 3
BOUNDS = {"clip_low": 0.2, "clip_high": 0.2}
ON_POLICY = ("clip", "reinforce", "gpg", "cispo", "gspo", "gspo_token", "sapo")


@dataclass(frozen=True)
class Tabular:
    """Logits [prefixes, V]; completions [N, T] and the prefix that each of their tokens follows [N, T]."""

    logits: Tensor
    tokens: Tensor
    prefixes: Tensor

    @property
    def table(self) -> Tensor:
        """[prefixes, V] log-probabilities."""
        return torch.log_softmax(self.logits, -1)

    @property
    def logprobs(self) -> Tensor:
        """[N, T] of every completion's tokens."""
        return self.table[self.prefixes, self.tokens]

    @property
    def probabilities(self) -> Tensor:
        """[N]."""
        return self.logprobs.sum(1).exp()

    @property
    def reached(self) -> Tensor:
        """[prefixes] probability that sampling comes through a prefix."""
        chances = torch.zeros(len(self.logits), dtype=torch.float64)
        chances[0] = 1.0
        for parent, (first, last) in enumerate(spans()):
            if last <= len(chances):
                chances[first:last] = chances[parent] * self.table[parent].exp()
        return chances


def spans() -> Iterator[tuple[int, int]]:
    """The children of each prefix, numbered level by level."""
    for parent in range(sum(V**t for t in range(T))):
        yield 1 + parent * V, 1 + parent * V + V


def tabular(seed: int) -> Tabular:
    generator = torch.Generator().manual_seed(seed)
    count = sum(V**t for t in range(T))
    logits = torch.randn(count, V, dtype=torch.float64, generator=generator).requires_grad_()
    completions = list(itertools.product(range(V), repeat=T))
    prefixes = []
    for completion in completions:
        at, path = 0, []
        for token in completion:
            path.append(at)
            at = 1 + at * V + token
        prefixes.append(path)
    return Tabular(logits, torch.tensor(completions), torch.tensor(prefixes))


POLICY, REFERENCE, OTHER = tabular(0), tabular(1), tabular(2)
N = V**T
REWARDS = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
MASK = torch.ones(N, T, dtype=torch.bool)


def gradient(value: Tensor, policy: Tabular = POLICY) -> Tensor:
    (found,) = torch.autograd.grad(value, policy.logits, retain_graph=True)
    return found


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def objective(policy: Tabular = POLICY) -> Tensor:
    """E[R]."""
    return (policy.probabilities * REWARDS).sum()


def expected(per_token: Tensor, probabilities: Tensor) -> Tensor:
    """The mean over completions of a sum over tokens; the sampling itself is not differentiated."""
    return (probabilities.detach()[:, None] * per_token).sum()


def test_the_enumeration_is_a_distribution() -> None:
    assert POLICY.probabilities.sum().item() == pytest.approx(1.0, abs=1e-12)
    for depth, (first, last) in enumerate(
        itertools.pairwise(itertools.accumulate((V**t for t in range(T)), initial=0))
    ):
        assert POLICY.reached[first:last].sum().item() == pytest.approx(1.0, abs=1e-12), depth


@pytest.mark.parametrize("name", ON_POLICY)
def test_every_surrogate_is_the_policy_gradient_on_policy(name: str) -> None:
    old = POLICY.logprobs.detach()
    value = surrogate(name, POLICY.logprobs, old, REWARDS[:, None].expand(N, T), MASK, Options(**BOUNDS))  # type: ignore[arg-type]
    close(gradient(expected(value, POLICY.probabilities)), -gradient(objective()))


@pytest.mark.parametrize("name", ["clip", "gspo", "sapo"])
def test_off_policy_a_surrogate_is_the_gradient_of_its_own_objective(name: str) -> None:
    """Sampled by another policy; the objective is written out in loops over completions and tokens."""
    old = OTHER.logprobs.detach()
    value = surrogate(name, POLICY.logprobs, old, REWARDS[:, None].expand(N, T), MASK, Options(**BOUNDS))  # type: ignore[arg-type]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(N):
        ratios = (POLICY.logprobs[i] - old[i]).exp()
        whole = torch.stack([r.log() for r in ratios]).mean().exp()
        for r in ratios:
            if name == "sapo":
                tau = 1.0 if REWARDS[i] > 0 else 1.05
                term = 4 / tau / (1 + torch.exp(-tau * (r - 1))) * REWARDS[i]
            else:
                ratio = whole if name == "gspo" else r
                kept = min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2))
                term = min(ratio * REWARDS[i], kept * REWARDS[i])
            total = total + OTHER.probabilities[i].detach() * term
    close(gradient(expected(value, OTHER.probabilities)), -gradient(total))


def test_without_bounds_the_sequence_of_ratios_is_not_needed_for_the_last_token() -> None:
    """With T = 1 the importance-weighted surrogate off-policy is the policy gradient exactly."""
    first = POLICY.table[0]
    old = OTHER.table[0].detach()
    rewards = REWARDS[:V]
    value = surrogate(
        "clip", first[:, None], old[:, None], rewards[:, None], MASK[:V, :1], Options(clip_low=1.0, clip_high=1e9)
    )
    close(gradient((old.exp()[:, None] * value).sum()), -gradient((first.exp() * rewards).sum()))


def test_a_cispo_token_weighs_its_clipped_ratio_and_never_falls_silent() -> None:
    old = OTHER.logprobs.detach()
    ratio = (POLICY.logprobs.detach() - old).exp()
    value = surrogate("cispo", POLICY.logprobs, old, REWARDS[:, None].expand(N, T), MASK, Options(**BOUNDS))
    wanted = -(ratio.clamp(0.8, 1.2) * REWARDS[:, None] * POLICY.logprobs)
    close(gradient(expected(value, OTHER.probabilities)), gradient(expected(wanted, OTHER.probabilities)))
    assert ((ratio < 0.8) | (ratio > 1.2)).any()


@pytest.mark.parametrize("size", [2, 3])
def test_baselines_over_every_group_of_completions(size: int) -> None:
    """All groups of the first token's completions: leave-one-out is unbiased, the group's mean (G - 1) / G of it."""
    first, rewards = POLICY.table[0], REWARDS[:V]
    truth = gradient((first.exp() * rewards).sum())
    sums = {
        "group_mean": torch.zeros(()).double(),
        "leave_one_out": torch.zeros(()).double(),
        "none": torch.zeros(()).double(),
    }
    for group in itertools.product(range(V), repeat=size):
        chosen = torch.tensor(group)
        chance = first[chosen].sum().exp().detach()
        for baseline in sums:
            advantages = group_advantages(
                rewards[chosen][None],
                torch.ones(1, size, dtype=torch.bool),
                "none",
                baseline,  # type: ignore[arg-type]
            )[0]
            sums[baseline] = sums[baseline] + chance * (advantages * first[chosen]).mean()
    close(gradient(sums["leave_one_out"]), truth)
    close(gradient(sums["none"]), truth)
    close(gradient(sums["group_mean"]), truth * (size - 1) / size)


def towards_reference(divergence: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The gradient of a divergence after each prefix, prefixes weighed as the policy reaches them and not differentiated."""
    values = divergence(POLICY.table, REFERENCE.table.detach())
    return gradient((POLICY.reached.detach() * values).sum())


def reverse(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def forward(p: Tensor, q: Tensor) -> Tensor:
    return (q.exp() * (q - p)).sum(-1)


@pytest.mark.parametrize(("kind", "descends"), [("k1", None), ("k2", reverse), ("k3", forward), ("k3_k2", reverse)])
def test_which_divergence_a_sampled_penalty_descends(kind: str, descends: Callable[..., Tensor] | None) -> None:
    penalty = kl_penalty(kind, POLICY.logprobs, REFERENCE.logprobs.detach())  # type: ignore[arg-type]
    found = gradient(expected(penalty, POLICY.probabilities))
    close(found, torch.zeros_like(found) if descends is None else towards_reference(descends))


@pytest.mark.parametrize("kind", ["k1", "k3", "k3_k2"])
def test_the_value_of_an_unbiased_estimator_is_the_reverse_kl(kind: str) -> None:
    penalty = kl_penalty(kind, POLICY.logprobs, REFERENCE.logprobs)  # type: ignore[arg-type]
    truth = (POLICY.reached * reverse(POLICY.table, REFERENCE.table)).sum()
    close(expected(penalty, POLICY.probabilities), truth)


def test_k1_in_the_reward_descends_the_kl_of_whole_completions() -> None:
    apart = (POLICY.logprobs - REFERENCE.logprobs).detach().sum(1)
    value = surrogate(
        "reinforce",
        POLICY.logprobs,
        POLICY.logprobs.detach(),
        (REWARDS - 0.3 * apart)[:, None].expand(N, T),
        MASK,
        Options(**BOUNDS),
    )
    kl = (POLICY.probabilities * (POLICY.logprobs - REFERENCE.logprobs.detach()).sum(1)).sum()
    close(gradient(expected(value, POLICY.probabilities)), -gradient(objective() - 0.3 * kl))


def through_slope(divergence: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The gradient that the head would pass on."""
    _, slope = divergence(POLICY.table.detach(), REFERENCE.table.detach().clone())
    return slope * POLICY.reached.detach()[:, None]


def test_exact_divergences_have_their_own_gradients() -> None:
    close(through_slope(reverse_kl), towards_reference(reverse))
    close(through_slope(forward_kl), towards_reference(forward))
    for ours, theirs in ((reverse_kl, reverse), (forward_kl, forward)):
        close(ours(POLICY.table.detach(), REFERENCE.table.detach().clone())[0], theirs(POLICY.table, REFERENCE.table))


def test_generalized_kl_has_the_two_kl_gradients_as_special_cases() -> None:
    close(through_slope(Divergence("gkl", mse=1, cross_entropy=0, weights="policy")), towards_reference(reverse))
    close(through_slope(Divergence("gkl", mse=0, cross_entropy=1)), towards_reference(forward))
    close(
        through_slope(Divergence("gkl", mse=0.7, cross_entropy=0.2)),
        0.7 * towards_reference(reverse) + 0.2 * towards_reference(forward),
    )


@pytest.mark.parametrize("weights", ["policy", "reference", "global"])
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_generalized_kl_is_the_papers_sum_over_pairs(weights: str, gamma: float) -> None:
    """A quarter of sum_jk w_j w_k (d_j - d_k)^2, written with all V^2 pairs, and the soft-label cross-entropy."""
    q = REFERENCE.table.detach()
    mean = (POLICY.reached.detach()[:, None] * q.exp()).sum(0) / T
    prior = global_weights(mean, gamma)
    w = {
        "policy": POLICY.table.exp().detach(),
        "reference": q.exp() ** gamma / (q.exp() ** gamma).sum(-1, keepdim=True),
        "global": (mean**gamma / (mean**gamma).sum()).expand_as(q),
    }[weights]

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        d = p - q
        pairs = (d[:, :, None] - d[:, None, :]) ** 2
        return 0.5 * (w[:, :, None] * w[:, None, :] * pairs).sum((1, 2)) / 4 - 2.0 * (q.exp() * p).sum(-1)

    ours = Divergence("gkl", 0.5, 2.0, weights, gamma, prior)  # type: ignore[arg-type]
    close(through_slope(ours), towards_reference(divergence))
    close(ours(POLICY.table.detach(), q.clone())[0], divergence(POLICY.table, q))


def test_a_critic_changes_no_expected_gradient_with_long_returns() -> None:
    """GAE with lambda = discount = 1 and any values of prefixes: the policy gradient, whatever the critic says."""
    values = torch.randn(len(POLICY.logits), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    paid = torch.zeros(N, T, dtype=torch.float64)
    paid[:, -1] = REWARDS
    for critic in (values, torch.zeros_like(values)):
        advantages, returns = generalized_advantages(paid, critic[POLICY.prefixes], MASK, discount=1.0, gae_lambda=1.0)
        value = surrogate("clip", POLICY.logprobs, POLICY.logprobs.detach(), advantages, MASK, Options(**BOUNDS))
        close(gradient(expected(value, POLICY.probabilities)), -gradient(objective()))
        close(returns, REWARDS[:, None].expand(N, T))


def test_a_perfect_critic_is_unbiased_with_short_returns_too() -> None:
    truth = torch.zeros(len(POLICY.logits), dtype=torch.float64)
    for prefix in range(len(truth)):
        through = (POLICY.prefixes == prefix).any(1)
        chances = POLICY.probabilities.detach() * through
        truth[prefix] = (chances * REWARDS).sum() / chances.sum()
    paid = torch.zeros(N, T, dtype=torch.float64)
    paid[:, -1] = REWARDS
    for gae_lambda in (0.0, 0.5):
        advantages, _ = generalized_advantages(paid, truth[POLICY.prefixes], MASK, discount=1.0, gae_lambda=gae_lambda)
        value = surrogate("reinforce", POLICY.logprobs, POLICY.logprobs.detach(), advantages, MASK, Options(**BOUNDS))
        close(gradient(expected(value, POLICY.probabilities)), -gradient(objective()))
