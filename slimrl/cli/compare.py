"""The verb `compare`: runs, models and stored outputs on the same problems, paired."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimrl.cli.arguments import JSON, LIMIT, QUIET, TASKS, task_settings
from slimrl.cli.output import open_display, print_json, tell
from slimrl.errors import SettingsError
from slimrl.machine.signals import Stop

if TYPE_CHECKING:
    from slimrl.api.comparing import Outputs, Parts
    from slimrl.config.schema import EvalConfig


@dataclass
class Request:
    """The arguments of the command, told apart."""

    names: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """The path of each name; of a run on object storage that of its local copy."""
    settings: list[str] = field(default_factory=list)
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    quiet: bool = False

    @property
    def like(self) -> str | None:
        """The first run, whose settings hold for models that are no run."""
        return next((path for path in self.places.values() if (Path(path) / "config.yaml").is_file()), None)


@dataclass(frozen=True)
class Measurement:
    """A model that is still to be measured."""

    path: str
    configs: Mapping[str, EvalConfig]
    """By task."""


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
      slimrl compare runs/base s3://bucket/runs/mine
    """
    from rich.console import Console

    from slimrl.api.comparing import matched
    from slimrl.display.measures import say, show_comparison

    request = _request(things, tasks, limit, quiet)
    console = Console(stderr=True, quiet=quiet, highlight=False)
    found = {name: _outputs(name, request) for name in request.names}  # none is measured while another is not there
    known = _measured(found, quiet)
    if known is None:  # the rank that leads has the results
        return
    first, *others = (known[name] for name in request.names)
    compared = []
    for other in others:
        parts, notes = matched(first, other, limit)
        for note in (*dict.fromkeys(one.note for one in (first, other) if one.note), *notes):
            say(console, f"note: {note}")
        for part, modes in parts.items():
            show_comparison(console, (first.name, other.name), part, modes)
        compared.append({"models": [first.name, other.name], **_table(parts), "notes": notes})
    if as_json:
        print_json({**compared[0], "others": compared[1:]})


def _request(things: Sequence[str], tasks: tuple[str, ...], limit: int | None, quiet: bool) -> Request:
    """Raises SettingsError for fewer than two models, and for settings that nothing reads."""
    from slimrl.config.recipes import named
    from slimrl.runs.remote import RECORDS, WHOLE, local_run, silent

    request = Request(tasks=tasks, limit=limit, quiet=quiet)
    for thing in (named(thing, "recipes") for thing in things):
        is_setting = Path(thing).suffix in (".yaml", ".yml") or ("=" in thing and not Path(thing).exists())
        (request.settings if is_setting else request.names).append(thing)
    if len(request.names) < 2:
        raise SettingsError("slimrl compare takes two or more of runs, models and files of stored outputs")
    given = [*request.settings, *(f"--task {task}" for task in tasks)]
    if given and all(Path(name).is_file() for name in request.names):
        raise SettingsError(f"{given[0]} has no effect on stored outputs, which are compared as they are; remove it")
    wanted = WHOLE if given else RECORDS
    say = silent if quiet else tell
    request.places = {name: str(local_run(name, wanted, say)) if "://" in name else name for name in request.names}
    return request


def _outputs(name: str, request: Request) -> Outputs | Measurement:
    """The completions of a file or those that a run has stored, or how to measure a model.

    Raises SettingsError and DataError for what cannot be any of these.
    """
    from slimrl.api.comparing import Outputs, stored_outputs
    from slimrl.api.stored import read_outputs

    path = request.places[name]
    if Path(path).is_file():
        return Outputs(name, read_outputs(path))
    stored = sorted((Path(path) / "evals").glob("step-*.jsonl"))
    if stored and not request.settings and not request.tasks:
        step = int(stored[-1].stem.removeprefix("step-"))
        note = f"{name} goes by its stored evaluation after step {step}"
        return Outputs(name, stored_outputs(path, str(stored[-1])), note)
    from slimrl.preflight.prompting import demand_model

    configs = task_settings(path, request.settings, request.tasks, request.limit, request.like)
    demand_model(path)
    return Measurement(path, configs)


def _measured(found: Mapping[str, Outputs | Measurement], quiet: bool) -> dict[str, Outputs] | None:
    """The completions of all models, by name, measured where there are none yet; None in a process that only helped to.

    Raises Stopped where a signal says so.
    """
    from slimrl.api.comparing import Outputs

    waiting = {name: one for name, one in found.items() if isinstance(one, Measurement)}
    stored = {name: one for name, one in found.items() if isinstance(one, Outputs)}
    if not waiting:
        leads = int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK") == "0"
        return stored if leads else None
    stop = Stop()
    with stop.on_signals():
        configs = [config for one in waiting.values() for config in one.configs.values()]
        display = open_display(configs[0], quiet=quiet)
        from slimrl.api.measuring import evaluations
        from slimrl.parallel.team import measured_together

        def measure() -> dict[str, Outputs]:
            measured = {}
            for name, one in waiting.items():
                tasks = evaluations(one.path, one.configs, display, stop)
                splits = {(task, split): rows for task, whole in tasks for split, rows in whole.splits.items()}
                measured[name] = Outputs(name, splits)
            return stored | measured

        return measured_together(configs, stop, measure)


def _table(parts: Parts) -> dict[str, Any]:
    """The first part's numbers at the top, its greedy ones and the other parts below."""
    tables = []
    for part, modes in parts.items():
        (mode, head), *rest = modes.items()
        tables.append({"part": part, "mode": mode, **head.table()} | {name: one.table() for name, one in rest})
    return {**tables[0], "parts": tables[1:]}
