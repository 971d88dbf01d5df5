"""The command line. Human text goes to stderr, data to stdout; torch is imported only inside a verb.

Exit codes: 0 fine, 2 usage or settings, 3 data or checkpoint invalid, 4 diverged, 74 the disk is full or cannot be written,
75 told to stop (run again with --resume), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimrl.errors import UNWRITABLE, DataError, DiskError, SettingsError, SlimError
from slimrl.machine.signals import INTERRUPTED, Stop, Stopped

if TYPE_CHECKING:
    from slimrl.config.files import Root
    from slimrl.config.schema import RootConfig
    from slimrl.display.run import Display
    from slimrl.display.study import ProgressDisplay
    from slimrl.study.spec import Expanded

SETTINGS = click.argument("settings", nargs=-1, metavar="[FILES...] [section.key=value ...]")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
RESUME = click.option("--resume", is_flag=True, help="Go on with a run: its folder, or the settings it was begun with.")
FORCE = click.option("--force", is_flag=True, help="With --resume: although SlimRL, torch or your rewards changed.")
QUIET = click.option("--quiet", is_flag=True, help="No human text.")


def main() -> None:
    """Run a verb; a user's mistake is one sentence on stderr and an exit code, never a traceback."""
    try:
        cli.main(prog_name="slimrl", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        with contextlib.suppress(click.exceptions.Exit):
            _out(error.ctx.get_help() if error.ctx else str(error))
    except click.NoSuchOption as error:
        _end(_no_such_option(error), SettingsError.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "slimrl"
        _end(f"{error.format_message().rstrip('.')} ({command} --help shows how)", SettingsError.exit_code)
    except SlimError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        code = DiskError.exit_code if error.errno in UNWRITABLE else DataError.exit_code
        _end(f"{error.filename or 'the system'}: {error.strerror or error}", code)
    except Stopped as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(stopped.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _end("interrupted", 130)


def _no_such_option(error: click.NoSuchOption) -> str:
    """An unknown option is often a setting that is spelled as other tools spell theirs."""
    from slimrl.config.mistakes import close_names, known_keys, nearest

    command = error.ctx.command_path if error.ctx else "slimrl"
    name = error.option_name.lstrip("-").replace("-", "_")
    options = [o for param in error.ctx.command.params for o in param.opts] if error.ctx else []
    hint = nearest(error.option_name, [option for option in options if option.startswith("--")])
    if not hint:
        from slimrl.config.schema import SftRunConfig, TrainConfig

        settings = {*known_keys(TrainConfig), *known_keys(SftRunConfig)}
        hint = f"; did you mean {name}?" if name in settings else close_names(name)
        hint = f"{hint.removesuffix('?')}? Settings are written KEY=value" if hint.endswith("?") else hint
    return f"No such option: {error.option_name} ({command} --help shows how){hint}"


def _out(text: str, *, newline: bool = True) -> None:
    """Data for stdout; a reader that goes away, as `head` does, has all that it wants, and the command ends well."""
    try:
        click.echo(text, nl=newline)
    except BrokenPipeError:
        # the interpreter flushes stdout once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None


def _end(sentence: str, code: int) -> None:
    from slimrl.text import visible

    click.echo(f"error: {visible(' '.join(sentence.split()))}", err=True)
    sys.exit(code)


@click.group(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="slimrl")
def cli() -> None:
    """Reinforcement learning with verifiable rewards for small language models.

    Settings are YAML files merged left to right, then section.key=value; `slimrl settings` lists them. Paths in a file are
    relative to that file, those of section.key=value to the working directory.
    `slimrl train` without arguments trains the built-in model on the built-in task, on this CPU.
    """


@cli.command(short_help="Train a model; without arguments the built-in one.")
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
      slimrl train recipes/gsm8k.yaml recipes/qwen2.5-0.5b.yaml recipes/dapo.yaml
      slimrl train task.name=jsonl task.path=mine.jsonl model.path=./my-model
      slimrl train steps=100 algorithm.kl_coef=0 name=mine seed=1
      slimrl train --resume runs/mine
    """
    stop = Stop()
    with stop.on_signals():
        from slimrl.config.schema import TrainConfig

        config = _begun(TrainConfig, settings, resume, force)
        _quieten_libraries()
        from slimrl.train import train as run

        display = _display(quiet, config.log.samples_every, config.log.samples)
        _say_hub(display, config)
        summary = _closing_display(display, lambda: run(config, display, stop=stop, resume=resume, force=force))
    if as_json:
        _print_json(summary)


@cli.command(short_help="Warm start: imitate a task's worked solutions.")
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
    stop = Stop()
    with stop.on_signals():
        from slimrl.config.schema import SftRunConfig

        config = _begun(SftRunConfig, settings, resume, force)
        _quieten_libraries()
        from slimrl.sft import sft as run

        display = _display(quiet)
        _say_hub(display, config)
        summary = _closing_display(display, lambda: run(config, display, stop=stop, resume=resume, force=force))
    if as_json:
        _print_json(summary)


@cli.command(name="eval", short_help="Held-out accuracy of a model or a run.")
@click.argument("model_or_run")
@SETTINGS
@click.option("--task", "task", help="Task to evaluate on; a run's own by default.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write every completion with its verdicts (JSONL).")
@JSON
@QUIET
def evaluate(
    model_or_run: str, settings: Sequence[str], task: str | None, out: str | None, as_json: bool, quiet: bool
) -> None:
    """Held-out accuracy of a model or a run: strict and lenient, sampled and greedy, with intervals.

    \b
    Examples:
      slimrl eval runs/mine
      slimrl eval ./my-model --task gsm8k evaluation.problems=200 --out answers.jsonl
    """
    config = _config_of(model_or_run, settings, task)
    target = _writable(out) if out else None
    _quieten_libraries()
    from slimrl.evaluate import evaluate as measure
    from slimrl.preflight.setup import prepare
    from slimrl.runs.directory import steps_taken
    from slimrl.runs.files import write_jsonl

    display = _display(quiet)
    _say_hub(display, config)
    setup = prepare(config)
    for note in setup.notes:
        display.note(note)
    steps = steps_taken(Path(model_or_run))
    evaluation = measure(setup, step=steps or 0)
    display.evaluation(evaluation, "" if steps is None else f" after step {steps}")
    if target:
        write_jsonl(target, evaluation.table())
    if as_json:
        _print_json({"model": model_or_run, "step": steps, **evaluation.summaries()})


@cli.command(short_help="Ask one question; completions go to stdout.")
@click.argument("model_or_run")
@click.argument("question")
@SETTINGS
@click.option("-n", "count", default=1, show_default=True, type=click.IntRange(1), help="Completions to sample.")
@click.option("--greedy", is_flag=True, help="Decode greedily, once.")
@JSON
def sample(model_or_run: str, question: str, settings: Sequence[str], count: int, greedy: bool, as_json: bool) -> None:
    """Ask one question (`-`: from stdin); completions go to stdout, what separates several of them to stderr.

    \b
    Example:
      slimrl sample runs/mine "Tom has 3 apples. Then Tom buys 4 more. How many apples does Tom have now?" -n 4
    """
    config = _config_of(model_or_run, settings, None)
    if question == "-":
        question = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")
    if any("\ud800" <= c <= "\udfff" for c in question):
        raise SettingsError("the question is not UTF-8 text")
    if not question.strip():
        raise SettingsError("the question is empty; write it in quotes, or give - to read it from stdin")
    if greedy and count > 1:
        raise SettingsError("-n has no effect with --greedy, which gives one completion; remove one of them")
    _quieten_libraries()
    _say_hub(_display(quiet=False), config)
    from slimrl.config.defaults import choose
    from slimrl.config.files import with_chosen
    from slimrl.machine.threads import settle_threads
    from slimrl.preflight.setup import prepare_model
    from slimrl.randomness import uniforms
    from slimrl.rollout import Request
    from slimrl.rollout.engine import RolloutEngine
    from slimrl.tasks import chat_messages
    from slimrl.text import visible

    settle_threads()
    policy, prompter, instruction = prepare_model(config)
    ids = prompter.ids(chat_messages(instruction, question))
    sizes = {"parameters": policy.model.num_parameters(), "context": policy.context}
    chosen = choose(config, **sizes, longest_prompt=lambda: len(ids), longest_solution=lambda: 0)
    budget = with_chosen(config, chosen.values).rollout.budget
    if len(ids) + budget > policy.context:
        raise SettingsError(
            f"a prompt of {len(ids)} tokens and rollout.max_new_tokens={budget} exceed the model's context of "
            f"{policy.context}; shorten the question or lower the budget"
        )
    draws = uniforms(config.seed, "sample", 0, question, samples=1 if greedy else count, positions=budget)
    slots = count if config.rollout.slots == "auto" else config.rollout.slots
    (group,) = RolloutEngine(policy, slots=slots, compiled=config.rollout.compile).generate(
        [Request(ids, draws)], max_new_tokens=budget, temperature=config.rollout.temperature, greedy=greedy
    )
    texts = [policy.decode(completion.token_ids) for completion in group]
    if as_json:
        rows = [
            {"text": text, "finish": completion.finish, "tokens": len(completion.token_ids)}
            for text, completion in zip(texts, group, strict=True)
        ]
        _print_json({"model": model_or_run, "question": question, "completions": rows})
        return
    for number, (text, completion) in enumerate(zip(texts, group, strict=True), 1):
        cut = f"cut off after {len(completion.token_ids)} tokens" if completion.finish == "length" else ""
        if len(group) > 1:
            click.echo(f"--- {number} of {len(group)}{f' ({cut})' if cut else ''}", err=True)
        _out(visible(text) if sys.stdout.isatty() else text)
        if cut and len(group) == 1:
            click.echo(f"({cut})", err=True)


@cli.command(short_help="Score stored outputs with the checker of training.")
@click.argument("file")
@SETTINGS
@click.option("--task", "task", required=True, help="Task whose answer form and checker apply.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write a verdict per row (JSONL).")
@JSON
def grade(file: str, settings: Sequence[str], task: str, out: str | None, as_json: bool) -> None:
    """Score stored outputs, rows of {"id", "answer", "completion"}, with the checker that training uses.

    \b
    Example:
      slimrl grade outputs.jsonl --task gsm8k task.style=boxed --out verdicts.jsonl
    """
    from slimrl.config.schema import RootConfig
    from slimrl.tasks.grade import grade_file

    if "=" in file and not Path(file).exists():
        raise SettingsError(f"FILE comes first: slimrl grade FILE --task {task} {file}; settings stand behind it")
    for setting in settings:
        acts = setting.startswith("task.") and not setting.startswith("task.on_bad_row")  # every row counts
        if "=" in setting and not acts and not Path(setting).is_file():
            raise SettingsError(f"{setting} has no effect on grading; only task.style and task.checker have")
    data = ["task.path=unread"] if task == "jsonl" else []
    extra = next((s for s in settings if "=" not in s and Path(s).suffix not in (".yaml", ".yml")), "")
    if extra:
        raise SettingsError(f"{extra} stands where a settings file may; slimrl grade takes one FILE, which comes first")
    config = _load(RootConfig, [*settings, f"task.name={task}", *data])
    if out and Path(out).exists() and Path(file).exists() and Path(out).samefile(file):
        raise SettingsError(f"--out {out} is the file to grade; name another")
    summary = grade_file(config.task, file, str(_writable(out)) if out else None)
    click.echo(f"{summary.n} rows: strict {summary.strict:.1%}, lenient {summary.lenient:.1%}", err=True)
    if as_json:
        _print_json(summary)


@cli.command(short_help="Check settings, model, data and rewards first.")
@SETTINGS
@JSON
def doctor(settings: Sequence[str], as_json: bool) -> None:
    """Check settings, model, data and rewards before training: prompt, stop ids, a probe of completions.

    \b
    Example:
      slimrl doctor recipes/gsm8k.yaml recipes/qwen2.5-0.5b.yaml
    """
    from slimrl.config.schema import TrainConfig

    config = _load(TrainConfig, settings)
    _quieten_libraries()
    from slimrl.preflight.doctor import examine
    from slimrl.preflight.setup import prepare_training

    display = _display(quiet=False)
    _say_hub(display, config)
    setup = prepare_training(config)
    with setup.scorer:
        examination = examine(setup)
    display.opening(examination, setup.notes, config)
    display.probes(examination)
    if as_json:
        _print_json(dataclasses.asdict(examination) | {"notes": setup.notes, "memory": setup.memory.table()})


@cli.command(short_help="List settings with their defaults and meanings.")
@click.argument("wanted", metavar="[SECTION | WORD]", required=False)
@JSON
def settings(wanted: str | None, as_json: bool) -> None:
    """List every setting with its default and meaning, those of a section, or those that a word is found in.

    \b
    Examples:
      slimrl settings algorithm
      slimrl settings kl
    """
    from slimrl.config.files import describe_settings

    rows = describe_settings(wanted)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        _out(f"{row['key']} = {json.dumps(row['default'])}  ({row['type']})\n    {row['meaning']}")


@cli.command(short_help="Copy a run's trained model to a folder.")
@click.argument("run", type=click.Path())
@click.argument("folder", type=click.Path())
def export(run: str, folder: str) -> None:
    """Copy a run's trained model to FOLDER, as transformers loads it.

    \b
    Example:
      slimrl export runs/mine my-model
    """
    import shutil

    from slimrl.runs.files import files_within

    source, target = Path(run) / "final", Path(folder)
    if not (source / "config.json").is_file():
        raise DataError(f"{run} holds no final/ model; give the folder of a finished run")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError(f"{folder} exists already and is not empty; choose another folder")
    try:
        for file in files_within(source):  # with the permissions that the umask gives, not those of the run
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    except OSError as error:
        raise SettingsError(f"cannot write {folder} ({error.strerror or error})") from None
    _out(str(target))


STUDY = click.argument("files", nargs=-1, required=True, metavar="STUDY [FILES...] [section.key=value ...]")
STUDY_NAME = click.option("--name", default="", help="Name of the study's folder; by default its files' names.")
STUDY_SEEDS = click.option("--seeds", type=click.IntRange(1), help="Runs of every arm, instead of the file's.")
STUDY_OUTPUT = click.option("--output", default="runs", show_default=True, help="Folder in which its folder lies.")
STUDY_SLOTS = click.option("--slots", type=click.IntRange(1), help="Runs at once; by default what the machine bears.")


@cli.group(no_args_is_help=True, short_help="Compare settings over training seeds.")
def study() -> None:
    """Arms times training seeds: from a question about switches to an answer with an interval.

    STUDY is a YAML file (studies/); further files are merged over it, section.key=value changes settings of all arms.

    \b
    Example:
      slimrl study run studies/quick.yaml
    """


@study.command(name="plan", short_help="What a study takes here, and what it can see.")
@STUDY
@STUDY_NAME
@STUDY_SEEDS
@STUDY_OUTPUT
@STUDY_SLOTS
@click.option(
    "--effect",
    type=click.FloatRange(0, min_open=True),
    multiple=True,
    help="A difference in points: how many seeds find it? Repeatable.",
)
@JSON
def study_plan(
    files: Sequence[str],
    name: str,
    seeds: int | None,
    output: str,
    slots: int | None,
    effect: tuple[float, ...],
    as_json: bool,
) -> None:
    """What a study takes here, and how small an effect it can see; names arms that cannot act."""
    expanded, folder = _study(files, name, seeds, output)
    from slimrl.study.plan import plan_study, sentences

    plan = plan_study(expanded, folder, slots=slots or 0, effects=tuple(points / 100 for points in effect))
    display = _display(quiet=False)
    for sentence in sentences(plan):
        display.say(sentence)
    if as_json:
        _print_json(plan)


@study.command(name="run", short_help="Do what is left of a study, then report.")
@STUDY
@STUDY_NAME
@STUDY_SEEDS
@STUDY_OUTPUT
@STUDY_SLOTS
@JSON
@QUIET
def study_run(
    files: Sequence[str], name: str, seeds: int | None, output: str, slots: int | None, as_json: bool, quiet: bool
) -> None:
    """Do what is left of a study, then report; the same command goes on after any interruption.

    \b
    Example:
      slimrl study run studies/quick.yaml --seeds 3 --name first-look
    """
    expanded, folder = _study(files, name, seeds, output)
    from slimrl.display.study import ProgressDisplay
    from slimrl.study.runner import run_study

    display = ProgressDisplay(expanded, folder, quiet=quiet)
    try:
        with _saying_how_to_go_on():
            failed = _closing_display(display, lambda: run_study(expanded, folder, slots=slots or 0, display=display))
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise _no_room(error, folder, "the same command goes on") from error
    _report(expanded, folder, as_json, quiet)
    if failed:
        names = ", ".join(run.name for run in failed)
        raise DataError(f"{len(failed)} runs failed ({names}); mend the cause and run the same command again")


@study.command(name="report", short_help="Write the report from the runs that are there.")
@STUDY
@STUDY_NAME
@STUDY_SEEDS
@STUDY_OUTPUT
@JSON
@QUIET
def study_report(files: Sequence[str], name: str, seeds: int | None, output: str, as_json: bool, quiet: bool) -> None:
    """Write report.html, report.md, results.csv and results.json from the runs that are there."""
    expanded, folder = _study(files, name, seeds, output)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such study; slimrl study run begins it, --name or --output find another")
    _report(expanded, folder, as_json, quiet)


@contextlib.contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """Ctrl-C or SIGTERM end a study with the command that goes on with it."""
    again = f"; the same command goes on: slimrl {shlex.join(sys.argv[1:])}"
    try:
        with Stop().on_signals():
            yield
    except Stopped as reason:
        raise Stopped(reason.cause, reason.exit_code, again) from None
    except KeyboardInterrupt:
        raise Stopped("Ctrl-C", INTERRUPTED, again) from None


def _study(files: Sequence[str], name: str, seeds: int | None, output: str) -> tuple[Expanded, Path]:
    """The study, every arm checked, and its folder."""
    from slimrl.study.spec import load_study

    names = [f for f in files if "=" not in f or Path(f).is_file()]
    if not names:
        raise SettingsError("name a study file first; studies/ holds some")
    from slimrl.study.declaration import check_study

    expanded = load_study(names, [f for f in files if f not in names], name=name, seeds=seeds or 0)
    folder = Path(output) / expanded.name
    check_study(expanded, folder)
    return expanded, folder


def _report(expanded: Expanded, folder: Path, as_json: bool, quiet: bool) -> None:
    from slimrl.report.report import write_reports
    from slimrl.report.tables import verdict_words
    from slimrl.study.results import collect
    from slimrl.text import signed_points

    results = collect(expanded, folder)
    try:
        path = write_reports(results, folder)
    except OSError as error:
        raise _no_room(
            error, folder, "slimrl study report with the same arguments writes it; no run is lost"
        ) from error
    display = _display(quiet)
    for effect in results.effects:
        mean, low, high = map(signed_points, (effect.difference.mean, effect.difference.low, effect.difference.high))
        display.say(f"{effect.name}: {mean} [{low}, {high}], {verdict_words(effect)}")
    display.say(f"report: {path}, report.md, results.csv, results.json")
    if as_json:
        _out((folder / "results.json").read_text(encoding="utf-8"), newline=False)


def _no_room(error: OSError, folder: Path, then: str) -> DiskError:
    """What a user reads where a file of a study cannot be written."""
    return DiskError(
        f"{error.filename or folder} cannot be written ({error.strerror or error}); free space or make it writable, then {then}"
    )


def _load(kind: type[Root], settings: Sequence[str], base: dict[str, Any] | None = None) -> Root:
    """Files and overrides, told apart by the equals sign."""
    from slimrl.config.files import load_config

    files = [s for s in settings if "=" not in s or Path(s).is_file()]
    return load_config(kind, files, [s for s in settings if s not in files], base=base)


def _begun(kind: type[Root], settings: Sequence[str], resume: bool, force: bool) -> Root:
    """Settings of a run; to go on with one those of its folder, wherever it lies now, or those given; then overrides."""
    from slimrl.config.files import read_yaml

    if force and not resume:
        raise SettingsError("--force has no effect without --resume; remove it")
    folders = [setting for setting in settings if resume and Path(setting).is_dir()]
    if not folders:
        for setting in settings if resume else ():
            if "=" not in setting and not Path(setting).exists() and Path(setting).suffix not in (".yaml", ".yml"):
                raise SettingsError(f"{setting}: no such run, there is no such folder; check the path")
        return _load(kind, settings)
    if len(folders) > 1:
        raise SettingsError("--resume takes one run folder")
    folder = Path(folders[0])
    if not (folder / "config.yaml").is_file():
        raise SettingsError(f"{folder} is no run folder, it has no config.yaml; give runs/NAME")
    elsewhere = [setting for setting in settings if setting.partition("=")[0].strip() in ("name", "output")]
    if elsewhere:
        raise SettingsError(
            f"{elsewhere[0]} would be another run than {folder}; remove it, or move the folder and give --resume its new place"
        )
    place = {"name": folder.resolve().name, "output": str(folder.resolve().parent)}
    base = read_yaml(str(folder / "config.yaml")) | place
    return _load(kind, [setting for setting in settings if setting not in folders], base)


def _config_of(model_or_run: str, settings: Sequence[str], task: str | None) -> RootConfig:
    """Settings to use a model with: a run's own, or the defaults, then files and overrides."""
    from slimrl.config.files import for_verb, merge, read_yaml
    from slimrl.config.schema import RootConfig
    from slimrl.runs.reader import read_state

    base: dict[str, Any] = {}
    recorded = Path(model_or_run) / "config.yaml"
    if recorded.is_file():
        base = for_verb(RootConfig, read_yaml(str(recorded)))
        base = merge(base, {"model": {"init": "pretrained", "revision": "main", "trust_remote_code": False}})
        # what a run leaves are safetensors, whatever it began from
        base["model"].pop("pickled_weights", None)
        base["task"] = {**base.get("task", {}), **_date_of(model_or_run, base)}
    if task is not None and base.get("task", {}).get("name") != task:
        # The answer form goes with the model, the data with the task.
        form = {
            key: value
            for key, value in base.get("task", {}).items()
            if key in ("style", "instruction", "template", "template_arguments", "date")
        }
        base["task"] = {**form, "name": task}
        for key in read_state(Path(model_or_run)).get("chosen", {}):  # for the run's own task; this one has its own
            section, _, name = key.partition(".")
            base.get(section, {}).pop(name, None)
        base.get("evaluation", {}).pop("harder_problems", None)
    return _load(RootConfig, settings, merge(base, {"model": {"path": model_or_run}}))


def _date_of(run: str, settings: dict[str, Any]) -> dict[str, str]:
    """What a run's prompts took for today, where its settings leave that to the day on which it began."""
    from slimrl.runs.reader import read_state

    date = read_state(Path(run)).get("date")
    return {"date": str(date)} if date and settings.get("task", {}).get("date", "auto") == "auto" else {}


def _display(quiet: bool, samples_every: int = 0, samples: int = 0) -> Display:
    from slimrl.display.run import Display

    return Display(quiet=quiet, samples_every=samples_every, samples=samples)


def _say_hub(display: Display, config: RootConfig) -> None:
    """Before the network is asked: a misspelt folder can look like a name on the Hub."""
    from slimrl.config.places import is_hub_name

    path = config.model.path
    if is_hub_name(path) and not Path(path).is_dir():
        display.say(f"model.path={path} is no folder here, so it is taken from the Hugging Face Hub")


def _closing_display(display: Display | ProgressDisplay, work: Any) -> Any:
    """Run `work`; the progress bar leaves the screen however it ends."""
    try:
        return work()
    finally:
        display.stop()


def _quieten_libraries() -> None:
    """What libraries tell their own developers does not belong on a user's screen."""
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _writable(path: str) -> Path:
    """The file, if it can be written: found before the work, not after it, and nothing in it is touched yet."""
    target = Path(path)
    if not target.parent.is_dir():
        raise SettingsError(f"--out {path}: no such folder {target.parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise SettingsError(f"--out {path}: cannot be written; name another file")
    return target


def _print_json(data: Any) -> None:
    plain = dataclasses.asdict(data) if dataclasses.is_dataclass(data) and not isinstance(data, type) else data
    # ASCII, since standard output may be a terminal and completions hold anything
    _out(json.dumps(plain))
