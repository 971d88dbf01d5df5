"""The choice of groups that a step trains on: all that were sampled or, under dynamic sampling, those with a signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

from slimrl.records import Group, Problem
from slimrl.terms import Credit, Selection, Signal

SIGNAL_TOLERANCE = 1e-6
"""Rewards closer than this are equal: float noise must not let a constant group through."""


@dataclass(frozen=True)
class Collected:
    """The groups of one step, before and after selection."""

    groups: tuple[Group, ...]
    """To train on, at most P, in the order in which their problems were asked for."""
    surplus: tuple[Group, ...]
    """With a signal, but more than this step needs: kept for later steps."""
    sampled: tuple[Group, ...]
    """Everything sampled for this step: metrics over these are unbiased by selection."""
    wanted: int
    """P."""
    lacking: int = 0
    """Groups with a signal that were wanted and not found before the budget, or the problems, ran out."""

    @property
    def fell_back(self) -> bool:
        """True where it trains on less than was asked for."""
        return self.lacking > 0


def has_signal(group: Group, signal: Signal, credit: Credit = "episode") -> bool:
    """True where the scorable rollouts differ: not all right and not all wrong (DAPO), or rewards apart by > 1e-6; with credit by
    turn, the returns of those that have some turn.
    """
    scored = [rollout for rollout in group.rollouts if not rollout.unscorable]
    if not scored:
        return False
    if signal == "correct":
        return len({rollout.correct for rollout in scored}) > 1
    returns = [rollout.turn_returns if credit == "turn" else (rollout.reward,) for rollout in scored]
    turns = ([own[turn] for own in returns if turn < len(own)] for turn in range(max(map(len, returns))))
    return any(max(turn) - min(turn) > SIGNAL_TOLERANCE for turn in turns)


@dataclass(frozen=True)
class DynamicSampling:
    """The setting `algorithm.dynamic_sampling` and those that go with it."""

    kind: Selection = "off"
    signal: Signal = "correct"
    refill_budget: float = 3.0
    refill_share: float = 1.0
    credit: Credit = "episode"


def collect_groups(
    problems: Iterator[Problem],
    roll_out: Callable[[Sequence[Problem]], Sequence[Group]],
    *,
    count: int,
    sampling: DynamicSampling = DynamicSampling(),
    carried: Sequence[Group] = (),
) -> Collected:
    """Groups for one step, whole ones only, in the order of their problems and never of completion.

    `filter` drops groups without a signal; `replace` puts copies of the others in their places (POLARIS); `refill` (DAPO,
    arXiv:2503.14476, eq. 11) asks for as many further problems as the share of kept groups so far makes likely to be
    enough, never for more than `refill_budget` * count groups in all, and keeps what is left over for later steps. They
    come first, the oldest before the others, so none waits for more than `refill_budget` steps (rounded up); where `count` of
    them are there nothing is sampled.
    With `refill_share` below 1 it stops at that share of groups with a signal and keeps others for the rest (GPG's
    threshold, arXiv:2504.02546). Where nothing carries a signal there is nothing to train on, whatever the kind.
    """
    signals = partial(has_signal, signal=sampling.signal, credit=sampling.credit)
    if sampling.kind != "refill":
        fresh = tuple(roll_out(list(islice(problems, count))))
        kept = fresh if sampling.kind == "off" else tuple(group for group in fresh if signals(group))
        if sampling.kind == "replace" and kept:
            kept = tuple(islice(cycle(kept), len(fresh)))
        lacking = 0 if sampling.kind == "filter" else count - len(kept)
        return Collected(kept, (), fresh, count, lacking)
    kept_so_far: list[Group] = list(carried)
    sampled: list[Group] = []
    enough = math.ceil(sampling.refill_share * count)
    limit = max(count, math.floor(sampling.refill_budget * count))
    while len(kept_so_far) < (enough if sampled else count) and len(sampled) < limit:
        yielded = max(1, len(kept_so_far) - len(carried)) / max(1, len(sampled)) if sampled else 1.0
        missing = count - len(kept_so_far) if not sampled else enough - len(kept_so_far)
        more = roll_out(list(islice(problems, min(math.ceil(missing / yielded), limit - len(sampled)))))
        if not more:
            break
        sampled += more
        kept_so_far += [group for group in more if signals(group)]
    chosen = kept_so_far[:count]
    lacking = max(0, enough - len(chosen))
    if sampling.refill_share < 1 and chosen:
        taken = {id(group) for group in chosen}
        rest = [group for group in sampled if not signals(group)][: count - len(chosen)]
        taken |= {id(group) for group in rest}
        chosen = [group for group in (*carried, *sampled) if id(group) in taken]
    return Collected(tuple(chosen), tuple(kept_so_far[count:]), tuple(sampled), count, lacking)
