"""The verb `difficulty`: how often a model solves each problem, in a file that training reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimrl.cli.arguments import JSON, LIMIT, QUIET, SETTINGS, fetched, model_settings
from slimrl.cli.output import open_display, print_json, stopping, writable
from slimrl.errors import DataError, SettingsError
from slimrl.machine.signals import Stop, Stopped
from slimrl.text import counted

if TYPE_CHECKING:
    from slimrl.config.schema import EvalConfig
    from slimrl.display.run import Display
    from slimrl.tasks.rates import Rate


@click.command(short_help="Success rates of the training problems, to choose by.")
@click.argument("model_or_run", callback=fetched)
@SETTINGS
@click.option("--task", "task", help="Task, or a settings file that names one; a run's own by default.")
@click.option("--samples", default=8, show_default=True, type=click.IntRange(1), help="Completions of each problem.")
@click.option(
    "--split", default="train", show_default=True, type=click.Choice(["train", "test"]), help="Problems to measure."
)
@LIMIT
@click.option(
    "--out",
    "file",
    help="File of the rates (JSONL), continued if it exists; rates-TASK.jsonl by default.",
)
@JSON
@QUIET
def difficulty(
    model_or_run: str, settings: Sequence[str], task: str | None, samples: int, split: str, limit: int | None,
    file: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Sample every training problem of a task and write how often the model is right: the problems' difficulty for this model.

    Training reads the file: task.rates=FILE, then task.success_rate=[0.1,0.9] or curriculum.order. A command that was stopped
    goes on where it was when it is given again.

    \b
    Example:
      slimrl difficulty runs/mine --task gsm8k --samples 8 --out rates.jsonl
    """
    from slimrl.config.recipes import named

    stop = Stop()
    with stop.on_signals():
        task = None if task is None else named(task, "recipes")
        config = _settings(model_or_run, settings, task)
        label = Path(task).stem if task and Path(task).suffix in (".yaml", ".yml") else config.task.name
        target = RatesFile(writable(file or f"rates-{label}.jsonl"))
        display = open_display(config, quiet)
        from slimrl.display.measures import show_rates
        from slimrl.parallel.team import measured_together
        from slimrl.tasks.rates import summary

        measure = partial(_measured, target.dated(config), target, display, stop, (split, samples, limit))
        with stopping(display):
            rates = measured_together([config], stop, measure)
        if rates is None:  # the rank that leads has them
            return
        found = summary(rates)
        show_rates(display.console, f"{label}, {split}" if split != "train" else label, found)
        if split == "train":
            display.say(f"train with task.rates={target.path}, and for instance 'task.success_rate=[0.1, 0.9]'")
        if as_json:
            print_json({"model": model_or_run, "task": label, "split": split, "file": str(target.path), **found})


def _settings(model_or_run: str, settings: Sequence[str], task: str | None) -> EvalConfig:
    """The settings to measure with. Raises SettingsError for those of evaluations and rewards, which are not read here."""
    from slimrl.tasks.rates import refuse_immeasurable

    for setting in settings:
        if setting.lstrip().startswith("evaluation."):
            raise SettingsError(
                f"{setting} has no effect in slimrl difficulty, which takes --samples, --limit and --split; remove it"
            )
        if setting.lstrip().startswith("rewards."):
            raise SettingsError(f"{setting} has no effect in slimrl difficulty, which counts right answers; remove it")
    config = model_settings(model_or_run, settings, task)
    refuse_immeasurable(config.task)
    return config


class RatesFile:
    """The file of a measurement: a first line on how it is made, then a row for each problem that is done."""

    def __init__(self, path: Path) -> None:
        """Raises SettingsError for a file that holds anything else."""
        self.path = path
        self.origin: dict[str, Any] = {}
        """The first line; empty where there is no file yet."""
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as opened:
                first = opened.readline()
            try:
                self.origin = dict(json.loads(first))
                self.origin["weights"]
            except (ValueError, TypeError, KeyError):
                raise SettingsError(f"{path} is no file of slimrl difficulty; give --out another name") from None

    def dated(self, config: EvalConfig) -> EvalConfig:
        """The settings with the date that the prompts of an earlier call hold."""
        if config.task.date != "auto" or not self.origin.get("prompt_date"):
            return config
        task = config.task.model_copy(update={"date": self.origin["prompt_date"]})
        return config.model_copy(update={"task": task})

    def begin(self, origin: dict[str, Any]) -> dict[str, Rate]:
        """The rates that are known already, by id; a row that was being written when the process ended is dropped.

        Raises SettingsError where they were measured in another way.
        """
        from slimrl.preflight.difficulty import MAY_DIFFER
        from slimrl.runs.files import write_jsonl
        from slimrl.tasks.rates import read_rates

        if not self.origin:
            self.origin = origin
            write_jsonl(self.path, [origin])
            return {}
        for key in (key for key in {**self.origin, **origin} if key not in MAY_DIFFER):
            before, now = self.origin.get(key), origin.get(key)
            if before != now:
                raise SettingsError(
                    f"{self.path} was begun with {key}={before!r}, not {now!r}; go on as it was begun, or give --out another name"
                )
        data = self.path.read_bytes()
        os.truncate(self.path, data.rfind(b"\n") + 1)
        return dict(read_rates(str(self.path)).by_id)

    def add(self, rate: Rate) -> None:
        """Append a row, which the end of this process does not lose."""
        with self.path.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(rate.row(), ensure_ascii=False) + "\n")

    def finish(self, rates: Sequence[Rate]) -> None:
        """Write all rows again in the order of the problems, in which no two measurements differ."""
        from slimrl.runs.files import write_jsonl

        write_jsonl(self.path, [self.origin, *(rate.row() for rate in rates)])


def _measured(
    config: EvalConfig, target: RatesFile, display: Display, stop: Stop, wanted: tuple[str, int, int | None]
) -> list[Rate]:
    """The rates of the problems of a split, of which those that the file lacks are sampled; `wanted`: split, samples, limit."""
    from slimrl.machine.ranks import ranks_here
    from slimrl.parallel.lead import begin
    from slimrl.preflight.difficulty import CHUNK, measure_rates, measured_problems, origin_of
    from slimrl.preflight.setup import prepare
    from slimrl.runs.durable import digest
    from slimrl.tasks.rates import question_digest

    split, samples, limit = wanted
    # one call of the sampler, by which memory is planned
    call = {"problems": CHUNK, "samples": samples, "greedy": False, "harder_problems": 0}
    evaluation = config.evaluation.model_copy(update=call)
    setup = prepare(config.model_copy(update={"evaluation": evaluation}), stop=stop)
    for note in setup.notes:
        display.note(note)
    problems = measured_problems(setup, split, limit)
    weights = digest(setup.policy.model.named_parameters())
    known = target.begin(origin_of(setup, problems, split=split, samples=samples, weights=weights))
    for problem in problems:
        if problem.id in known and known[problem.id].question != question_digest(problem):
            raise DataError(f"{problem.id} asked something else when {target.path} was begun; give --out another name")
    todo = [problem for problem in problems if problem.id not in known]
    if known:
        display.say(
            f"{target.path} has {len(problems) - len(todo):,} of {len(problems):,} problems, {len(todo):,} are left"
        )
    done = 0

    def keep(rate: Rate) -> None:
        nonlocal done
        target.add(rate)
        known[rate.id] = rate
        done += 1
        display.evaluating(done, len(todo))

    stop.defer()
    display.evaluating(0, len(todo))
    try:
        setup = begin(setup, ranks_here())
        failed = measure_rates(setup, todo, samples, keep)
    except Stopped as reason:
        setup.grading.shutdown(cancel_futures=True)  # the problem that is being graded is kept too
        measured = f" with {len(problems) - len(todo) + done:,} of {len(problems):,} problems measured"
        raise Stopped(reason.cause, reason.exit_code, f"{measured}; give the command again to go on") from None
    finally:
        setup.grading.shutdown()
        setup.task.grader.close()
        setup.close()
    if failed:
        display.note(_on_failures(failed, samples * len(todo), sum(problem.id not in known for problem in problems)))
    asked = [known.pop(problem.id) for problem in problems if problem.id in known]
    target.finish([*asked, *known.values()])
    return asked


def _on_failures(failed: Sequence[tuple[str, str]], episodes: int, unrated: int) -> str:
    """A note on the episodes that broke off, and on the problems that have no rate for that."""
    name, why = failed[0]
    left = f"; {counted(unrated, 'problem')} without a rate, which the same command measures again" if unrated else ""
    return f"{len(failed):,} of {episodes:,} episodes broke off and are in no rate; the first, of {name}: {why}{left}"
