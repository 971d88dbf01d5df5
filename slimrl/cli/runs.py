"""Verbs that make a run, and take its model out of it: train, sft, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from slimrl.cli.arguments import JSON, QUIET, SETTINGS, newest_run, run_settings
from slimrl.cli.completion import run_argument
from slimrl.cli.output import open_display, out, print_json, stopping
from slimrl.errors import DataError, SettingsError
from slimrl.machine.signals import Stop

if TYPE_CHECKING:
    from slimrl.results import SftSummary, TrainSummary

RESUME = click.option(
    "--resume", is_flag=True, help="Go on with a run: its folder, or the settings it was begun with; alone, the newest."
)
FORCE = click.option("--force", is_flag=True, help="With --resume: although SlimRL, torch or your rewards changed.")


@click.command(short_help="Train a model; without arguments the built-in one.")
@SETTINGS
@RESUME
@FORCE
@JSON
@QUIET
def train(settings: Sequence[str], resume: bool, force: bool, as_json: bool, quiet: bool) -> None:
    """Train a model; without arguments the built-in one.

    \b
    Examples:
      slimrl train
      slimrl train @gsm8k @qwen2.5-0.5b @dapo
      slimrl train mine/mine.yaml
      slimrl train task.name=jsonl task.path=mine.jsonl model.path=./my-model
      slimrl train steps=100 algorithm.kl_coef=0 name=mine seed=1
      slimrl train --resume runs/mine
    """
    _run("train", settings, resume=resume, force=force, as_json=as_json, quiet=quiet)


@click.command(short_help="Warm start: imitate a task's worked solutions.")
@SETTINGS
@RESUME
@FORCE
@JSON
@QUIET
def sft(settings: Sequence[str], resume: bool, force: bool, as_json: bool, quiet: bool) -> None:
    """Warm start: imitate a task's worked solutions, loss on the solution only.

    \b
    Example:
      slimrl sft task.name=jsonl task.path=mine.jsonl model.path=./my-model name=warm
    """
    _run("sft", settings, resume=resume, force=force, as_json=as_json, quiet=quiet)


def _run(
    verb: Literal["train", "sft"], settings: Sequence[str], *, resume: bool, force: bool, as_json: bool, quiet: bool
) -> None:
    """Begin a run, or continue one, and print its summary."""
    stop = Stop()
    with stop.on_signals():
        from slimrl.config.schema import SftRunConfig, TrainConfig

        if resume and (newest := newest_run(verb, settings)):
            settings = [newest, *(setting for setting in settings if not setting.startswith("output="))]
        config = run_settings(TrainConfig if verb == "train" else SftRunConfig, settings, resume, force)
        samples = (config.log.samples_every, config.log.samples) if isinstance(config, TrainConfig) else ()
        display = open_display(config, quiet, *samples)
        summary: TrainSummary | SftSummary
        with stopping(display):
            if isinstance(config, TrainConfig):
                from slimrl.train import train as run_training

                summary = run_training(config, display, stop=stop, resume=resume, force=force)
            elif isinstance(config, SftRunConfig):
                from slimrl.sft import sft as run_sft

                summary = run_sft(config, display, stop=stop, resume=resume, force=force)
    if as_json:
        print_json(summary)


@click.command(short_help="Copy a run's trained model to a folder.")
@click.argument("run", type=click.Path(), shell_complete=run_argument)
@click.argument("folder", type=click.Path())
@click.option("--adapter", is_flag=True, help="Copy the adapter that the run trained, for peft, not the merged model.")
def export(run: str, folder: str, adapter: bool) -> None:
    """Copy a run's trained model to FOLDER, as transformers loads it.

    \b
    Example:
      slimrl export runs/mine my-model
    """
    import shutil

    from slimrl.runs.files import files_within

    source, target = Path(run) / ("adapter" if adapter else "final"), Path(folder)
    if adapter and not source.is_dir() and (Path(run) / "final").is_dir():
        raise DataError(f"{run} trained the model's own weights and holds no adapter; remove --adapter")
    if not (source / ("adapter_config.json" if adapter else "config.json")).is_file():
        raise DataError(f"{run} holds no {source.name}/ model; {_why_no_model(Path(run))}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError(f"{folder} exists already and is not empty; choose another folder")
    try:
        for file in files_within(source):  # with the permissions that the umask gives, not those of the run
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    except OSError as error:
        raise SettingsError(f"cannot write {folder} ({error.strerror or error})") from None
    out(str(target))


def _why_no_model(run: Path) -> str:
    """The reason why a folder has no model to export, and the way out."""
    from slimrl.config.files import read_yaml

    if not (run / "run.json").is_file():
        return "give the folder of a finished run"
    stored = read_yaml(str(run / "config.yaml")).get("log", {}).get("model", True)
    if stored is not False:
        return "give the folder of a finished run"
    if any((folder / "declared.json").is_file() for folder in run.resolve().parents[:2]):
        return "the study keeps no models; set keep_models: true in its file, and run it under another --name"
    return "it was trained with log.model=false; train it with log.model=true"
