"""Which groups a step trains on: all that were sampled, or, under dynamic sampling, those with a signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from slimrl.records import Group, Problem

SIGNAL_TOLERANCE = 1e-6
"""Rewards closer than this are equal: float noise must not let a constant group through."""


@dataclass(frozen=True)
class Collected:
    """The groups of one step, before and after selection."""

    groups: tuple[Group, ...]
    """To train on, at most P, in the order in which their problems were asked for."""
    surplus: tuple[Group, ...]
    """With a signal, but more than this step needs: carried into the next step."""
    sampled: tuple[Group, ...]
    """Everything sampled for this step: metrics over these are unbiased by selection."""
    wanted: int
    """P."""

    @property
    def fell_back(self) -> bool:
        """The budget, or the problems, ran out before P groups with a signal were found."""
        return len(self.groups) < self.wanted


def has_signal(group: Group, signal: Literal["correct", "reward"]) -> bool:
    """Whether the scorable rollouts differ: not all right and not all wrong (DAPO), or rewards apart by > 1e-6."""
    scored = [rollout for rollout in group.rollouts if not rollout.unscorable]
    if not scored:
        return False
    if signal == "correct":
        return len({rollout.correct for rollout in scored}) > 1
    rewards = [rollout.reward for rollout in scored]
    return max(rewards) - min(rewards) > SIGNAL_TOLERANCE


def collect_groups(
    problems: Iterator[Problem],
    roll_out: Callable[[Sequence[Problem]], Sequence[Group]],
    *,
    count: int,
    dynamic_sampling: Literal["off", "refill"],
    signal: Literal["correct", "reward"] = "correct",
    refill_budget: float = 3.0,
    carried: Sequence[Group] = (),
) -> Collected:
    """Groups for one step (DAPO, arXiv:2503.14476, eq. 11; here with a budget, whole groups, and surplus kept).

    A refill round asks for as many further problems as the share of kept groups so far makes likely to be enough, and
    never for more than `refill_budget` * count groups in all. Order is that of the problems, never of completion.
    """
    if dynamic_sampling == "off":
        fresh = tuple(roll_out(list(islice(problems, count))))
        return Collected(fresh, (), fresh, count)
    kept: list[Group] = list(carried)
    sampled: list[Group] = []
    limit = max(count, math.floor(refill_budget * count))
    while len(kept) < count and len(sampled) < limit:
        yielded = max(1, len(kept) - len(carried)) / max(1, len(sampled)) if sampled else 1.0
        wanted = min(math.ceil((count - len(kept)) / yielded), limit - len(sampled))
        more = roll_out(list(islice(problems, wanted)))
        if not more:
            break
        sampled += more
        kept += [group for group in more if has_signal(group, signal)]
    return Collected(tuple(kept[:count]), tuple(kept[count:]), tuple(sampled), count)
