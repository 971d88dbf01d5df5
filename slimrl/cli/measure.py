"""Verbs that measure or show something and leave no run: eval, sample, grade, doctor, settings."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimrl.cli.arguments import (
    JSON,
    LIMIT,
    MODEL_OR_RUN,
    QUIET,
    SETTINGS,
    TASKS,
    asking_settings,
    is_setting,
    is_settings_file,
    load_settings,
    own_settings,
    stray,
    task_named,
    task_settings,
)
from slimrl.cli.output import open_display, out, out_is_terminal, print_json, writable
from slimrl.errors import SettingsError
from slimrl.machine.signals import Stop
from slimrl.text import counted

if TYPE_CHECKING:
    from slimrl.config.schema import EvalConfig
    from slimrl.display.run import Display
    from slimrl.results import Evaluation

INDENT = "    "


@click.command(name="eval", short_help="Held-out accuracy of a model or a run.")
@MODEL_OR_RUN
@SETTINGS
@TASKS
@LIMIT
@click.option(
    "--out", "file", type=click.Path(dir_okay=False), help="Write every completion with its verdicts (JSONL)."
)
@JSON
@QUIET
def evaluate(
    model_or_run: str, settings: Sequence[str], tasks: Sequence[str], limit: int | None, file: str | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Held-out accuracy of a model or a run: strict and lenient, sampled and greedy, pass@k and maj@k, with intervals.

    \b
    Examples:
      slimrl eval runs/mine
      slimrl eval runs/mine --task gsm8k --task svamp --task math
      slimrl eval ./my-model --task gsm8k --limit 200 evaluation.samples=8 --out answers.jsonl
    """
    configs = task_settings(model_or_run, settings, tasks, limit)
    target = writable(file) if file else None
    stop = Stop()
    with stop.on_signals():
        display = open_display(next(iter(configs.values())), quiet=quiet)
        from slimrl.display.measures import show_tasks
        from slimrl.parallel.team import measured_together
        from slimrl.runs.directory import steps_taken

        measure = partial(_measured, model_or_run, configs, display, stop, target)
        found = measured_together([*configs.values()], stop, measure)
    if found is None:  # the rank that leads has the results
        return
    measured = {task: one.measures() for task, one in found.items()}
    if len(measured) > 1:
        show_tasks(display.console, model_or_run, measured)
    if as_json:
        by_task = {"tasks": measured} if len(measured) > 1 else next(iter(measured.values()))
        print_json({"model": model_or_run, "step": steps_taken(Path(model_or_run)), **by_task})


def _measured(
    model_or_run: str, configs: Mapping[str, EvalConfig], display: Display, stop: Stop, target: Path | None
) -> dict[str, Evaluation]:
    """The evaluation of each task, shown and written to the `target` as soon as it is there."""
    from slimrl.api.measuring import evaluations
    from slimrl.display.measures import show_at_k, split_name
    from slimrl.runs.directory import steps_taken
    from slimrl.runs.files import write_jsonl

    steps = steps_taken(Path(model_or_run))
    measured = {}
    for task, found in evaluations(model_or_run, configs, display, stop):
        display.evaluation(found, "" if steps is None else f" after step {steps}", task if len(configs) > 1 else "")
        for split, measures in found.measures().items():
            show_at_k(display.console, split_name(task, split) if len(configs) > 1 else split, measures)
        measured[task] = found
        if target:
            write_jsonl(target, [{"task": name, **row} for name, one in measured.items() for row in one.table()])
    return measured


@click.command(short_help="Ask one question; completions go to stdout.")
@MODEL_OR_RUN
@click.argument("question")
@SETTINGS
@click.option("-n", "count", default=1, show_default=True, type=click.IntRange(1), help="Completions to sample.")
@click.option("--greedy", is_flag=True, help="Decode greedily, once.")
@JSON
def sample(model_or_run: str, question: str, settings: Sequence[str], count: int, greedy: bool, as_json: bool) -> None:
    """Ask one question (`-`: from stdin); completions go to stdout, what separates several of them to stderr.

    \b
    Examples:
      slimrl sample runs/mine "Tom has 3 apples. Then Tom buys 4 more. How many apples does Tom have now?" -n 4
      slimrl sample builtin "How many is 3 + 4?" rollout.temperature=0.5 rollout.max_new_tokens=32
    """
    if not is_setting(question) and (text := stray(settings)):
        raise SettingsError(
            f"{text!r} is no settings file; the question comes second: slimrl sample MODEL_OR_RUN QUESTION"
        )
    if is_setting(question):
        asked = shlex.quote(next(iter(settings), "QUESTION"))
        raise SettingsError(f"the question comes before settings: slimrl sample {model_or_run} {asked} {question}")
    config = asking_settings(model_or_run, settings)
    question = _checked(question)
    if greedy and count > 1:
        raise SettingsError("-n has no effect with --greedy, which gives one completion; remove one of them")
    open_display(config)
    from slimrl.api.asking import ask
    from slimrl.machine.threads import settle_threads
    from slimrl.text import turn_titles, visible

    settle_threads()
    answers = ask(config, question, count, greedy=greedy)
    if as_json:
        print_json({"model": model_or_run, "question": question, "completions": [vars(answer) for answer in answers]})
        return
    for number, answer in enumerate(answers, 1):
        drawn = f"{answer.tokens} drawn tokens" if len(answer.turns) > 1 else f"{answer.tokens} tokens"
        cut = f"(cut off after {drawn})" if answer.finish == "length" else ""
        if len(answers) > 1:
            click.echo(f"--- {number} of {len(answers)} {cut}".rstrip(), err=True)
        titles = turn_titles([role for role, _ in answer.turns])
        for title, (_, text) in zip(titles or [""], answer.turns or [("assistant", answer.text)], strict=True):
            if title:
                click.echo(f"{title}:", err=True)
            out(visible(text) if out_is_terminal() else text)
        if answer.failed:
            click.echo(f"({visible(answer.failed)})", err=True)
        if cut and len(answers) == 1:
            click.echo(cut, err=True)


def _checked(question: str) -> str:
    """The question, read from stdin for `-`. Raises SettingsError if it is empty or not UTF-8."""
    if question == "-":
        question = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")
    if any("\ud800" <= c <= "\udfff" for c in question):
        raise SettingsError("the question is not UTF-8 text")
    if not question.strip():
        raise SettingsError("the question is empty; write it in quotes, or give - to read it from stdin")
    return question


@click.command(short_help="Score stored outputs with the checker of training.")
@click.argument("file")
@SETTINGS
@click.option(
    "--task",
    "task",
    required=True,
    help="Task, or a settings file that names one, whose answer form and checker apply.",
)
@click.option("--out", "target", type=click.Path(dir_okay=False), help="Write a verdict per row (JSONL).")
@JSON
def grade(file: str, settings: Sequence[str], task: str, target: str | None, as_json: bool) -> None:
    """Score stored outputs, rows of {"id", "answer", "completion"} or of slimrl eval --out, with the checker that training uses.

    \b
    Examples:
      slimrl grade outputs.jsonl --task gsm8k task.style=boxed --out verdicts.jsonl
      slimrl grade programs.jsonl --task code task.path=mbpp.jsonl
    """
    from slimrl.config.recipes import named
    from slimrl.config.schema import EvalConfig
    from slimrl.tasks.grade import UNREAD, grade_file

    if "=" in file and not Path(file).exists():
        raise SettingsError(f"FILE comes first: slimrl grade FILE --task {task} {file}; settings stand behind it")
    task = named(task, "recipes")
    files = [task] if is_settings_file(task) else []
    name, _ = task_named(task)
    _refuse_idle(settings, name)
    data = [f"task.path={UNREAD}"] if name == "jsonl" else ["environment.name=guess"] if name == "guess" else []
    if name == "code" and not own_settings(EvalConfig, [*files, *settings]).get("task", {}).get("path"):
        data = [f"task.path={UNREAD}"]
    if extra := stray(settings):
        raise SettingsError(f"{extra} stands where a settings file may; slimrl grade takes one FILE, which comes first")
    config = load_settings(EvalConfig, [*files, *settings, f"task.name={name}", *data])
    if target and Path(target).exists() and Path(file).exists() and Path(target).samefile(file):
        raise SettingsError(f"--out {target} is the file to grade; name another")
    out_file = str(writable(target)) if target else None
    summary = grade_file(config.task, file, out_file, config.sandbox)
    greedy = "" if summary.greedy is None else f"; greedy {summary.greedy:.1%}"
    shares = f"strict {summary.strict:.1%}, lenient {summary.lenient:.1%}{greedy}"
    click.echo(f"{counted(summary.n, 'row')}: {shares}", err=True)
    if summary.samples > 1:
        from rich.console import Console

        from slimrl.display.measures import show_at_k

        show_at_k(Console(stderr=True, highlight=False), counted(summary.problems, "problem"), summary.table())
    if as_json:
        print_json(summary.table())


def _refuse_idle(settings: Sequence[str], task: str) -> None:
    """Raises SettingsError for settings that do not act on grading, and for a task that stored outputs do not decide."""
    from slimrl.config.environment import package_of

    if package_of(task):
        raise SettingsError(
            f"--task {task}: its rubric tells what is right, and it reads episodes; slimrl eval plays them"
        )
    # every row counts; programs run in the sandbox, against tests that may be the task's
    acting = ("task.", "sandbox.") if task == "code" else ("task.",)
    others = "task.path and the section sandbox have" if task == "code" else "task.style and task.checker have"
    for setting in settings:
        acts = setting.startswith(acting) and not setting.startswith("task.on_bad_row")
        if "=" in setting and not acts and not Path(setting).is_file():
            raise SettingsError(f"{setting} has no effect on grading; only {others}")


@click.command(short_help="Check settings, model, data and rewards first.")
@SETTINGS
@click.option(
    "--devices",
    "fleet",
    metavar="COUNTxGIB",
    help="Only plan the memory of a run on so many GPUs, such as 8x80; none is needed.",
)
@JSON
def doctor(settings: Sequence[str], fleet: str | None, as_json: bool) -> None:
    """Check settings, model, data and rewards before training: prompt, stop ids, a probe of completions, and the form of an
    answer that the model follows.

    \b
    Examples:
      slimrl doctor @gsm8k @qwen2.5-0.5b
      slimrl doctor @gsm8k @qwen2.5-0.5b --devices 8x80
    """
    from slimrl.config.schema import TrainConfig

    config = load_settings(TrainConfig, settings)
    display = open_display(config)
    if fleet is not None:
        from slimrl.display.fleet import show_fleet
        from slimrl.preflight.elsewhere import plan_elsewhere, read_devices

        count, gib = read_devices(fleet)
        display.say("counting weights and activations, from config.json alone", "dim")
        plan = plan_elsewhere(config, count, gib)
        show_fleet(display.console, plan)
        if as_json:
            print_json(plan.table())
        return
    from slimrl.preflight.doctor import examine
    from slimrl.preflight.forms import compare_forms, form_advice
    from slimrl.preflight.setup import prepare_training
    from slimrl.runs.remote import demand_place

    if config.upload:
        demand_place(config.upload)

    training = prepare_training(config, say=display.note)
    with closing(training):
        examination = examine(training)
        display.opening(examination, config)
        display.probes(examination)
        forms = compare_forms(training.setup)
    advice = form_advice(forms, config.task.instruction)
    display.forms(forms, advice)
    if as_json:
        found = {"forms": [dataclasses.asdict(form) for form in forms], "form_advice": advice}
        print_json(dataclasses.asdict(examination) | found | {"memory": training.setup.memory.table()})


@click.command(name="settings", short_help="List settings with their defaults and meanings.")
@click.argument("wanted", metavar="[SECTION | WORD]", required=False)
@JSON
def list_settings(wanted: str | None, as_json: bool) -> None:
    """List every setting with its default and meaning, those of a section, or those that a word is found in.

    \b
    Examples:
      slimrl settings algorithm
      slimrl settings kl
    """
    from slimrl.config.files import describe_settings

    rows = describe_settings(wanted)
    if as_json:
        print_json(rows)
        return
    width = shutil.get_terminal_size().columns
    wrapper = textwrap.TextWrapper(width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
    for row in rows:
        out(wrapper.fill(f"{row['key']} = {json.dumps(row['default'])}  ({row['type']})"))
        out(wrapper.fill(INDENT + row["meaning"]))
