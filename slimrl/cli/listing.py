"""The verb that lists runs."""

from __future__ import annotations

import math
from pathlib import Path

import click

from slimrl.cli.arguments import JSON
from slimrl.cli.output import out, print_json, tell
from slimrl.errors import SettingsError


@click.command(name="runs", short_help="List runs with state, accuracy and age.")
@click.argument("folder", default="runs", type=click.Path())
@JSON
def list_runs(folder: str, as_json: bool) -> None:
    """List the runs in FOLDER (runs/ by default) and in the studies there: state, steps, accuracy before and after, age.
    FOLDER may be an address on object storage.

    \b
    Examples:
      slimrl runs
      slimrl runs runs/quick --json
      slimrl runs s3://bucket/runs
    """
    from slimrl.config.places import is_address
    from slimrl.runs.listing import list_runs as listed
    from slimrl.runs.remote import local_runs
    from slimrl.text import duration

    here = local_runs(folder, say=tell)
    if not here.is_dir():
        raise SettingsError(f"{folder}: no such folder; give the one that holds runs (the setting output)")
    rows = listed(here)
    names = [str(Path(row.run).relative_to(here)) for row in rows]
    if as_json:
        place = folder.rstrip("/") if is_address(folder) else ""
        print_json(
            [row.table() | ({"run": f"{place}/{name}"} if place else {}) for name, row in zip(names, rows, strict=True)]
        )
        return
    if not rows:
        click.echo(f"no run is in {folder}", err=True)
        return
    widest = max(len("run"), *map(len, names))
    out(f"{'run':<{widest}}  {'state':<11}  {'steps':>11}  {'before':>6}  {'after':>6}  {'age':>6}")
    for name, row in zip(names, rows, strict=True):
        steps = f"{row.steps}/{row.of}" if row.of else str(row.steps)
        before, after = ("-" if math.isnan(value) else f"{value:.1%}" for value in (row.before, row.after))
        out(f"{name:<{widest}}  {row.state:<11}  {steps:>11}  {before:>6}  {after:>6}  {duration(row.age):>6}")
