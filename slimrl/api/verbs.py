"""Measuring from Python: `evaluate`, `compare` and `sample`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from slimrl.api import environments
from slimrl.api import problems as rows
from slimrl.api import rewards as scores
from slimrl.api.asking import Answer, sample_of
from slimrl.api.comparing import Outputs, Parts, matched, stored_outputs
from slimrl.api.finished import Change
from slimrl.api.guest import guest
from slimrl.api.measuring import evaluation_of, measuring_settings
from slimrl.api.models import Model, placed
from slimrl.api.ranks import demand_leader, demand_processes
from slimrl.api.screen import open_screen
from slimrl.api.settings import from_keywords
from slimrl.api.stored import read_outputs
from slimrl.config.files import merge
from slimrl.config.places import is_address
from slimrl.config.schema import EvalConfig
from slimrl.errors import DataError, SettingsError
from slimrl.machine.signals import Stop
from slimrl.results import Evaluation
from slimrl.rewards.custom import offering
from slimrl.runs.remote import RECORDS, WHOLE
from slimrl.text import percent, visible

ALL = 1_000_000_000
"""Held-out problems, of which all there are are measured."""


@dataclass(frozen=True)
class Compared:
    """Two models on the same problems: the second minus the first."""

    names: tuple[str, str]
    parts: Parts
    """By part (`test`, `harder`, `twins`), then by mode (`sampled`, `greedy`): see `slimrl.measures.Paired`."""
    notes: tuple[str, ...] = field(default=())

    @property
    def change(self) -> Change:
        """The paired difference of strict accuracy of the first part, sampled where that was measured."""
        paired = next(iter(next(iter(self.parts.values())).values()))
        return Change(paired.accuracy["difference"], paired.accuracy["low"], paired.accuracy["high"], paired.n)

    def __repr__(self) -> str:
        lines = [f"<slimrl.Compared {visible(self.names[1])} against {visible(self.names[0])}>"]
        for part, modes in self.parts.items():
            for mode, one in modes.items():
                shares = " -> ".join(f"{percent(one.accuracy[side])} %" for side in ("first", "second"))
                change = Change(one.accuracy["difference"], one.accuracy["low"], one.accuracy["high"], one.n)
                moved = f"won {len(one.won)}, lost {len(one.lost)}"
                lines.append(f"{visible(part)}, {mode}: {shares}, {change}; {moved}")
        return "\n".join([*lines, *(f"note: {visible(note)}" for note in self.notes)])


def evaluate(
    model: Model,
    data: rows.Data | None = None,
    *,
    rewards: scores.Rewards | None = None,
    environment: environments.Environment | None = None,
    limit: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> Evaluation:
    """Held-out accuracy of a model or a run, strict and lenient, sampled and greedy, with every completion.

    Args:
        model: as in `train`; a run brings its own settings.
        data: rows or a file, of which every problem is measured, a data set on the Hub, of which the test split is, or a task's
            name; by default the run's own held-out problems.
        rewards: what else is measured, as in `train`; by default the run's own.
        environment: the one to measure in, as in `train`; by default the run's own.
        limit: at most so many problems of each split; 0: no limit.
        quiet: show nothing; otherwise progress goes to stderr.
        settings: as in `train`, but only those that measuring reads.

    Raises the errors of `train`.
    """
    with placed(model) as path:
        played = environments.read_environment(environment)
        chosen = merge({"environment": played.settings} if played.settings else {}, from_keywords(settings))
        with offering(played.classes):
            return _evaluation(path, data, scores.read_rewards(rewards), chosen, limit=limit, quiet=quiet)


def _evaluation(
    model: str, data: rows.Data | None, rewards: scores.Given, settings: Mapping[str, Any], *, limit: int, quiet: bool
) -> Evaluation:
    with _measured_data(data) as (task, section, whole), guest() as stop, offering(rewards.functions):
        given = {"task": section, "rewards": rewards.settings, "evaluation": {"problems": ALL} if whole else {}}
        more = merge({name: values for name, values in given.items() if values}, settings)
        config = _limited(measuring_settings(model, more, task, other_data="path" in section), limit)
        screen = open_screen(config, quiet=quiet)
        for note in rewards.notes:
            screen.note(note)
        most = (limit or ALL) if whole else 0
        found = _on_devices(config, stop, partial(evaluation_of, model, config, screen, stop, whole=most))
        screen.evaluation(found)
        return found


def _on_devices(config: EvalConfig, stop: Stop, measure: Callable[[], Evaluation]) -> Evaluation:
    """The evaluation that `measure` makes, with the processes that `devices` asks for."""
    if config.devices == 1:  # also in a program that torchrun started, whose ranks measure each for itself
        return measure()
    demand_leader()
    demand_processes(config)
    from slimrl.parallel.team import measured_together  # imports torch

    found = measured_together([config], stop, measure)
    assert found is not None  # this process leads
    return found


@contextmanager
def _measured_data(data: rows.Data | None) -> Iterator[tuple[str | None, dict[str, Any], bool]]:
    """The name of the task to change to, its section of settings, and True where all problems of it are to be measured.

    Rows lie in a folder that the end of the block removes.
    """
    from slimrl.config.places import is_hub_data

    given = rows.read_data(data)
    path = str(given.settings.get("path", ""))
    if not path:
        yield given.settings.get("name"), {}, False
        return
    with tempfile.TemporaryDirectory(prefix="slimrl-") as folder:
        for name, text in given.files.items():
            path = str(Path(folder) / name)
            Path(path).write_text(text, encoding="utf-8")
        of_hub = is_hub_data(path)
        try:
            yield "jsonl", {"path": path, "test_path": path if of_hub else ""}, not of_hub
        except DataError as error:
            raise DataError(rows.as_given(str(error), folder)) from None


def _limited(config: EvalConfig, limit: int) -> EvalConfig:
    if not limit:
        return config
    evaluation = config.evaluation
    most = {key: min(limit, getattr(evaluation, key)) for key in ("problems", "harder_problems", "twins")}
    return config.model_copy(update={"evaluation": evaluation.model_copy(update=most)})


def compare(
    first: Model | Evaluation,
    second: Model | Evaluation,
    data: rows.Data | None = None,
    *,
    limit: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> Compared:
    """The paired difference of two models on the problems that they share, with those that were won and lost.

    A run goes by its stored evaluation unless `data` or settings ask for another; a file of stored outputs and an `Evaluation`
    go as they are; every other model is measured, as `evaluate` does. Raises the errors of `train`, and DataError where they
    share no problem.
    """
    from slimrl.preflight.prompting import demand_model

    chosen = from_keywords(settings)
    given = [*settings, *([] if data is None else ["data"])]
    if given and all(_is_stored(side) for side in (first, second)):
        raise SettingsError(f"{given[0]} has no effect on stored outputs, which are compared as they are; remove it")
    for side in (first, second):  # before either is measured
        if (
            isinstance(side, str | Path)
            and not is_address(str(side))
            and not Path(side).is_file()
            and not any((Path(side) / "evals").glob("step-*.jsonl"))
        ):
            demand_model(str(side))
    sides = [_outputs(side, data, chosen, limit=limit, quiet=quiet) for side in (first, second)]
    if sides[0].name == sides[1].name:
        sides = [
            Outputs(f"{side.name} ({order})", side.splits)
            for side, order in zip(sides, ("first", "second"), strict=True)
        ]
    parts, notes = matched(sides[0], sides[1], limit or None)
    return Compared((sides[0].name, sides[1].name), parts, tuple(notes))


def _is_stored(side: Model | Evaluation) -> bool:
    return isinstance(side, Evaluation) or (isinstance(side, str | Path) and Path(side).is_file())


def _outputs(
    side: Model | Evaluation, data: rows.Data | None, settings: Mapping[str, Any], *, limit: int, quiet: bool
) -> Outputs:
    """The completions of one side, stored or measured now."""
    if isinstance(side, Evaluation):
        return Outputs(
            f"the evaluation after step {side.step}", {("", name): rows for name, rows in side.splits.items()}
        )
    with placed(side, WHOLE if settings or data is not None else RECORDS) as path:
        if Path(path).is_file():
            return Outputs(path, read_outputs(path))
        stored = sorted((Path(path) / "evals").glob("step-*.jsonl"))
        if stored and data is None and not settings:
            return Outputs(side if isinstance(side, str) else path, stored_outputs(path, str(stored[-1])))
        found = _evaluation(path, data, scores.Given(), settings, limit=limit, quiet=quiet)
        name = side if isinstance(side, str) else Path(path).name
        return Outputs(name, {("", split): rows for split, rows in found.splits.items()})


def sample(model: Model, question: str, n: int = 1, *, greedy: bool = False, **settings: Any) -> list[Answer]:
    """Ask a model or a run one question; its instruction and answer form are those it was trained with.

    `n` completions are drawn, the same ones for the same `seed`; `greedy` gives one. Raises the errors of `train`.
    """
    with placed(model) as path:
        return sample_of(path, question, n, greedy=greedy, settings=settings)
