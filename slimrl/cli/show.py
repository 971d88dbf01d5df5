"""The verb that shows a run: its page in a browser, or its text in the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from slimrl.cli.output import out, tell
from slimrl.errors import DataError, SettingsError


@click.command(short_help="Show a run as a page, or as text.")
@click.argument("run", default="", type=click.Path())
@click.option("--text", is_flag=True, help="Print it in the terminal instead.")
@click.option("--no-open", is_flag=True, help="Only make the page, and print its path.")
def show(run: str, text: bool, no_open: bool) -> None:
    """Make the page of RUN (the newest in runs/ by default), print its path, and open it in a browser where there is one.

    \b
    Examples:
      slimrl show
      slimrl show runs/mine --text
      slimrl show s3://bucket/runs/mine
    """
    from slimrl.runs.remote import PAGE, local_run

    path = local_run(run, PAGE, tell) if run else _newest()
    if not (path / "run.json").is_file():
        study = path / "report.html"
        if text or not study.is_file():
            raise SettingsError(
                f"{path} is no run, it has no run.json; give the folder of a run, as runs/NAME (slimrl runs lists them)"
            )
        _open(study, no_open)
        return
    from slimrl.report.record import read_run
    from slimrl.report.run import write_run_page
    from slimrl.report.run_text import run_text

    try:
        made = run_text(read_run(path)) if text else write_run_page(path)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: a file in it holds what no run writes ({type(error).__name__}: {error}); restore it, or remove it"
        ) from error
    if isinstance(made, str):
        out(made)
    else:
        _open(made, no_open)


def _newest() -> Path:
    from slimrl.runs.listing import list_runs

    found = list_runs(Path("runs"))
    if not found:
        raise SettingsError("runs/ holds no run; give the folder of one: slimrl show RUN")
    return Path(found[0].run)


def _open(page: Path, no_open: bool) -> None:
    """Print the path of a page, and open it; without a screen a browser would take over the terminal."""
    out(str(page))
    screen = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screen and not no_open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
