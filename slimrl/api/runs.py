"""Runs from Python: `train` and `sft`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slimrl.api import environments, models
from slimrl.api import problems as rows
from slimrl.api import rewards as scores
from slimrl.api.finished import Result
from slimrl.api.guest import guest, import_bars
from slimrl.api.ranks import demand_leader, demand_processes
from slimrl.api.screen import open_screen
from slimrl.api.settings import Place, Recipes, dotted, from_keywords, from_recipes
from slimrl.config.files import build, merge
from slimrl.config.rewards import is_programs
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.errors import DataError, SettingsError
from slimrl.machine.signals import Stop
from slimrl.report.run import RunPage
from slimrl.rewards.custom import load_function, offering
from slimrl.runs.files import write_text
from slimrl.runs.reader import MODEL, called_by_a_program, read_settings, read_state
from slimrl.session.listeners import Screen, Sink
from slimrl.trackers.remote import open_trackers

Verb = Literal["train", "sft"]
KINDS: dict[Verb, type[TrainConfig] | type[SftRunConfig]] = {"train": TrainConfig, "sft": SftRunConfig}
Resume = bool | Place | Result
"""A run's folder or its result; True goes on with the run of this `name`, and begins it where there is none."""


@dataclass(frozen=True)
class Request:
    """The arguments of a call."""

    model: models.Model | None
    data: rows.Data | None
    test_data: rows.Data | None
    recipe: Recipes
    resume: Resume
    settings: Mapping[str, Any]
    rewards: scores.Given = field(default_factory=scores.Given)
    environment: environments.Given = field(default_factory=environments.Given)


@dataclass(frozen=True)
class Order:
    """A run that is to begin or to go on: its settings, and what its folder is to hold before."""

    config: TrainConfig | SftRunConfig
    files: Mapping[str, str] = field(default_factory=dict)
    """Rows that were given, by the name of their file."""
    model: models.Given = field(default_factory=models.Given)

    @property
    def folder(self) -> Path:
        return Path(self.config.output) / self.config.name


def train(
    model: models.Model | None = None,
    data: rows.Data | None = None,
    *,
    test_data: rows.Data | None = None,
    rewards: scores.Rewards | None = None,
    environment: environments.Environment | None = None,
    recipe: Recipes = (),
    resume: Resume = False,
    force: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Train a model by reinforcement learning; without arguments the built-in model on the built-in task.

    Args:
        model: a folder, a name on the Hub, `builtin`, a result, or a loaded model and its tokenizer as a pair.
        data: the problems: a list of dictionaries, a `datasets.Dataset`, a DataFrame, a file, a data set on the Hub, or a task's
            name, as `gsm8k`. Without `test_data` about a tenth of them is held out.
        test_data: the held-out problems, in any of these forms but a task's name.
        rewards: names of built-in rewards, functions with TRL's signature, `"file.py:function"`, and pairs with a weight,
            `(function, 0.5)`. A list is whole: nothing else is paid, but for a recipe's punishments.
        environment: what answers between the turns of an episode: `"calculator"`, a class, `"file.py:Class"`, or the section as a
            mapping, `{"name": Class, "turns": 4}`.
        recipe: one or several recipes or settings files, `"dapo"` or `["gsm8k", "lora"]`, merged left to right.
        resume: the folder or the result of a run that was interrupted; True for the run of this `name`.
        force: resume although SlimRL, torch or the rewards changed.
        quiet: show nothing; otherwise progress goes to stderr.
        settings: sections and settings (`slimrl settings` lists them): `steps=100`, `rollout={"problems": 8}`,
            `**{"rollout.problems": 8}`.

    Raises SettingsError and DataError, which are ValueErrors, in one sentence; DivergedError where numbers are not finite;
    KeyboardInterrupt on Ctrl-C and StoppedError on SIGTERM or at `max_time`, with a checkpoint from which the run can be resumed.
    """
    given = scores.read_rewards(rewards)
    played = environments.read_environment(environment)
    request = Request(model, data, test_data, recipe, resume, settings, given, played)
    return _run("train", request, force=force, quiet=quiet)


def sft(
    model: models.Model | None = None,
    data: rows.Data | None = None,
    *,
    test_data: rows.Data | None = None,
    recipe: Recipes = (),
    resume: Resume = False,
    force: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Warm start: imitate the worked solutions of a task, or of rows with a `solution`; arguments and errors as in `train`."""
    request = Request(model, data, test_data, recipe, resume, settings)
    return _run("sft", request, force=force, quiet=quiet)


def _run(verb: Verb, request: Request, *, force: bool, quiet: bool) -> Result:
    """Begin a run or go on with it, in this process."""
    if force and not request.resume:
        raise SettingsError("force=True has no effect without resume; remove it")
    with called_by_a_program():
        order = _new(verb, request) if isinstance(request.resume, bool) else _resumed(verb, request, request.resume)
        return _carried_out(order, request, force=force, quiet=quiet)


def _carried_out(order: Order, request: Request, *, force: bool, quiet: bool) -> Result:
    config = order.config
    demand_leader()
    demand_processes(config)
    with _filled(order), guest() as stop, offering({**request.rewards.functions, **request.environment.classes}):
        for spec in config.rewards.of_the_program if isinstance(config, TrainConfig) else ():
            load_function(spec)  # refused here, before a model is loaded
        if is_programs(config.environment.name):
            load_function(config.environment.name, setting="environment.name")
        screen = open_screen(config, quiet=quiet)
        for note in request.rewards.notes:
            screen.note(note)
        try:
            from slimrl.parallel.team import team  # here, since torch takes seconds to import

            with RunPage(stop.since_signal) as page, team(config, stop):
                sinks: tuple[Sink, ...] = (page, *open_trackers(config.log, screen.say, screen.note, stop))
                _work(config, screen, sinks, stop, force=force)
        except DataError as error:
            sentence = rows.as_given(str(error), order.folder)
            raise (DataError(sentence) if sentence != str(error) else error) from None
        finally:
            screen.stop()
    return Result(order.folder)


def _work(
    config: TrainConfig | SftRunConfig, screen: Screen, sinks: Sequence[Sink], stop: Stop, *, force: bool
) -> None:
    if isinstance(config, TrainConfig):
        from slimrl.train import train as run_training

        run_training(config, screen, sinks=sinks, stop=stop, resume=True, force=force)
    else:
        from slimrl.sft import sft as run_sft

        run_sft(config, screen, sinks=sinks, stop=stop, resume=True, force=force)


def _new(verb: Verb, request: Request) -> Order:
    """The order for a run by its settings; raises SettingsError for one that is there and is not to be resumed."""
    import_bars()
    from slimrl.runs.directory import new_run  # imports transformers

    kind = KINDS[verb]
    data, model = rows.read_data(request.data, request.test_data), models.read_model(request.model)
    given = {"task": data.settings, "model": model.settings, "rewards": request.rewards.settings}
    given["environment"] = request.environment.settings
    given = {section: settings for section, settings in given.items() if settings}
    chosen = from_keywords(request.settings)
    for key in sorted({*dotted(given)} & {*dotted(chosen)}):
        argument = {"task": "data"}.get(key.partition(".")[0], key.partition(".")[0])
        raise SettingsError(f"{key} is set twice, by {argument}= and as a setting; remove one")
    merged = merge(merge(request.rewards.over(from_recipes(kind, request.recipe)), given), chosen)
    config = build(kind, merged)
    if request.resume and not config.name:
        raise SettingsError("resume=True needs to know which run; give name=..., or the run's folder as resume")
    name = config.name or _fresh_name(config, verb)
    folder = Path(config.output) / name
    placed: dict[str, Any] = {"name": name}
    for section, key in (("task", "path"), ("task", "test_path"), ("model", "path")):
        value = given.get(section, {}).get(key, "")
        if value in data.files or (section == "model" and model.save is not None):
            placed[section] = {**placed.get(section, {}), key: str(folder / value)}
    config = build(kind, merge(merged, placed))
    if not (request.resume and folder.exists()):
        new_run(config, verb)
    return Order(config, data.files, model)


def _fresh_name(config: TrainConfig | SftRunConfig, verb: Verb) -> str:
    """The name that the command line would give, or a further one where this process has begun that run in the same second."""
    from slimrl.runs.directory import run_path

    path = run_path(config, verb)
    name, count = path.name, 1
    while path.exists():
        count += 1
        path = path.with_name(f"{name}-{count}")
    return path.name


def _resumed(verb: Verb, request: Request, run: Place | Result) -> Order:
    """The order to go on with the run in a folder, whose settings it has."""
    folder = run.path if isinstance(run, Result) else Path(os.fspath(run))
    if not (folder / "config.yaml").is_file():
        raise SettingsError(f"resume={str(folder)!r} is no run folder, it has no config.yaml; give runs/NAME")
    own = str(read_state(folder).get("verb", verb))
    if own != verb:
        raise SettingsError(f"{folder} is a run of slimrl.{own}, which resumes it; call that")
    for argument in ("model", "data", "test_data", "recipe"):
        if getattr(request, argument) not in (None, ()):
            raise SettingsError(f"{argument}= has no effect with resume, since a run has its own; remove it")
    chosen = from_keywords(request.settings)
    if elsewhere := {"name", "output"} & chosen.keys():
        raise SettingsError(f"{min(elsewhere)}= would be another run than {folder}; remove it, or move the folder")
    place = {"name": folder.resolve().name, "output": str(folder.resolve().parent)}
    base = read_settings(folder) | place
    given = {"rewards": request.rewards.settings, "environment": request.environment.settings}
    given = {section: values for section, values in given.items() if values}
    return Order(build(KINDS[verb], merge(merge(request.rewards.over(base), given), chosen)))


@contextmanager
def _filled(order: Order) -> Iterator[None]:
    """The run's folder with the rows and the model that were given; gone again where no run begins in it."""
    folder, written = order.folder, []
    try:
        for name, text in order.files.items():
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / name).exists():
                write_text(folder / name, text)
                written.append(folder / name)
            elif (folder / name).read_text(encoding="utf-8") != text:
                raise SettingsError(
                    f"{folder} was begun with other rows than these; give those again, or choose another name=..."
                )
        if order.model.save is not None and not (folder / MODEL).exists():
            folder.mkdir(parents=True, exist_ok=True)
            order.model.save(folder / MODEL)
            written.append(folder / MODEL)
        yield
    finally:
        if written and not (folder / "run.json").exists():
            for path in (*written, folder / "lock"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                folder.rmdir()
