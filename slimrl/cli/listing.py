"""The verb that lists runs."""

from __future__ import annotations

import math
from pathlib import Path

import click

from slimrl.cli.arguments import JSON
from slimrl.cli.output import out, print_json
from slimrl.errors import SettingsError


@click.command(name="runs", short_help="List runs with state, accuracy and age.")
@click.argument("folder", default="runs", type=click.Path())
@JSON
def list_runs(folder: str, as_json: bool) -> None:
    """List the runs in FOLDER (runs/ by default) and in the studies there: state, steps, accuracy before and after, age.

    \b
    Examples:
      slimrl runs
      slimrl runs runs/quick --json
    """
    from slimrl.runs.listing import list_runs as listed
    from slimrl.text import duration

    if not Path(folder).is_dir():
        raise SettingsError(f"{folder}: no such folder; give the one that holds runs (the setting output)")
    rows = listed(Path(folder))
    if as_json:
        print_json([row.table() for row in rows])
        return
    if not rows:
        click.echo(f"no run is in {folder}", err=True)
        return
    names = [str(Path(row.run).relative_to(folder)) for row in rows]
    widest = max(len("run"), *map(len, names))
    out(f"{'run':<{widest}}  {'state':<11}  {'steps':>11}  {'before':>6}  {'after':>6}  {'age':>6}")
    for name, row in zip(names, rows, strict=True):
        steps = f"{row.steps}/{row.of}" if row.of else str(row.steps)
        before, after = ("-" if math.isnan(value) else f"{value:.1%}" for value in (row.before, row.after))
        out(f"{name:<{widest}}  {row.state:<11}  {steps:>11}  {before:>6}  {after:>6}  {duration(row.age):>6}")
