"""Two models on the same problems: their stored or measured completions, matched and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from slimrl.api.measuring import bounds_of_run
from slimrl.api.stored import read_outputs
from slimrl.display.measures import split_name, uncompared_note
from slimrl.errors import DataError
from slimrl.measures import UNBOUNDED, Estimate, Paired, Tally, both_bounds, paired, paired_scores
from slimrl.results import MODES, Mode, SplitEvaluation

Parts = dict[str, dict[str, Paired]]
"""Comparisons by part (a split, or a task's), then by mode."""


@dataclass(frozen=True)
class Outputs:
    """The graded completions of one model."""

    name: str
    splits: dict[tuple[str, str], SplitEvaluation]
    """By task and split; the task is empty where its name is not known."""
    note: str = ""


def stored_outputs(run: str, file: str) -> dict[tuple[str, str], SplitEvaluation]:
    """The stored completions of a run; where its rows do not have the bounds of its rewards, its settings do."""
    splits = read_outputs(file)
    if all({*rows.bounds} >= {*rows.rewards} for rows in splits.values()):
        return splits
    bounds = bounds_of_run(run)
    return {key: replace(rows, bounds={**bounds, **rows.bounds}) for key, rows in splits.items()}


def matched(first: Outputs, second: Outputs, limit: int | None) -> tuple[Parts, list[str]]:
    """Both on the problems that they share, and notes on those that only one of them has.

    Raises DataError where they share none, and where a problem asks something else in the second.
    """
    ours, theirs = _parts(first, second), _parts(second, first)
    parts: Parts = {}
    notes: list[str] = []
    for part in [part for part in ours if part in theirs]:
        _demand_same(first, second, ours[part], theirs[part])
        for mode in MODES:
            before, after = ours[part].tallies(mode), theirs[part].tallies(mode)
            shared = [name for name in before if name in after]
            if not shared:
                continue
            most = max(len(before), len(after))
            if len(shared) < min(limit or most, most) and part not in parts:
                notes.append(
                    f"{part}: {len(shared)} problems are in both and compared; {first.name} has {len(before)}, "
                    f"{second.name} {len(after)}"
                )
            kept = shared[:limit]
            found = paired(*({name: side[name] for name in kept} for side in (before, after)))
            parts.setdefault(part, {})[mode] = replace(found, rewards=_rewards(ours[part], theirs[part], mode, {*kept}))
            if mode == "sampled":
                notes += _sample_notes((first.name, second.name), before, after)
                notes += [
                    uncompared_note(f"{one.name}, {part}", rows.uncompared)
                    for one, rows in ((first, ours[part]), (second, theirs[part]))
                    if rows.uncompared
                ]
    if not parts:
        raise DataError(
            f"{first.name} and {second.name} have no problem in common; compare outputs of the same problems"
        )
    return dict(sorted(parts.items(), key=lambda item: item[0] != "test")), [*dict.fromkeys(notes)]


def _rewards(ours: SplitEvaluation, theirs: SplitEvaluation, mode: Mode, kept: set[str]) -> dict[str, Estimate]:
    """The rewards that both have scores of, on the problems that are kept."""
    found = {}
    for name in ours.rewards:
        sides = (side.scores(mode, name) for side in (ours, theirs))
        before, after = ({problem: side[problem] for problem in side if problem in kept} for side in sides)
        bounds = both_bounds(*(side.bounds.get(name, UNBOUNDED) for side in (ours, theirs)))
        if (estimate := paired_scores(before, after, bounds)) is not None:
            found[name] = estimate
    return found


def _parts(one: Outputs, other: Outputs) -> dict[str, SplitEvaluation]:
    """The splits of a model by name; of several tasks with the task's, which goes with its test split alone."""
    tasks = {task for task, _ in one.splits}
    several = len(tasks) > 1 or len({task for task, _ in other.splits}) > 1
    if several and "" in tasks:
        raise DataError(f"{one.name} does not say which task its problems are of; compare it with outputs of one task")
    return {split_name(task, split) if several else split: rows for (task, split), rows in one.splits.items()}


def _demand_same(first: Outputs, second: Outputs, ours: SplitEvaluation, theirs: SplitEvaluation) -> None:
    """Raises DataError for a problem whose question or gold answer is another in the second."""
    asked = {row.id: row for row in ours.rows}
    for row in theirs.rows:
        known = asked.get(row.id)
        for what in ("question", "answer") if known else ():
            mine, yours = getattr(known, what), getattr(row, what)
            if mine and yours and mine != yours:
                raise DataError(
                    f"{row.id} has another {what} in {second.name} ({yours[:40]!r}) than in {first.name} ({mine[:40]!r}); "
                    "compare outputs of the same problems"
                )


def _sample_notes(names: tuple[str, str], before: Mapping[str, Tally], after: Mapping[str, Tally]) -> list[str]:
    fewest = [min(votes.samples for votes in side.values()) for side in (before, after)]
    if fewest[0] == fewest[1]:
        return []
    both = f"{names[0]} has {fewest[0]} samples a problem, {names[1]} {fewest[1]}"
    return [f"{both}: pass@k and maj@k are compared up to k = {min(fewest)}"]
