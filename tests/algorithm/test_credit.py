"""Credit by episode and by turn: every episode of two turns, and every group of them, is enumerated, so expectations are sums.

The policy is a table of logits for each context, its own tokens and the environment's; the environment is a table of answers and
rewards. Rewards are multiples of 1/8 and group sizes powers of 2, so advantages are exact although they are float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from slimrl.algorithm.advantages import group_advantages
from slimrl.algorithm.batch import (
    at_tokens,
    at_turn_ends,
    at_turns,
    from_turns_on,
    make_rows,
    returns_of,
    rewards_of,
    take,
    turn_numbers,
)
from slimrl.algorithm.loss import Options, surrogate, token_weights
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.terms import Credit, GroupBaseline

Tokens = tuple[int, ...]
PROMPT, MOST = 9, 8
"""The only prompt token; `rollout.max_new_tokens`."""
PROBLEM = Problem("p", "q", "1")


@dataclass(frozen=True)
class World:
    """All N episodes of an environment of two turns, and a policy at random."""

    rollouts: tuple[Rollout, ...]
    logits: Tensor
    """[contexts, V] float64."""
    contexts: Tensor
    """[N, W] the context that each token of an episode was drawn in; -1 at those that were not drawn."""
    tokens: Tensor
    """[N, W]."""
    later: Tensor
    """[contexts] bool: of the second turn."""

    @property
    def logprobs(self) -> Tensor:
        """[N, W], 0 where nothing was drawn."""
        found = torch.log_softmax(self.logits, -1)[self.contexts.clamp(min=0), self.tokens]
        return found.where(self.contexts >= 0, 0.0)

    @property
    def chances(self) -> Tensor:
        """[N]."""
        return self.logprobs.sum(1).exp()

    @property
    def truth(self) -> Tensor:
        """[contexts, V] gradient of the expected return."""
        rewards = torch.tensor([rollout.reward for rollout in self.rollouts], dtype=torch.float64)
        (found,) = torch.autograd.grad((self.chances * rewards).sum(), self.logits)
        return found

    @property
    def score_functions(self) -> Tensor:
        """[N, W, contexts, V] gradients of the log-probabilities of tokens."""
        table = torch.softmax(self.logits.detach(), -1)
        count, width = self.tokens.shape
        found = torch.zeros(count, width, *table.shape, dtype=torch.float64)
        for n, w in (self.contexts >= 0).nonzero().tolist():
            at, token = int(self.contexts[n, w]), int(self.tokens[n, w])
            found[n, w, at] = -table[at]
            found[n, w, at, token] += 1
        return found


def turns_of_one_token() -> list[Tokens]:
    return [(0,), (1,)]


def turns_of_two_tokens() -> list[Tokens]:
    """A 0 ends a turn, and so does the second token."""
    return [(0,), (1, 0), (1, 1)]


def world(
    turns: Callable[[], list[Tokens]],
    *,
    over: Callable[[Tokens], bool] = lambda _: False,
    paid: bool = True,
    apart: bool = False,
    seed: int = 0,
) -> World:
    """`over` says which first turns end the episode; without `paid` all that is earned is paid at its end. With `apart` neither
    what the second turn earns nor its policy depend on the first.
    """
    rng = np.random.default_rng(seed)

    def eighths() -> float:
        return float(rng.integers(-16, 17)) / 8

    second_turns = {turn: (eighths(), eighths() / 2) for turn in turns()}
    episodes: list[tuple[tuple[Tokens, ...], tuple[float, ...], float]] = []
    for first in turns():
        earned = eighths()
        if over(first):
            episodes.append(((first,), (earned,), eighths()))
        else:
            for second in turns():
                again, end = second_turns[second] if apart else (eighths(), eighths() / 2)
                episodes.append(((first, second), (earned, again), end))
    known: dict[Tokens, int] = {}
    later: list[bool] = []
    rollouts, contexts = [], []
    for said, rewards, end in episodes:
        row: list[int] = []
        path: Tokens = ()
        for number, turn in enumerate(said):
            if number:
                given = (5 + said[0][0], 8)  # the environment's answer
                path += given
                row += [-1, -1]
            for token in turn:
                if path not in known:
                    later.append(number > 0)
                row.append(known.setdefault(path, len(known)))
                path += (token,)
        mask = tuple(at < 0 for at in row) if -1 in row else ()
        completion = Completion((PROMPT,), path, (0.0,) * len(path), "stop", mask)
        returns = tuple(end + sum(rewards[turn:]) for turn in range(len(said)))
        total = end + sum(rewards)
        rollouts.append(Rollout(PROBLEM, completion, "", False, {}, total, returns=returns if paid else ()))
        contexts.append(row)
    width = max(map(len, contexts))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(known), 2, dtype=torch.float64, generator=generator)
    if apart:
        second = {path[len(path) - path[::-1].index(8) :]: at for path, at in known.items() if later[at]}
        for path, at in known.items():
            if later[at]:
                logits[at] = logits[second[path[len(path) - path[::-1].index(8) :]]]
    return World(
        rollouts=tuple(rollouts),
        logits=logits.requires_grad_(),
        contexts=torch.tensor([row + [-1] * (width - len(row)) for row in contexts]),
        tokens=torch.tensor(
            [
                [token if at >= 0 else 0 for token, at in zip(r.completion.token_ids, row, strict=True)]
                + [0] * (width - len(row))
                for r, row in zip(rollouts, contexts, strict=True)
            ]
        ),
        later=torch.tensor(later),
    )


@dataclass(frozen=True)
class Updates:
    """The update of every group of `size` episodes."""

    chances: Tensor
    """[groups]."""
    slopes: Tensor
    """[groups, size, W] derivative of an update's loss in the log-probability of each token, 0 off those that carry loss."""
    episodes: Tensor
    """[groups, size]."""


def updates(here: World, size: int, credit: Credit, baseline: GroupBaseline) -> Updates:
    """Made by the functions that the learner makes its batch and its loss of."""
    chosen = torch.tensor([*itertools.product(range(len(here.rollouts)), repeat=size)])
    groups = [Group(tuple(here.rollouts[n] for n in row), 0) for row in chosen.tolist()]
    rows = make_rows(groups, overlong_filtering=False, step=0, pad_id=0)
    if credit == "turn":
        advantages = at_turns(group_advantages(*returns_of(groups), "none", baseline), rows.completion_mask)
    else:
        advantages = at_tokens(group_advantages(*rewards_of(groups), "none", baseline), rows.completion_mask)
    one = take(rows, torch.arange(size))
    weights = token_weights(one.loss_mask, one.completion_mask, one.groups, "fixed_length", max_new_tokens=MOST)
    logprobs = here.logprobs.detach()[chosen.flatten()].requires_grad_()
    value = surrogate("clip", logprobs, logprobs.detach(), advantages, rows.loss_mask, Options())
    (slopes,) = torch.autograd.grad((weights.max().double() * rows.loss_mask * value).sum(), logprobs)
    return Updates(here.chances.detach()[chosen].prod(1), slopes.view(*chosen.shape, -1), chosen)


def gradients(here: World, made: Updates) -> Tensor:
    """[groups, contexts, V] what each update ascends, in units of the gradient of the expected return."""
    return -MOST * torch.einsum("gnw,gnwcv->gcv", made.slopes, here.score_functions[made.episodes])


def expected(here: World, size: int, credit: Credit, baseline: GroupBaseline) -> Tensor:
    """[contexts, V] mean over all groups: token by token, so that nothing of the size of a group and the policy is held."""
    made = updates(here, size, credit, baseline)
    mean = torch.zeros(here.tokens.shape, dtype=torch.float64)
    weighed = (made.chances[:, None, None] * made.slopes).flatten(0, 1)
    mean.index_add_(0, made.episodes.flatten(), weighed)
    return -MOST * torch.einsum("nw,nwcv->cv", mean, here.score_functions)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


WORLDS = [(turns_of_one_token, 2), (turns_of_one_token, 4), (turns_of_two_tokens, 2)]


@pytest.mark.parametrize(("turns", "size"), WORLDS)
@pytest.mark.parametrize("credit", ["episode", "turn"])
def test_the_expected_update_is_the_policy_gradient(
    turns: Callable[[], list[Tokens]], size: int, credit: Credit
) -> None:
    here = world(turns)
    assert here.chances.sum().item() == pytest.approx(1, abs=1e-12)
    close(expected(here, size, credit, "leave_one_out"), here.truth)
    close(expected(here, size, credit, "none"), here.truth)
    close(expected(here, size, credit, "group_mean"), here.truth * (size - 1) / size)


@pytest.mark.parametrize("size", [2, 4])
def test_a_turn_that_few_episodes_have_is_compared_with_those(size: int) -> None:
    """Where p is the chance of a second turn, whoever has it finds no one to compare with in (1 - p)^(size - 1) of all groups."""
    here = world(turns_of_one_token, over=lambda turn: turn == (0,))
    p = float(here.chances.detach() @ torch.tensor([float(r.completion.turns == 2) for r in here.rollouts]).double())
    assert 0.1 < p < 0.9
    second = here.later[:, None]
    alone = 1 - (1 - p) ** (size - 1)
    shared = 1 - (1 - (1 - p) ** size) / (size * p)
    close(expected(here, size, "turn", "leave_one_out"), here.truth * torch.where(second, alone, 1.0))
    close(expected(here, size, "turn", "group_mean"), here.truth * torch.where(second, shared, (size - 1) / size))
    close(expected(here, size, "turn", "none"), here.truth)
    close(expected(here, size, "episode", "leave_one_out"), here.truth)


def variance(here: World, size: int, credit: Credit) -> float:
    """Sum over logits of the variance of an update."""
    made = updates(here, size, credit, "leave_one_out")
    found = gradients(here, made)
    mean = torch.einsum("g,gcv->cv", made.chances, found)
    close(mean, here.truth)
    return float((made.chances[:, None, None] * (found - mean).square()).sum())


@pytest.mark.parametrize(("turns", "size"), WORLDS)
def test_credit_by_turn_takes_the_noise_of_earlier_turns_away(turns: Callable[[], list[Tokens]], size: int) -> None:
    """Where turns have nothing to do with each other, the variance falls by that of what the first turn earns, over size - 1, times
    the mean square of the second turn's score function.
    """
    here = world(turns, apart=True)
    chances = here.chances.detach()
    earned = torch.tensor([r.returns[0] - r.returns[1] for r in here.rollouts]).double()
    spread = chances @ earned.square() - (chances @ earned).square()
    second = here.score_functions.sum(1) * here.later[:, None]
    square = chances @ second.square().sum((1, 2))
    by_turn, whole = (variance(here, size, credit) for credit in ("turn", "episode"))
    assert by_turn < whole
    assert whole - by_turn == pytest.approx(float(square * spread) / (size - 1), abs=1e-8)


def test_credit_by_turn_can_have_more_variance() -> None:
    """Where the second turn takes back what the first has earned, whole episodes tell nothing, and turns do."""
    here = world(turns_of_one_token)
    back = [replace(r, reward=0.0, returns=(0.0, r.returns[1] - r.returns[0])) for r in here.rollouts]
    here = replace(here, rollouts=tuple(back))
    assert variance(here, 2, "turn") > variance(here, 2, "episode") == 0


def test_without_paid_turns_and_with_all_turns_everywhere_credit_makes_no_difference() -> None:
    here = world(turns_of_two_tokens, paid=False)
    by_turn, whole = (updates(here, 2, credit, "group_mean") for credit in ("turn", "episode"))
    assert torch.equal(by_turn.slopes, whole.slopes)


def rollout(text: str, *returns: float, reward: float = 0.0, unscorable: str = "") -> Rollout:
    """`x` is a token that was drawn, `.` one of the environment."""
    given = tuple(letter == "." for letter in text) if "." in text else ()
    completion = Completion((1, 2), tuple(range(3, 3 + len(text))), (-0.5,) * len(text), "stop", given)
    return Rollout(PROBLEM, completion, "", False, {}, returns[0] if returns else reward, unscorable, returns=returns)


GROUPS: Sequence[Group] = (
    Group((rollout("xx.xx..x", 3.0, 2.0, 0.5), rollout("x.x", 1.0, 4.0), rollout("xxx", reward=2.0)), 0),
    Group((rollout("x.x", reward=7.0), rollout("x.x", unscorable="late"), rollout("x..xx", 5.0, 1.0)), 0),
)


def test_returns_by_turn() -> None:
    returns, present = returns_of(GROUPS)
    assert returns.tolist() == [
        [[3.0, 1.0, 2.0], [2.0, 4.0, 0.0], [0.5, 0.0, 0.0]],
        [[7.0, 0.0, 5.0], [7.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
    ]
    assert present.tolist() == [
        [[True, True, True], [True, True, False], [True, False, False]],
        [[True, False, True], [True, False, True], [False, False, False]],
    ]
    advantages = group_advantages(returns, present, "none")
    assert advantages.tolist() == [
        [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
        [[1.0, 0.0, -1.0], [3.0, 0.0, -3.0], [0.0, 0.0, 0.0]],
    ]
    batch = torch.tensor([3.0, 1.0, 2.0, 2.0, 4.0, 0.5, 7.0, 5.0, 7.0, 1.0], dtype=torch.float64).std()
    torch.testing.assert_close(group_advantages(returns, present, "batch"), advantages / (batch + 1e-4))
    group = group_advantages(returns, present, "group")[0]
    torch.testing.assert_close(group[0], advantages[0, 0] / (1 + 1e-4))
    torch.testing.assert_close(group[1], advantages[0, 1] / (2**0.5 + 1e-4))
    assert not group[2].any(), "an episode that is alone at a turn has nothing to be compared with"


def test_numbers_of_turns_at_tokens() -> None:
    mask = make_rows(GROUPS, overlong_filtering=False, step=0, pad_id=0).completion_mask
    returns, _ = returns_of(GROUPS)
    spread = at_turns(returns, mask)
    assert spread[0].tolist() == [0, 3, 3, 0, 2, 2, 0, 0, 0.5]
    assert spread[2].tolist() == [0, 2, 2, 2, 0, 0, 0, 0, 0]
    assert spread[5].tolist() == [0, 5, 0, 0, 1, 1, 0, 0, 0]
    assert at_turn_ends(returns, mask)[0].tolist() == [0, 0, 3, 0, 0, 2, 0, 0, 0.5]
    assert turn_numbers(mask)[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    counted = from_turns_on(mask.float(), mask, groups=2, turns=3)
    assert counted.dtype == torch.float64
    assert counted[0, :, 0].tolist() == [5, 3, 1]
    assert counted[1, :, 2].tolist() == [3, 2, 0]
