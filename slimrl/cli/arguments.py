"""The arguments that verbs share, and the settings that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimrl.cli.completion import arguments_of, run_argument
from slimrl.cli.output import tell
from slimrl.errors import SettingsError

if TYPE_CHECKING:
    from slimrl.config.files import Root
    from slimrl.config.recipes import Kind
    from slimrl.config.schema import EvalConfig


def by_name(kind: Kind) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[str, ...]]:
    """The callback of an argument: every `@name` of a recipe or a study becomes its file."""

    def named_files(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
        if not any(text.startswith("@") for text in texts):
            return texts
        from slimrl.config.recipes import named

        return tuple(named(text, kind) for text in texts)

    return named_files


def fetched(ctx: click.Context, _param: click.Parameter, place: str) -> str:
    """The callback of an argument: a run at an address on object storage becomes its local copy."""
    if ctx.resilient_parsing or "://" not in place:  # a shell that completes a command fetches nothing
        return place
    from slimrl.runs.remote import local_run

    return str(local_run(place, say=tell))


SETTINGS = click.argument(
    "settings",
    nargs=-1,
    metavar="[FILES...] [section.key=value ...]",
    callback=by_name("recipes"),
    shell_complete=arguments_of("recipes"),
)
MODEL_OR_RUN = click.argument("model_or_run", callback=fetched, shell_complete=run_argument)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
QUIET = click.option("--quiet", is_flag=True, help="No human text.")
TASKS = click.option(
    "--task",
    "tasks",
    multiple=True,
    callback=by_name("recipes"),
    help="Task, or a settings file that names one; repeatable; a run's own by default.",
)
LIMIT = click.option("--limit", type=click.IntRange(1), help="At most so many problems of each split, the first ones.")


def load_settings(kind: type[Root], settings: Sequence[str], base: dict[str, Any] | None = None) -> Root:
    """Validated settings from files and overrides, which are told apart by the equals sign, merged over `base`."""
    from slimrl.config.files import load_config

    overrides = _overrides(settings)
    return load_config(kind, [s for s in settings if s not in overrides], overrides, base=base)


def own_settings(kind: type[Root], settings: Sequence[str]) -> dict[str, Any]:
    """Files and overrides merged, not validated."""
    from slimrl.config.files import merged_settings

    overrides = _overrides(settings)
    return merged_settings(kind, [s for s in settings if s not in overrides], overrides)


def _overrides(settings: Sequence[str]) -> list[str]:
    return [setting for setting in settings if "=" in setting and not Path(setting).is_file()]


def is_setting(text: str) -> bool:
    """True if a text is section.key=value of a setting that exists."""
    from slimrl.config.mistakes import known_keys
    from slimrl.config.schema import SftRunConfig, TrainConfig

    key, equals, _ = text.partition("=")
    return bool(equals) and key.strip() in {*known_keys(TrainConfig), *known_keys(SftRunConfig)}


def stray(settings: Sequence[str]) -> str:
    """The first argument that can be neither a settings file nor section.key=value; empty if there is none."""
    others = [setting for setting in settings if Path(setting).suffix not in (".yaml", ".yml")]
    return next((text for text in others if "=" not in text or " " in text.partition("=")[0].strip()), "")


def run_settings(kind: type[Root], settings: Sequence[str], resume: bool, force: bool) -> Root:
    """Settings of a run to begin or, with `resume`, to continue: then those in its folder, if one is given, and overrides."""
    from slimrl.config.places import is_address
    from slimrl.runs.reader import read_settings

    if force and not resume:
        raise SettingsError("--force has no effect without --resume; remove it")
    folders = [setting for setting in settings if resume and Path(setting).is_dir()]
    if not folders:
        for setting in settings if resume else ():
            if is_address(setting):
                raise SettingsError(
                    f"{setting} has ended, as all runs on object storage have; give a folder of this machine"
                )
            if "=" not in setting and not Path(setting).exists() and Path(setting).suffix not in (".yaml", ".yml"):
                raise SettingsError(f"{setting}: no such run, there is no such folder; check the path")
        return load_settings(kind, settings)
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
    base = read_settings(folder) | place
    further = load_settings(kind, [setting for setting in settings if setting not in folders], base)
    return further.model_copy(update=place)  # also where a file names a place, as the one with which the run began may


def newest_run(verb: str, settings: Sequence[str]) -> str:
    """The folder of the run that `--resume` without a run, a file or a name means; empty where one of these is given.

    Raises SettingsError where no run was interrupted.
    """
    from slimrl.config.schema import RootConfig
    from slimrl.runs.listing import newest_interrupted

    keys = {setting.partition("=")[0].strip() for setting in settings if setting in _overrides(settings)}
    if len(keys) != len(settings) or "name" in keys:
        return ""
    places = [setting.partition("=")[2] for setting in settings if setting.partition("=")[0].strip() == "output"]
    folder = Path(places[-1] if places else RootConfig.model_fields["output"].default)
    found = newest_interrupted(folder, verb)
    if found is None:
        raise SettingsError(f"{folder} holds no interrupted run of slimrl {verb}; give the run's folder, or name=...")
    click.echo(f"resuming {found.run}, the newest that was interrupted", err=True)
    return found.run


def model_settings(
    model_or_run: str, settings: Sequence[str], task: str | None, *, like: str | None = None
) -> EvalConfig:
    """Settings to measure a model with: those of its run or the defaults, then files and overrides.

    `task`, a name or a settings file, replaces the run's task and keeps its answer form. A model that is no run is measured as
    the run `like` is. Raises SettingsError for overrides that only a run reads.
    """
    from slimrl.api.measuring import measuring_base, of_the_model, refuse_unread
    from slimrl.config.schema import EvalConfig

    if model_or_run.startswith("@") or is_settings_file(model_or_run) or is_setting(model_or_run):
        raise SettingsError(f"{model_or_run} is no model; give the model or the run first, and settings behind it")
    refuse_unread((override.partition("=")[0].strip() for override in _overrides(settings)), model_or_run)
    name, other_data = (None, False) if task is None else task_named(task)
    files = [task] if task is not None and is_settings_file(task) else []
    own = own_settings(EvalConfig, [*files, *settings])
    base = measuring_base(model_or_run, name, like=like, other_data=other_data, own=own)
    return of_the_model(load_settings(EvalConfig, [*files, *settings], base), base)


def asking_settings(model_or_run: str, settings: Sequence[str]) -> EvalConfig:
    """Settings to ask a model with; raises SettingsError for overrides that do not act on what it answers."""
    from slimrl.api.asking import refuse_idle

    refuse_idle(override.partition("=")[0].strip() for override in _overrides(settings))
    return model_settings(model_or_run, settings, None)


def is_settings_file(text: str) -> bool:
    """True for the name of a YAML file."""
    return Path(text).suffix in (".yaml", ".yml")


def task_named(task: str) -> tuple[str, bool]:
    """The name of a task, or of that in a settings file, and True where the file says which data it has."""
    from slimrl.config.files import read_yaml
    from slimrl.config.places import DATA_SUFFIXES

    if not is_settings_file(task):
        if Path(task).is_file() or task.lower().endswith(DATA_SUFFIXES):
            raise SettingsError(
                f"--task {task} is a file of rows; write task.path: {task} into a settings file, and give that"
            )
        return task, False
    section = read_yaml(task).get("task")
    named = section if isinstance(section, dict) else {}
    if "name" not in named and not (named.get("path") or named.get("test_path")):
        raise SettingsError(
            f"--task {task}: the file names no task; add task.name or task.path, or give it behind the model"
        )
    name = str(named.get("name", "jsonl"))  # a path needs no name, in training neither
    return name, any(named.get(key) for key in ("path", "test_path"))


def task_settings(
    model_or_run: str, settings: Sequence[str], tasks: Sequence[str], limit: int | None, like: str | None = None
) -> dict[str, EvalConfig]:
    """The settings to measure a model with on every task, by its name or the name of its file; one entry without `tasks`."""
    found: dict[str, EvalConfig] = {}
    for task in tasks or (None,):
        config = model_settings(model_or_run, settings, task, like=like)
        label = Path(task).stem if task and is_settings_file(task) else config.task.name
        if label in found:
            raise SettingsError(f"--task {label} is given twice; remove one, or name the files apart")
        evaluation = config.evaluation
        if limit is not None:
            most = {key: min(limit, getattr(evaluation, key)) for key in ("problems", "harder_problems", "twins")}
            evaluation = evaluation.model_copy(update=most)
        found[label] = config.model_copy(update={"evaluation": evaluation})
    return found
