"""Verbs for beginnings: new, recipes, from-trl, from-verl."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimrl.cli.arguments import JSON
from slimrl.cli.output import out, print_json
from slimrl.errors import SettingsError

if TYPE_CHECKING:
    from slimrl.translate.translation import Translation

NAMES = 24
"""Width of the column of names in a list."""
OUT = click.option(
    "--out", "target", type=click.Path(dir_okay=False), help="Write a settings file; by default to stdout."
)

ROWS = click.option("--rows", default=0, type=click.IntRange(0), help="Training problems, to turn epochs into steps.")


@click.command(short_help="Begin a project: settings, a reward and data.")
@click.argument("name")
def new(name: str) -> None:
    """Make a folder NAME with commented settings, a reward function of your own and five rows of data, which train as they are.

    \b
    Example:
      slimrl new mine
      slimrl train mine/mine.yaml
    """
    from slimrl.cli.project import files_of

    folder = Path(name)
    label = folder.resolve().name
    files = files_of(label)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{name} exists already and is not empty; choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write {folder} ({error.strerror or error}); choose another place") from None
    for file in files:
        out(str(folder / file))
    click.echo(f"train it with: slimrl train {folder / label}.yaml", err=True)


@click.command(short_help="List the recipes and studies that have names, or copy one.")
@click.option(
    "--copy", "copied", metavar="NAME", help="Copy one into this folder instead: a @name, slurm.sh or slurm-nodes.sh."
)
@JSON
def recipes(copied: str | None, as_json: bool) -> None:
    """List the recipes and studies that come with SlimRL; a name with @ stands wherever a file may.

    \b
    Examples:
      slimrl train @gsm8k @qwen2.5-0.5b @dapo
      slimrl study run @quick
      slimrl recipes --copy slurm.sh
    """
    from slimrl.config.recipes import SIGN, Kind, first_line, named, names

    if copied is not None:
        _copy(copied)
        return
    kinds: tuple[Kind, ...] = ("recipes", "studies")
    rows = [
        {"name": SIGN + name, "kind": kind, "file": named(SIGN + name, kind), "about": first_line(name, kind)}
        for kind in kinds
        for name in names(kind)
    ]
    if as_json:
        print_json(rows)
        return
    wrapper = textwrap.TextWrapper(shutil.get_terminal_size().columns, subsequent_indent=" " * NAMES)
    for kind, title in zip(
        kinds, ("recipes, for train, sft, eval and doctor", "studies, for slimrl study"), strict=True
    ):
        out(title)
        for row in rows:
            if row["kind"] == kind:
                out(wrapper.fill(f"  {row['name']}  ".ljust(NAMES) + row["about"]))


def _copy(name: str) -> None:
    """Copy a file into the working folder, in which it must not be yet."""
    from slimrl.config.recipes import copy_of

    file, text = copy_of(name)
    try:
        with Path(file).open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise SettingsError(
            f"{file} exists already and is not overwritten; move it, or copy in another folder"
        ) from None
    except OSError as error:
        raise SettingsError(f"cannot write {file} ({error.strerror or error}); copy in another folder") from None
    out(file)


@click.command(name="from-trl", short_help="Translate settings of TRL's GRPO.")
@click.argument("file")
@OUT
@click.option("--devices", default=1, show_default=True, type=click.IntRange(1), help="Processes that TRL trains with.")
@ROWS
@JSON
def from_trl(file: str, target: str | None, devices: int, rows: int, as_json: bool) -> None:
    """Translate settings of TRL's GRPO: a YAML or JSON file, or a script with GRPOConfig(...), which is read and not executed.

    What has no equivalent is listed on stderr and at the end of the file, with the reason.

    \b
    Example:
      slimrl from-trl train_grpo.py --devices 4 --out mine.yaml
    """
    from slimrl.translate.script import script_source
    from slimrl.translate.source import mapping_source
    from slimrl.translate.trl import from_trl as translate

    if not Path(file).is_file():
        raise SettingsError(f"{file}: no such file; give a script of TRL's GRPOTrainer, or its YAML or JSON settings")
    source = script_source(file) if Path(file).suffix == ".py" else mapping_source(file)
    _write(translate(source, devices=devices, rows=rows), target, as_json)


@click.command(name="from-verl", short_help="Translate settings of verl's trainer.")
@click.argument("file")
@OUT
@ROWS
@JSON
def from_verl(file: str, target: str | None, rows: int, as_json: bool) -> None:
    """Translate settings of verl's trainer: a YAML file, or the section.key=value in a shell script, which is not executed.

    \b
    Example:
      slimrl from-verl run_qwen.sh --rows 7473 --out mine.yaml
    """
    from slimrl.translate.verl import from_verl as translate
    from slimrl.translate.verl import verl_source

    if not Path(file).is_file():
        raise SettingsError(f"{file}: no such file; give verl's YAML, or the script that runs its trainer")
    _write(translate(verl_source(file), rows=rows), target, as_json)


def _write(translation: Translation, target: str | None, as_json: bool) -> None:
    """The settings file where it is wanted, and what is not in it on stderr."""
    from slimrl.text import visible
    from slimrl.translate.translation import sentences

    if target:
        translation = translation.seen_from(Path(target).parent)
    text = translation.text()
    if target:
        if Path(target).exists():
            raise SettingsError(f"{target} exists already; choose another name for --out")
        try:
            Path(target).write_text(text, encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"cannot write {target} ({error.strerror or error}); choose another place") from None
    left = sentences(translation.left)
    if left:
        click.echo(f"of {translation.library}, not translated or only in part ({len(left)}):", err=True)
    for sentence in left:
        click.echo(f"  {visible(sentence)}", err=True)
    if as_json:
        settings = {key: dataclasses.asdict(one) for key, one in translation.settings.items()}
        print_json({"settings": settings, "left": [dataclasses.asdict(one) for one in translation.left]})
    elif target:
        out(target)
    else:
        out(text, newline=False)
