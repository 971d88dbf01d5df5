"""Verbs that make a run: train, sft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import click

from slimrl.cli.arguments import JSON, QUIET, SETTINGS, newest_run, run_settings
from slimrl.cli.output import open_display, print_json, stopping
from slimrl.machine.signals import Stop

if TYPE_CHECKING:
    from slimrl.results import SftSummary, TrainSummary
    from slimrl.session.listeners import Sink

RESUME = click.option(
    "--resume", is_flag=True, help="Go on with a run: its folder, or the settings it was begun with; alone, the newest."
)
FORCE = click.option(
    "--force", is_flag=True, help="With --resume: although SlimRL, torch, your rewards or your environment changed."
)


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
    """Warm start: imitate a task's worked solutions or episodes, with the loss on what the policy is to write.

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
        from slimrl.parallel.follow import follow
        from slimrl.parallel.team import team
        from slimrl.report.run import RunPage
        from slimrl.trackers.remote import open_trackers

        summary: TrainSummary | SftSummary
        with stopping(display), RunPage(stop.since_signal) as page, team(config, stop) as ranks:
            if not ranks.leads:
                display.stop()
                stop.defer()
                follow(ranks, stop)
                return
            sinks: tuple[Sink, ...] = (page, *open_trackers(config.log, display.say, display.note, stop))
            if isinstance(config, TrainConfig):
                from slimrl.train import train as run_training

                summary = run_training(config, display, sinks=sinks, stop=stop, resume=resume, force=force)
            elif isinstance(config, SftRunConfig):
                from slimrl.sft import sft as run_sft

                summary = run_sft(config, display, sinks=sinks, stop=stop, resume=resume, force=force)
    if as_json:
        print_json(summary)
