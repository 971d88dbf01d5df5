"""Tasks of packages of `verifiers`: the problems are theirs, and the score of an episode decides what is right."""

import json
from collections.abc import Sequence

from slimrl.config.task import TaskConfig
from slimrl.errors import SettingsError
from slimrl.records import Problem
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.questions import held_out, normalized
from slimrl.tasks.rates import rated
from slimrl.tasks.styles import STYLES


def packaged_task(config: TaskConfig, train: Sequence[Problem], test: Sequence[Problem] | None) -> Task:
    """A task of these problems. Where there are no held-out ones, about a tenth of the others is held out, chosen by a hash.

    Problems are the same where their question, answer and info are; a training problem that is held out too is left out.
    Raises SettingsError where no problem could be held out.
    """
    notes = []
    keys = [_key(problem) for problem in train]
    if test is None:
        held = {*held_out(set(keys))}
        test = [problem for problem, key in zip(train, keys, strict=True) if key in held]
        notes.append(f"{config.name} has no evaluation data, so {len(test)} of its {len(train)} problems are held out")
    else:
        held = {_key(problem) for problem in test}
        if repeated := sum(key in held for key in keys):
            notes.append(f"{config.name}: {repeated} training problems are held out too, and left out of the training")
    if not test:
        raise SettingsError(
            f"task.name={config.name}: none of its {len(train)} problems can be held out; give it evaluation data"
        )
    left = [problem for problem, key in zip(train, keys, strict=True) if key not in held]
    chosen, rates, on_rates = rated(left, config) if config.rates else (left, {}, ())
    style, notes = STYLES[config.style], [*notes, *on_rates]
    return Task(config.name, chosen, test, (), style, Grader("none"), "", {}, notes=tuple(notes), rates=rates)


def _key(problem: Problem) -> str:
    info = json.dumps(problem.columns.get("info"), sort_keys=True, default=str)
    return f"{normalized(problem.question)}\n{problem.answer}\n{info}"
