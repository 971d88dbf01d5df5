"""Episodes of several turns in the update: whose logits the loss depends on, and the advantage of each turn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from slimrl.algorithm.advantages import group_advantages
from slimrl.algorithm.batch import at_turns, returns_of
from slimrl.config.schema import TrainConfig
from slimrl.learner.forward import Microbatcher
from slimrl.model.packing import Packed
from slimrl.model.policy import Policy
from slimrl.records import Batch, Completion, Group, Problem, Rollout, Rows
from tests.learner.test_update import first_gradient, made, settings
from tests.tiny import learner_of, tiny_policy

VOCABULARY = 16
"""Less than the width of the hidden states, so that one logit can be moved without the others."""


def config_of(**algorithm: object) -> TrainConfig:
    return settings(
        environment={"name": "x.py:X"},
        algorithm={"credit": "turn", "kl_coef": 0.0} | algorithm,
        optimizer={"microbatch_tokens": 30},
        rollout={"problems": 2, "group_size": 3},
    )


def episode(rng: np.random.Generator, problem: Problem, prompt: tuple[int, ...], turns: int) -> Rollout:
    """Turns of two tokens with two of an environment between them; all turns are paid."""
    given = tuple([False, False, True, True] * turns)[:-2]
    ids = tuple(rng.integers(3, VOCABULARY, size=len(given)).tolist())
    logprobs = tuple(0.0 if told else float(-3 * rng.random()) for told in given)
    completion = Completion(prompt, ids, logprobs, "stop", given if turns > 1 else ())
    returns = tuple(rng.integers(-8, 9, size=turns).tolist())
    return Rollout(problem, completion, "", False, {}, returns[0], returns=returns)


def groups_of(*turns: tuple[int, ...]) -> tuple[Group, ...]:
    """One group for each tuple, of episodes with so many turns."""
    rng, groups = np.random.default_rng(0), []
    for number, counts in enumerate(turns):
        problem, prompt = Problem(f"p{number}", "?", "1"), tuple(rng.integers(3, VOCABULARY, size=4 + number).tolist())
        groups.append(Group(tuple(episode(rng, problem, prompt, count) for count in counts), 0))
    return tuple(groups)


GROUPS = groups_of((3, 2, 1), (2, 2, 3))


class Moved:
    """Moves the logits of one token in the update: at a row and place of a batch, by a change of a hidden state that moves a single
    logit. The row is found in its micro-batch by the sampler's log-probabilities.
    """

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.policy = policy
        self.inverse = torch.linalg.pinv(policy.head.weight.detach().double())
        self.row, self.place, self.change = torch.zeros(0), 0, torch.zeros(0)
        self.here: list[int] = []
        statistics, packed_hidden = Microbatcher.statistics, Policy.packed_hidden

        def counted(microbatcher: Microbatcher, of: Policy, rows: Rows, *args: object, **more: object) -> object:
            width = min(len(self.row), rows.sampler_logprobs.shape[1])
            alike = (rows.sampler_logprobs[:, :width] == self.row[:width]).all(1) if width else torch.zeros(0)
            self.here = alike.nonzero().flatten().tolist()
            return statistics(microbatcher, of, rows, *args, **more)  # type: ignore[arg-type]

        def moved(of: Policy, packed: Packed) -> Tensor:
            hidden = packed_hidden(of, packed)
            if of is self.policy and self.here:
                (row,) = self.here
                hidden = hidden.index_add(0, packed.places[row, self.place][None], self.change[None])
            return hidden

        monkeypatch.setattr(Microbatcher, "statistics", counted)
        monkeypatch.setattr(Policy, "packed_hidden", moved)

    def at(self, batch: Batch, row: int, place: int, logit: int, size: float) -> None:
        length = int(batch.lengths[row])
        self.row, self.place = batch.sampler_logprobs[row, :length], place
        self.change = (size * self.inverse[:, logit]).float()


@pytest.mark.parametrize(
    "more",
    [{}, {"kl_coef": 0.5, "entropy_coef": 0.1, "kl_estimator": "k2"}, {"kl_coef": 0.5, "kl_estimator": "reverse"}],
    ids=str,
)
def test_the_loss_depends_on_the_logits_of_drawn_tokens_and_of_no_given_one(
    more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By finite differences of the loss of a whole update, through packing, micro-batches and the head in chunks. The surrogate is
    `reinforce`, since the value of one with a ratio is the same for all logits as long as the policy is its own old one.

    At a given token nothing changes to the last bit. The loss is a float32 number below 2, so a difference of two is exact to a few
    of its last bits, 5e-7; 2e-6 is a slope of 2e-5, and those of drawn tokens are some 1e-2.
    """
    policy = tiny_policy(vocabulary=VOCABULARY)
    config = config_of(surrogate="reinforce", **more)
    learner = learner_of(policy, config)
    if learner.targets.reference is not None:  # another model than the policy, or the penalty is 0
        learner.targets = dataclasses.replace(learner.targets, reference=tiny_policy(vocabulary=VOCABULARY, seed=3))
    batch, _ = made(learner, GROUPS)
    moved = Moved(policy, monkeypatch)

    def loss(row: int, place: int, logit: int, size: float) -> float:
        moved.at(batch, row, place, logit, size)
        return first_gradient(learner, batch)[1]["loss"]

    still = loss(0, 5, 0, 0.0)
    assert abs(still) < 2
    counts = [0, 0]
    for row, (first, length) in enumerate(zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)):
        # the first token is drawn from the end of the prompt, which the group shares
        for place in range(first, length):
            target, drawn = int(batch.targets[row, place]), bool(batch.completion_mask[row, place])
            counts[drawn] += 1
            up, down = (loss(row, place, target, size) for size in (0.05, -0.05))
            if not drawn:
                assert up == down == still
            elif batch.advantages[row, place] or more:
                assert abs(up - down) > 2e-6
    assert counts == [14, 20]


def test_slopes_of_logits_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(vocabulary=VOCABULARY)
    learner = learner_of(policy, config_of(surrogate="reinforce", aggregation="token_mean"))
    batch, _ = made(learner, GROUPS)
    logprobs = learner.microbatcher.logprobs(policy, batch, batch.loss_mask)
    moved = Moved(policy, monkeypatch)
    for row, place in ((0, 5), (0, 8), (3, 9)):
        target = int(batch.targets[row, place])
        found = []
        for size in (0.05, -0.05):
            moved.at(batch, row, place, target, size)
            found.append(first_gradient(learner, batch)[1]["loss"])
        slope = -batch.advantages[row, place] * (1 - logprobs[row, place].exp()) / batch.completion_mask.sum()
        assert (found[0] - found[1]) / 0.1 == pytest.approx(float(slope), rel=2e-2, abs=1e-5)


def test_each_turn_has_its_own_advantage() -> None:
    learner = learner_of(tiny_policy(vocabulary=VOCABULARY), config_of(scale_rewards="none"))
    batch, _ = made(learner, GROUPS)
    wanted = at_turns(group_advantages(*returns_of(GROUPS), "none"), batch.completion_mask)
    assert torch.equal(batch.advantages, wanted)
    first, second, third = (GROUPS[0].rollouts[n].returns for n in range(3))
    mean = (first[0] + second[0] + third[0]) / 3
    assert batch.advantages[0, 3:13].tolist() == pytest.approx(
        [first[0] - mean] * 2 + [0, 0] + [(first[1] - second[1]) / 2] * 2 + [0, 0] + [0] * 2
    )


def test_a_penalty_in_the_reward_counts_from_each_turn_on() -> None:
    """As a reward of each token would: no token is blamed for the divergence of an earlier turn."""
    config = config_of(kl_coef=0.5, kl_estimator="k1", kl_place="reward", scale_rewards="none", baseline="none")
    policy = tiny_policy(vocabulary=VOCABULARY)
    learner = learner_of(policy, config)
    learner.targets = dataclasses.replace(learner.targets, reference=tiny_policy(vocabulary=VOCABULARY, seed=3))
    batch, _ = made(learner, GROUPS)
    apart = (batch.sampler_logprobs - batch.reference_logprobs) * batch.completion_mask
    for row, rollout in enumerate(r for group in GROUPS for r in group.rollouts):
        first = int(batch.prompt_lengths[row]) - 1
        for turn, value in enumerate(rollout.returns):
            begin = first + 4 * turn
            assert float(batch.advantages[row, begin]) == pytest.approx(
                value - 0.5 * float(apart[row, begin:].sum()), abs=1e-5
            )


def test_a_critic_is_paid_at_the_end_of_each_turn() -> None:
    more = {"baseline": "critic", "scale_rewards": "none"}
    for credit in ("turn", "episode"):
        config = config_of(**more, credit=credit).model_copy(
            update={"critic": settings(algorithm=more, critic={"whiten": False}).critic}
        )
        batch, _ = made(learner_of(tiny_policy(vocabulary=VOCABULARY), config), GROUPS)
        returns, _ = returns_of(GROUPS)
        wanted = at_turns(returns if credit == "turn" else returns[:, :1].expand_as(returns), batch.completion_mask)
        torch.testing.assert_close(batch.returns, wanted)


@pytest.mark.parametrize(
    "more",
    [
        *({"scale_rewards": scale, "baseline": base} for scale in ("group", "batch", "none", "mean") for base in ("group_mean", "leave_one_out", "none")),
        {"surrogate": "gpg", "scale_rewards": "none"},
        {"kl_coef": 0.5, "kl_estimator": "k1", "kl_place": "reward", "scale_rewards": "none"},
        {"baseline": "critic", "scale_rewards": "none"},
        {"baseline": "critic", "scale_rewards": "none", "kl_coef": 0.5, "kl_estimator": "k1", "kl_place": "reward"},
    ],
    ids=str,
)  # fmt: skip
def test_with_one_turn_everywhere_credit_makes_no_difference_to_the_last_bit(more: dict[str, object]) -> None:
    groups = groups_of((1, 1, 1), (1, 1, 1))
    spoiled = dataclasses.replace(groups[0].rollouts[1], unscorable="late", reward=0.0, returns=())
    groups = (
        dataclasses.replace(groups[0], rollouts=(groups[0].rollouts[0], spoiled, groups[0].rollouts[2])),
        groups[1],
    )
    found = []
    for credit in ("turn", "episode"):
        learner = learner_of(tiny_policy(vocabulary=VOCABULARY), config_of(**more, credit=credit))
        if learner.targets.reference is not None:
            learner.targets = dataclasses.replace(learner.targets, reference=tiny_policy(vocabulary=VOCABULARY, seed=3))
        found.append(made(learner, groups))
    (by_turn, measured), (whole, other) = found
    assert measured == other
    assert torch.equal(by_turn.advantages.view(torch.int32), whole.advantages.view(torch.int32))
    assert torch.equal(by_turn.returns, whole.returns)
    assert by_turn.advantages.any()


def test_alpha_counts_the_groups_that_differ_at_some_turn() -> None:
    rng = np.random.default_rng(0)

    def group(*returns: tuple[float, ...]) -> Group:
        rollouts = [episode(rng, Problem("p", "?", "1"), (3, 4), len(own)) for own in returns]
        return Group(
            tuple(dataclasses.replace(r, reward=own[0], returns=own) for r, own in zip(rollouts, returns, strict=True)),
            0,
        )

    groups = (group((1.0, 1.0), (1.0, 0.0), (1.0, 0.5)), group((1.0, 0.5), (1.0, 0.5), (1.0,)))
    for credit, alpha in (("turn", 2.0), ("episode", 1.0)):
        config = config_of(surrogate="gpg", scale_rewards="none", credit=credit)
        _, metrics = made(learner_of(tiny_policy(vocabulary=VOCABULARY), config), groups)
        assert metrics["gpg_alpha"] == alpha
