"""Counts of what a run has sampled and done, on which the rules of `preflight/effects.py` depend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from slimrl.algorithm.groups import has_signal
from slimrl.config.schema import TrainConfig
from slimrl.records import Group


@dataclass(frozen=True)
class Observed:
    """Counts of what was sampled and done so far.

    Example: Observed(completions=16, truncated=2, longest=64, shortest=9, groups=4, constant=1) after one step without an
    update of 4 problems with 4 completions each.
    """

    completions: int
    truncated: int
    longest: int
    """Tokens of the longest completion."""
    shortest: int
    groups: int
    constant: int
    """Groups without a signal in the sense of algorithm.signal."""
    carried: int = 0
    """Groups trained on that an earlier policy sampled."""
    steps: int = 0
    """Steps with an update."""
    skipped: int = 0
    """Steps without one."""
    clipped: int = 0
    """Steps in which every update's gradient was scaled down."""
    corrected: int = 0
    """Steps in which an importance correction was not exactly 1."""
    bounded: int = 0
    """Steps in which some importance ratio was beyond a bound."""
    alphas: frozenset[float] = frozenset()
    """Values of GPG's alpha."""
    turns: int = 0
    """Of the longest episode; 0 without an environment."""
    paid_by_turn: int = 0
    """Episodes whose return is not the same at all turns."""


NOTHING_OBSERVED = Observed(completions=0, truncated=0, longest=0, shortest=0, groups=0, constant=0)


def combine(first: Observed, second: Observed) -> Observed:
    """The counts of both together."""
    lengths = [observed.shortest for observed in (first, second) if observed.completions]
    special = {name: max(getattr(first, name), getattr(second, name)) for name in ("longest", "turns")}
    special["shortest"] = min(lengths, default=0)
    names = {field.name for field in fields(Observed)} - {*special, "alphas"}
    sums = {name: getattr(first, name) + getattr(second, name) for name in names}
    return Observed(**sums, **special, alphas=first.alphas | second.alphas)


def note_update(observed: Observed, metrics: Mapping[str, float]) -> Observed:
    """The counts with those of a step's update, whose metrics these are, or of a step that had none."""
    if "update/clipped" not in metrics:
        return replace(observed, skipped=observed.skipped + 1)
    exact = metrics.get("importance/max", 1.0) == 1.0 == metrics.get("importance/mean", 1.0)
    alpha = {metrics["gpg_alpha"]} if "gpg_alpha" in metrics else set()
    return replace(
        observed,
        steps=observed.steps + 1,
        clipped=observed.clipped + (metrics["update/clipped"] == 1.0),
        corrected=observed.corrected + (not exact),
        bounded=observed.bounded + (metrics.get("clip_ratio/region_mean", 0.0) > 0),
        alphas=observed.alphas | alpha,
    )


def observe(groups: Sequence[Group], config: TrainConfig, *, carried: int = 0) -> Observed:
    """The counts of sampled groups; `carried` is the number of groups trained on that an earlier policy sampled."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    completions = [rollout.completion for rollout in rollouts]
    lengths = [completion.drawn for completion in completions]
    return Observed(
        completions=len(completions),
        truncated=sum(completion.finish == "length" for completion in completions),
        longest=max(lengths, default=0),
        shortest=min(lengths, default=0),
        groups=len(groups),
        constant=sum(not has_signal(group, config.algorithm.signal, config.algorithm.credit) for group in groups),
        carried=carried,
        turns=max((completion.turns for completion in completions), default=0) if config.environment.name else 0,
        paid_by_turn=sum(len({*rollout.turn_returns}) > 1 for rollout in rollouts),
    )
