"""Verbs of studies: plan, run, report."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slimrl.cli.arguments import JSON, QUIET, by_name
from slimrl.cli.completion import arguments_of
from slimrl.cli.output import out, print_json, stopping, tell
from slimrl.errors import UNWRITABLE, DataError, DiskError, SettingsError
from slimrl.machine.signals import INTERRUPTED, Stop, Stopped
from slimrl.text import counted

if TYPE_CHECKING:
    from slimrl.study.place import Place
    from slimrl.study.spec import Expanded

Command = TypeVar("Command", bound=Callable[..., Any])
ARGUMENTS = (
    click.argument(
        "files",
        nargs=-1,
        required=True,
        metavar="STUDY [FILES...] [section.key=value ...]",
        callback=by_name("studies"),
        shell_complete=arguments_of("studies"),
    ),
    click.option("--name", default="", help="Name of the study's folder; by default its files' names."),
    click.option("--seeds", type=click.IntRange(1), help="Runs of every arm, instead of the file's."),
    click.option(
        "--output",
        default="runs",
        show_default=True,
        help="Folder that holds the study's folder; study report takes an address, as s3://bucket/runs.",
    ),
)
SLOTS = click.option(
    "--slots", type=click.IntRange(1), help="Runs at once; by default what the machine or the cluster bears."
)
ON = click.option(
    "--on",
    default="local",
    show_default=True,
    help="Where the runs are computed: local, ray, ray://HOST:PORT, slurm or slurm:PARTITION; then ,cpus=N,gpus=N for each run.",
)
POINTS = click.FloatRange(0, min_open=True)
EFFECT = click.option(
    "--effect", type=POINTS, multiple=True, help="A difference in points: how many seeds find it? Repeatable."
)


def of_a_study(command: Command) -> Command:
    """Add the arguments that every verb of a study has."""
    for argument in reversed(ARGUMENTS):
        command = argument(command)
    return command


@click.group(no_args_is_help=True, short_help="Compare settings over training seeds.")
def study() -> None:
    """Arms times training seeds: from a question about switches to an answer with an interval.

    STUDY is a YAML file, or a @name that `slimrl recipes` lists; further files are merged over it, section.key=value changes
    settings of all arms.

    \b
    Example:
      slimrl study run @quick
    """


@study.command(name="plan", short_help="What a study takes here, and what it can see.")
@of_a_study
@SLOTS
@ON
@EFFECT
@JSON
def study_plan(
    files: Sequence[str],
    name: str,
    seeds: int | None,
    output: str,
    slots: int | None,
    on: str,
    effect: Sequence[float],
    as_json: bool,
) -> None:
    """Show the cost of a study and the smallest effect that it can see; names arms that cannot act."""
    expanded, folder = _study(files, name, seeds, output)
    place = _place(on)
    from slimrl.display.run import Display
    from slimrl.study.plan import plan_study, sentences

    display = Display()
    shares = tuple(points / 100 for points in effect)
    plan = plan_study(expanded, folder, slots=slots or 0, effects=shares, place=place, say=display.say)
    for sentence in sentences(plan):
        display.say(sentence)
    if as_json:
        print_json(plan)


@study.command(name="run", short_help="Do what is left of a study, then report.")
@of_a_study
@SLOTS
@ON
@JSON
@QUIET
def study_run(
    files: Sequence[str],
    name: str,
    seeds: int | None,
    output: str,
    slots: int | None,
    on: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Do what is left of a study, then report; the same command continues after any interruption.

    \b
    Example:
      slimrl study run @quick --seeds 3 --name first-look
      slimrl study run @quick --on slurm:gpu,gpus=1,time=04:00:00
    """
    expanded, folder = _study(files, name, seeds, output)
    place = _place(on)
    from slimrl.display.study import ProgressDisplay
    from slimrl.study.runner import run_study
    from slimrl.study.upload import upload_study

    display = ProgressDisplay(expanded, folder, quiet=quiet)
    try:
        with _saying_how_to_go_on(), stopping(display):
            failed = run_study(expanded, folder, slots=slots or 0, display=display, place=place)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise _no_room(error, folder, "the same command continues") from error
    _report(expanded, folder, as_json, quiet)
    upload_study(expanded, folder, display.say)
    if failed:
        names = ", ".join(run.name for run in failed)
        raise DataError(
            f"{counted(len(failed), 'run')} failed ({names}); correct the cause and run the same command again"
        )


@study.command(name="report", short_help="Write the report from the runs that are there.")
@of_a_study
@JSON
@QUIET
def study_report(files: Sequence[str], name: str, seeds: int | None, output: str, as_json: bool, quiet: bool) -> None:
    """Write report.html, report.md, results.csv and results.json from the runs that are there."""
    from slimrl.runs.remote import silent

    expanded, folder = _stored_study(files, name, seeds, output, silent if quiet else tell)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such study; slimrl study run begins it, --name or --output find another")
    _report(expanded, folder, as_json, quiet)


@contextlib.contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """After Ctrl-C or SIGTERM, name the command that continues the study."""
    again = f"; the same command continues: slimrl {shlex.join(sys.argv[1:])}"
    try:
        with Stop().on_signals():
            yield
    except Stopped as reason:
        raise Stopped(reason.cause, reason.exit_code, again) from None
    except KeyboardInterrupt:
        raise Stopped("Ctrl-C", INTERRUPTED, again) from None


def _place(on: str) -> Place:
    from slimrl.study.place import Place

    return Place.read(on)


def _study(files: Sequence[str], name: str, seeds: int | None, output: str) -> tuple[Expanded, Path]:
    """The study and its folder on this machine; every arm is checked."""
    from slimrl.study.declaration import check_study
    from slimrl.study.upload import demand_folder

    expanded = _expanded(files, name, seeds)
    demand_folder(output)
    folder = Path(output) / expanded.name
    check_study(expanded, folder)
    return expanded, folder


def _stored_study(
    files: Sequence[str], name: str, seeds: int | None, output: str, say: Callable[[str], object]
) -> tuple[Expanded, Path]:
    """As `_study`, of a study that is only read and may be on object storage; `say` is told of what is fetched."""
    from slimrl.config.places import address_below, is_address
    from slimrl.runs.remote import RECORDS, local_runs
    from slimrl.study.declaration import check_study

    expanded = _expanded(files, name, seeds)
    place = address_below(output, expanded.name) if is_address(output) else str(Path(output) / expanded.name)
    folder = local_runs(place, RECORDS, say)
    check_study(expanded, folder)
    return expanded, folder


def _expanded(files: Sequence[str], name: str, seeds: int | None) -> Expanded:
    from slimrl.study.spec import load_study

    names = [f for f in files if "=" not in f or Path(f).is_file()]
    if not names:
        raise SettingsError("name a study first; slimrl recipes lists some")
    return load_study(names, [f for f in files if f not in names], name=name, seeds=seeds or 0)


def _report(expanded: Expanded, folder: Path, as_json: bool, quiet: bool) -> None:
    """Write the reports, and print the verdict on each effect."""
    from slimrl.display.run import Display
    from slimrl.report.report import write_reports
    from slimrl.report.tables import verdict_words
    from slimrl.study.results import collect
    from slimrl.text import signed_points

    results = collect(expanded, folder)
    try:
        path = write_reports(results, folder)
    except OSError as error:
        then = "slimrl study report with the same arguments writes it; no run is lost"
        raise _no_room(error, folder, then) from error
    display = Display(quiet=quiet)
    for effect in results.effects:
        low, high = signed_points(effect.difference.low), signed_points(effect.difference.high)
        display.say(f"{effect.name}: {signed_points(effect.difference.mean)} [{low}, {high}], {verdict_words(effect)}")
    display.say(f"report: {path}, report.md, results.csv, results.json")
    if as_json:
        out((folder / "results.json").read_text(encoding="utf-8"), newline=False)


def _no_room(error: OSError, folder: Path, then: str) -> DiskError:
    """The error for a file of a study that cannot be written."""
    return DiskError(
        f"{error.filename or folder} cannot be written ({error.strerror or error}); free space or make it writable, then {then}"
    )
