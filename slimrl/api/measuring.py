"""Measuring a model: the settings that hold for it, and its evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from slimrl.api.settings import dotted
from slimrl.config.environment import package_of
from slimrl.config.files import build, for_verb, merge
from slimrl.config.schema import EvalConfig
from slimrl.config.sections import LoraConfig
from slimrl.config.task import EVERY_RATE
from slimrl.errors import SettingsError
from slimrl.machine.signals import NEVER, Stop, Stopped
from slimrl.rewards import declared_bounds
from slimrl.runs.reader import read_settings, read_state
from slimrl.terms import ADAPTER, CHECKPOINTS

if TYPE_CHECKING:
    from slimrl.results import Evaluation

UNREAD = (
    "name", "output", "upload", "steps", "max_time", "parallel", "optimizer", "checkpoint", "log", "rollout.problems",
    "rollout.group_size", "evaluation.every", "task.rates", "task.success_rate", "model.lora",
)  # fmt: skip
"""Settings, and sections of them, that only a run of train or sft reads."""
ONLY_TRAINING = ("algorithm", "critic", "curriculum", "max_tokens", "sft")
"""Those of one of the two."""

TASK_DEFAULTS = {"math": {"checker": "symbolic", "on_bad_row": "skip"}}
"""Settings of a task that is named on the command line: LaTeX answers are no numbers, and MATH has a few questions twice."""


class Viewer(Protocol):
    """The view of a person on an evaluation."""

    def note(self, text: str) -> None:
        """A sentence that is shown once."""

    def evaluating(self, done: int, total: int) -> None:
        """The problems that are done."""

    def stop(self) -> None:
        """Take the progress bar off the screen."""


def refuse_unread(keys: Iterable[str], model: str) -> None:
    """Raises SettingsError for a setting, by its dotted key, that only a run reads, and for another model."""
    for key in keys:
        if key == "model.path":
            raise SettingsError(f"model.path has no effect, since {model} is the model that was named; remove it")
        if f"{key}.".startswith(tuple(f"{name}." for name in UNREAD)):
            raise SettingsError(f"{key} has an effect only in slimrl train and slimrl sft; remove it")
        if key.partition(".")[0] in ONLY_TRAINING:
            raise SettingsError(f"{key} has an effect only while training, and {model} is only measured; remove it")


def measuring_base(
    model: str,
    task: str | None,
    *,
    like: str | None = None,
    other_data: bool = False,
    own: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The settings to measure a model with before the user's `own`: those of the run that it is or is a checkpoint of, or of
    the run `like` for any other. `task` replaces the run's task by another of this name, or by one with `other_data`, and keeps
    its answer form; so does another name of a task in `own`, and another environment there leaves that of the run behind.
    """
    own_run = run_of(Path(model))
    run = own_run or Path(model if like is None else like)
    base = recorded_settings(run)
    if own_run is None and like is not None:
        base["model"] = {}
    named = _name_in(own, "task")
    if task is None and base.get("task") and named is not None and named != _task_of(base):
        task, other_data = named, True
    if task is not None:
        change_task(base, task, run, other_data=other_data)
    change_environment(base, own)
    return merge(base, {"model": {"path": _measured_path(model, own)}})


def run_of(model: Path) -> Path | None:
    """The run that a folder is, or whose checkpoint it is; None for any other model."""
    folder = model.absolute()
    places = (model, *([folder.parent.parent] if folder.parent.name == CHECKPOINTS else []))
    return next((run for run in places if (run / "config.yaml").is_file()), None)


def _measured_path(model: str, own: Mapping[str, Any]) -> str:
    """The path of a model; of a run with an adapter that of the adapter, where it can be loaded beside safetensors."""
    run = Path(model)
    if (run / "config.json").is_file() or not (run / "config.yaml").is_file() or not (run / ADAPTER).is_dir():
        return model
    began = read_settings(run).get("model", {})
    if began.get("trust_remote_code") or began.get("pickled_weights"):
        return model
    from slimrl.runs.trained import measured_path  # imports torch

    given = own.get("model")
    device = given.get("device", "auto") if isinstance(given, Mapping) else "auto"
    return str(measured_path(run, device=str(device)))


def measuring_settings(
    model: str, settings: Mapping[str, Any], task: str | None = None, *, other_data: bool = False
) -> EvalConfig:
    """The settings to measure a model with, as `measuring_base` has them, and the user's own over them; raises SettingsError."""
    refuse_unread(dotted(settings), model)
    base = measuring_base(model, task, other_data=other_data, own=settings)
    return of_the_model(build(EvalConfig, merge(base, settings)), base)


def bounds_of_run(run: str) -> dict[str, tuple[float, float]]:
    """The bounds of the rewards of a run, which its settings hold."""
    return declared_bounds(build(EvalConfig, recorded_settings(run_of(Path(run)) or Path(run))).rewards)


def of_the_model(config: EvalConfig, base: Mapping[str, Any]) -> EvalConfig:
    """The settings with the model that `measuring_base` names, also where a file names another, as a recipe for a model does, and
    without those of a file that only training reads: the choice of problems by their success rate, and a new adapter.
    """
    task = config.task.model_copy(update={"rates": "", "success_rate": EVERY_RATE})
    model = config.model.model_copy(update={"path": base["model"]["path"], "lora": LoraConfig()})
    return config.model_copy(update={"task": task, "model": model})


def recorded_settings(run: Path) -> dict[str, Any]:
    """The settings of a run, as they are for what it left; empty for a model that is no run."""
    if not (run / "config.yaml").is_file():
        return {}
    base = for_verb(EvalConfig, read_settings(run))
    for key in ("devices", "parallel"):  # those that the run was trained on
        base.pop(key, None)
    base = merge(base, {"model": {"init": "pretrained", "revision": "main", "trust_remote_code": False}})
    # what a run leaves are safetensors, whatever it began from
    base["model"].pop("pickled_weights", None)
    for key in ("lora", "quantize"):  # final/ is merged, and a checkpoint knows what it is
        base["model"].pop(key, None)
    task_settings = base.setdefault("task", {})
    # the date that the run's prompts hold, if its settings leave that to the day on which it began
    if (date := read_state(run).get("date")) and task_settings.get("date", "auto") == "auto":
        task_settings["date"] = str(date)
    return base


def change_task(base: dict[str, Any], name: str, run: Path, *, other_data: bool) -> None:
    """Replace the task in a run's settings; the answer form goes with the model, the data with the task.

    A task of the same name is the run's own, unless it comes with `other_data`.
    """
    own = base.get("task", {})
    if _task_of(base) == name and not other_data:
        return
    form = ("style", "instruction", "template", "template_arguments", "date")
    kept = {key: value for key, value in base.get("task", {}).items() if key in form}
    played = own.get("name") == "guess" or (name == "guess" and base.get("environment", {}).get("name") != name)
    if package_of(own.get("name", "")) or package_of(name) or played:  # whose environments play nothing else
        _without_environment(base)
    if "code" in (own.get("name"), name):  # whose form is its own
        kept.pop("style", None)
        base.pop("sandbox", None)
        base.get("rewards", {}).pop("tests_passed", None)
    base["task"] = kept | {"name": name} | TASK_DEFAULTS.get(name, {})
    for key in read_state(run).get("chosen", {}):  # for the run's own task; this one has its own
        section, _, setting = key.partition(".")
        base.get(section, {}).pop(setting, None)
    for key in ("harder_problems", "twins"):
        base.get("evaluation", {}).pop(key, None)


def change_environment(base: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Leave the environment of a run behind where the user's `own` settings name another or none: all its settings and what it
    pays where there is none, and what it is made with and told by where there is another.
    """
    name, known = _name_in(own, "environment"), base.get("environment", {})
    if name is None or name == known.get("name", ""):
        return
    if not name:
        _without_environment(base)
        return
    for key in ("arguments", "tool_prompt"):
        known.pop(key, None)


def _without_environment(base: dict[str, Any]) -> None:
    base.pop("environment", None)
    for key in ("correct", "environment"):
        base.get("rewards", {}).pop(key, None)


def _task_of(settings: Mapping[str, Any]) -> str:
    """The name of the task in a run's settings."""
    own = settings.get("task", {})
    return str(own.get("name", "jsonl" if own.get("path") or own.get("test_path") else ""))


def _name_in(settings: Mapping[str, Any], section: str) -> str | None:
    """The name of a task or an environment in settings that may be of any form; None where they name none."""
    table = settings.get(section)
    name = table.get("name") if isinstance(table, Mapping) else None
    return name if isinstance(name, str) else None


def evaluation_of(model: str, config: EvalConfig, view: Viewer, stop: Stop = NEVER, *, whole: int = 0) -> Evaluation:
    """The evaluation of a model on its task; with `whole` training problems
    are measured too, up to so many in all, as of data that is only measured."""
    (found,) = (found for _, found in evaluations(model, {config.task.name: config}, view, stop, whole=whole))
    return found


def evaluations(
    model_or_run: str, configs: Mapping[str, EvalConfig], view: Viewer, stop: Stop = NEVER, *, whole: int = 0
) -> Iterator[tuple[str, Evaluation]]:
    """The evaluation of each task, by its label, as soon as it is done; this process loads the model once. With `whole`
    of training problems too, up to so many in all. Of several ranks it is the leader, and the others follow it.

    Raises Stopped where `stop` says so.
    """
    from slimrl.evaluate import evaluate
    from slimrl.machine.ranks import ranks_here
    from slimrl.parallel.lead import begin
    from slimrl.preflight.payment import unmatched
    from slimrl.preflight.setup import prepare_measuring
    from slimrl.runs.directory import steps_taken

    policy, known = None, None
    for label, config in configs.items():
        setup = prepare_measuring(config, policy if config.model == known else None, stop)
        policy, known = setup.policy, config.model
        with setup.grading, closing(setup.task.grader), closing(setup), setup.scorer or nullcontext():
            setup = begin(setup, ranks_here())
            if whole:
                setup = replace(setup, held_out=(*setup.held_out, *setup.task.train)[:whole])
            hopeless = [] if config.task.is_made else unmatched(setup.measured, config.task.checker)
            for note in (*setup.notes, *hopeless):
                view.note(note)
            try:
                found = evaluate(setup, step=steps_taken(Path(model_or_run)) or 0, progress=view.evaluating)
            except Stopped as stopped:
                where = f" while {model_or_run} was measured on {label}, of which nothing is kept"
                raise Stopped(stopped.cause, stopped.exit_code, where) from None
            finally:
                view.stop()
        del setup  # its buffers make room for those of the next task
        yield label, found
