"""The rewards of a run, paid or only measured: each is a function with TRL's signature, a weight and declared bounds.

This room knows tasks and settings, and nothing of models, sampling or training.

    def reward(completions, **columns) -> list[float | None]

`columns` has one item per completion: prompts, completion_ids, id, question, answer, solution, difficulty, and every
other field of the data row. None means "does not apply here" and is left out of the sum, as in TRL (a data set of several
tasks has a reward for each); a completion to which no reward applies is unscorable, which is not 0.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from slimrl.config.places import RUNS
from slimrl.config.rewards import RewardsConfig, is_programs
from slimrl.errors import SettingsError
from slimrl.rewards.builtin import BUILT_IN, BuiltIn, cosine
from slimrl.rewards.calls import is_asynchronous
from slimrl.rewards.custom import load_function
from slimrl.rewards.judge import CACHE, Judge
from slimrl.rewards.reward import Reward as Reward
from slimrl.tasks import Task

TRIED, JUDGED = 64, 8
"""Rows whose gold answers an unbounded function and a judge are tried on before a run."""


def load_rewards(
    config: RewardsConfig, task: Task, *, max_new_tokens: int, elsewhere: bool = False, output: Path = Path(RUNS)
) -> tuple[Reward, ...]:
    """The rewards that are paid or only measured; with `elsewhere` workers call the user's functions, and none is loaded here but
    those of the program.

    Judges keep what they said in `output`. Raises SettingsError where a reward needs another style than the task's, or right
    answers of a task without any, a custom function or a judge cannot be loaded, or two rewards have the same name.
    """
    arguments = {
        "task": task,
        "max_new_tokens": max_new_tokens,
        "buffer": config.buffer(max_new_tokens),
        "cosine": cosine(config),
        "ngram": config.repetition_ngram,
    }
    rewards: dict[str, Reward] = {}

    def add(reward: Reward, setting: str) -> None:
        if reward.name in rewards:
            raise SettingsError(f"{setting} has the name of another reward, {reward.name}; rename it")
        rewards[reward.name] = reward

    for name, row in BUILT_IN.items():
        if name in config.built_in:
            _refuse_misfit(name, row, task)
            add(_built_in(name, row, config, arguments), name)
    files: dict[Path, object] = {}
    for spec, custom in config.custom.items():
        there = elsewhere and not is_programs(spec)
        function = _called_elsewhere if there else load_function(spec, custom.arguments, files=files)
        reward = Reward(
            spec.rpartition(":")[2], function, custom.weight, custom.low, custom.high, custom.completions, custom=True
        )
        demanded = reward.best is not None and not reward.reads_environments
        add(reward if demanded else replace(reward, sample=TRIED), f"rewards.custom: {spec!r}")
    for name in config.judges:
        judge = config.judge[name]
        function = Judge(name, judge, output / CACHE if judge.cache == "auto" else Path(judge.cache).expanduser())
        add(Reward(name, function, judge.weight, judge.low, judge.high, sample=JUDGED), f"rewards.judge.{name}")
    _refuse_idle_deadline(config, [rewards[spec.rpartition(":")[2]] for spec in config.of_the_program])
    return tuple(rewards.values())


def declared_bounds(config: RewardsConfig) -> dict[str, tuple[float, float]]:
    """The bounds of every reward that is paid or measured, by its settings and before weights; infinite where none are known."""
    rows = [(name, row) for name, row in BUILT_IN.items() if name in config.built_in]
    found: dict[str, tuple[float | None, float | None]] = {
        name: row.values(config)[:2] if row.values else (row.low, row.high) for name, row in rows
    }
    found |= {spec.rpartition(":")[2]: (custom.low, custom.high) for spec, custom in config.custom.items()}
    found |= {name: (config.judge[name].low, config.judge[name].high) for name in config.judges}
    return {name: (-inf if low is None else low, inf if high is None else high) for name, (low, high) in found.items()}


def _built_in(name: str, row: BuiltIn, config: RewardsConfig, arguments: dict[str, Any]) -> Reward:
    function = row.as_published if config.as_published and row.as_published else row.function
    bound = partial(function, *(arguments[argument] for argument in row.needs))
    low, high, gold = (row.low, row.high, None) if row.values is None else row.values(config)
    weight = getattr(config, name)
    return Reward(name, bound, weight, low, high, gold=gold, draws=row.draws, pays_turns=row.pays_turns)


def _refuse_misfit(name: str, row: BuiltIn, task: Task) -> None:
    if row.style == "code" != task.style.name:
        raise SettingsError(
            f"rewards.{name} runs programs, which only task.name=code asks for; set it, or rewards.{name}=0"
        )
    if row.style not in ("", task.style.name):
        raise SettingsError(
            f"rewards.{name} reads the case study's tags, which task.style={task.style.name} does not ask for; "
            f"set task.style={row.style}"
        )
    if row.answer and task.grader.checker == "none":
        raise SettingsError(
            f"rewards.{name} compares with right answers, and task.checker=none has none; set rewards.{name}=0 and pay "
            "another reward, or choose another task.checker"
        )


def _refuse_idle_deadline(config: RewardsConfig, programs: Sequence[Reward]) -> None:
    """Of the functions of the program only those that are asynchronous have a deadline."""
    alone = programs and len(programs) == len(config.custom)
    is_set = config.deadline != RewardsConfig.model_fields["deadline"].default
    if alone and is_set and not any(is_asynchronous(reward.function) for reward in programs):
        raise SettingsError(
            "rewards.deadline acts on rewards.custom in workers and on `async def` functions, and there are none; remove it"
        )


def _called_elsewhere(**_: Any) -> list[float]:
    raise AssertionError("this process loads no reward functions of the user's")
