"""The rewards of a run: those whose weight is not 0, each a function with TRL's signature, a weight and declared bounds.

This room knows tasks and settings, and nothing of models, sampling or training.

    def reward(completions, **columns) -> list[float | None]

`columns` has one item per completion: prompts, completion_ids, id, question, answer, solution, difficulty, and every
other field of the data row. None means "does not apply here" and is left out of the sum, as in TRL (a data set of several
tasks has a reward for each); a completion to which no reward applies is unscorable, which is not 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from slimrl.config.rewards import RewardsConfig
from slimrl.errors import SettingsError
from slimrl.rewards.builtin import BUILT_IN
from slimrl.rewards.custom import load_function
from slimrl.tasks import Task
from slimrl.terms import CompletionForm


@dataclass(frozen=True)
class Reward:
    """A function of completions with its weight and its bounds."""

    name: str
    function: Callable[..., Any]
    """TRL's signature; returns one float, or None, for each completion."""
    weight: float
    low: float
    high: float
    """Bounds before the weight; the gold answer must earn the better one."""
    completions: CompletionForm = "text"
    draws: bool = False
    """Chance decides, from the keyword `draw` (`Sampled.draw`): a gold answer earns what any text may earn."""

    @property
    def best(self) -> float:
        """The value that the gold answer must earn: `high`, or `low` where the weight is negative."""
        return self.high if self.weight > 0 else self.low


def load_rewards(
    config: RewardsConfig, task: Task, *, max_new_tokens: int, elsewhere: bool = False
) -> tuple[Reward, ...]:
    """The rewards whose weight is not 0; with `elsewhere` workers call the user's functions, and none is loaded here.

    Raises SettingsError where a reward needs another style than the task's, or right answers of a task without any, a custom
    function cannot be loaded, or two rewards have the same name.
    """
    arguments = {"task": task, "max_new_tokens": max_new_tokens, "buffer": config.buffer(max_new_tokens)}
    rewards: dict[str, Reward] = {}
    for name, row in BUILT_IN.items():
        weight = getattr(config, name)
        if not weight:
            continue
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
        function = row.as_published if config.as_published and row.as_published else row.function
        bound = partial(function, *(arguments[argument] for argument in row.needs))
        rewards[name] = Reward(name, bound, weight, row.low, row.high, draws=row.draws)
    for spec in config.custom_paid:
        name, custom = spec.rpartition(":")[2], config.custom[spec]
        if name in rewards:
            raise SettingsError(f"rewards.custom: {spec!r} has the name of another reward, {name}; rename the function")
        function = _called_elsewhere if elsewhere else load_function(spec)
        rewards[name] = Reward(name, function, custom.weight, custom.low, custom.high, custom.completions)
    return tuple(rewards.values())


def _called_elsewhere(**_: Any) -> list[float]:
    raise AssertionError("this process loads no reward functions of the user's")
