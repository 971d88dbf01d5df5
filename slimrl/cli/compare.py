"""The verb `compare`: runs, models and stored outputs on the same problems, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimrl.cli.arguments import JSON, LIMIT, QUIET, TASKS, task_settings
from slimrl.cli.output import open_display, print_json
from slimrl.errors import DataError, SettingsError

if TYPE_CHECKING:
    from slimrl.measures import Estimate, Paired, Tally
    from slimrl.results import Mode, SplitEvaluation


@dataclass(frozen=True)
class Outputs:
    """The graded completions of one model."""

    name: str
    splits: dict[tuple[str, str], SplitEvaluation]
    """By task and split; the task is empty where its name is not known."""
    note: str = ""


@dataclass
class Request:
    """The arguments of the command, told apart."""

    names: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    quiet: bool = False

    @property
    def like(self) -> str | None:
        """The first run, whose settings hold for models that are no run."""
        return next((name for name in self.names if (Path(name) / "config.yaml").is_file()), None)


@click.command(short_help="Paired differences of runs, models or stored outputs.")
@click.argument("things", nargs=-1, required=True, metavar="A B [C ...] [FILES...] [section.key=value ...]")
@TASKS
@LIMIT
@JSON
@QUIET
def compare(things: Sequence[str], tasks: tuple[str, ...], limit: int | None, as_json: bool, quiet: bool) -> None:
    """Compare runs, models or stored outputs (JSONL of slimrl eval --out or slimrl grade --out) with the first of them,
    problem by problem: differences with intervals, and what was won and lost.

    A run without settings or --task goes by its last stored evaluation. Everything else is measured, a model that is no run
    under the settings of the first run.

    \b
    Examples:
      slimrl compare runs/base runs/mine
      slimrl compare before.jsonl after.jsonl --json
    """
    from rich.console import Console

    from slimrl.display.measures import say, show_comparison

    request = _request(things, tasks, limit, quiet)
    console = Console(stderr=True, quiet=quiet, highlight=False)
    known: dict[str, Outputs] = {}
    for name in request.names:
        known[name] = known.get(name) or _outputs(name, request)
    first, *others = (known[name] for name in request.names)
    compared = []
    for other in others:
        parts, notes = matched(first, other, limit)
        for note in (*dict.fromkeys(one.note for one in (first, other) if one.note), *notes):
            say(console, f"note: {note}")
        for part, found in parts.items():
            show_comparison(console, (first.name, other.name), part, found)
        compared.append({"models": [first.name, other.name], **_table(parts), "notes": notes})
    if as_json:
        print_json({**compared[0], "others": compared[1:]})


def _request(things: Sequence[str], tasks: tuple[str, ...], limit: int | None, quiet: bool) -> Request:
    """Raises SettingsError for fewer than two models, and for settings that nothing reads."""
    request = Request(tasks=tasks, limit=limit, quiet=quiet)
    for thing in things:
        is_setting = Path(thing).suffix in (".yaml", ".yml") or ("=" in thing and not Path(thing).exists())
        (request.settings if is_setting else request.names).append(thing)
    if len(request.names) < 2:
        raise SettingsError("slimrl compare takes two or more of runs, models and files of stored outputs")
    given = [*request.settings, *(f"--task {task}" for task in tasks)]
    if given and all(Path(name).is_file() for name in request.names):
        raise SettingsError(f"{given[0]} has no effect on stored outputs, which are compared as they are; remove it")
    return request


def _outputs(name: str, request: Request) -> Outputs:
    """The completions of a file, those that a run has stored, or those of a model that is measured now."""
    from slimrl.cli.stored import read_outputs

    if Path(name).is_file():
        return Outputs(name, read_outputs(name))
    stored = sorted((Path(name) / "evals").glob("step-*.jsonl"))
    if stored and not request.settings and not request.tasks:
        step = int(stored[-1].stem.removeprefix("step-"))
        return Outputs(name, _bounded(name, str(stored[-1])), f"{name} goes by its stored evaluation after step {step}")
    from slimrl.cli.evaluation import evaluations

    configs = task_settings(name, request.settings, request.tasks, request.limit, request.like)
    display = open_display(next(iter(configs.values())), quiet=request.quiet)
    measured = evaluations(name, configs, display)
    return Outputs(name, {(task, split): rows for task, found in measured for split, rows in found.splits.items()})


def _bounded(run: str, file: str) -> dict[tuple[str, str], SplitEvaluation]:
    """The stored completions of a run; the bounds of its rewards are in its settings."""
    from slimrl.cli.arguments import model_settings
    from slimrl.cli.stored import read_outputs

    splits = read_outputs(file)
    if not any(rows.rewards for rows in splits.values()):
        return splits
    from slimrl.evaluate import declared_bounds

    bounds = declared_bounds(model_settings(run, [], None).rewards)
    return {key: replace(rows, bounds=bounds) for key, rows in splits.items()}


Parts = dict[str, dict[str, "Paired"]]
"""Comparisons by part (a split, or a task's), then by mode."""


def matched(first: Outputs, second: Outputs, limit: int | None) -> tuple[Parts, list[str]]:
    """Both on the problems that they share, and notes on those that only one of them has.

    Raises DataError where they share none, and where a problem asks something else in the second.
    """
    from slimrl.measures import paired
    from slimrl.results import MODES

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
    if not parts:
        raise DataError(
            f"{first.name} and {second.name} have no problem in common; compare outputs of the same problems"
        )
    return dict(sorted(parts.items(), key=lambda item: item[0] != "test")), [*dict.fromkeys(notes)]


def _rewards(ours: SplitEvaluation, theirs: SplitEvaluation, mode: Mode, kept: set[str]) -> dict[str, Estimate]:
    """The rewards that both have scores of, on the problems that are kept."""
    from slimrl.measures import UNBOUNDED, paired_scores

    found = {}
    for name in ours.rewards:
        sides = (side.scores(mode, name) for side in (ours, theirs))
        before, after = ({problem: side[problem] for problem in side if problem in kept} for side in sides)
        bounds = ours.bounds.get(name, theirs.bounds.get(name, UNBOUNDED))
        if (estimate := paired_scores(before, after, bounds)) is not None:
            found[name] = estimate
    return found


def _parts(one: Outputs, other: Outputs) -> dict[str, SplitEvaluation]:
    """The splits of a model by name; of several tasks with the task's, which goes with its test split alone."""
    from slimrl.display.measures import split_name

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


def _table(parts: Parts) -> dict[str, Any]:
    """The first part's numbers at the top, its greedy ones and the other parts below."""
    tables = []
    for part, modes in parts.items():
        (mode, head), *rest = modes.items()
        tables.append({"part": part, "mode": mode, **head.table()} | {name: one.table() for name, one in rest})
    return {**tables[0], "parts": tables[1:]}
