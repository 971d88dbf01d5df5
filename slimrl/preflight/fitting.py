"""The problems whose prompts leave room for a completion; the others are counted, and none is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from slimrl.config.defaults import choose
from slimrl.config.files import with_chosen
from slimrl.config.schema import RootConfig
from slimrl.errors import SettingsError
from slimrl.model.policy import Policy
from slimrl.records import Problem
from slimrl.tasks import Task
from slimrl.tasks.curriculum import ENDLESS
from slimrl.tasks.twins import twin_of


@dataclass(frozen=True)
class Fitting:
    """The problems whose prompts fit, and notes on the others."""

    train: Sequence[Problem]
    held_out: Sequence[Problem]
    harder: Sequence[Problem]
    twins: Sequence[Problem]
    notes: tuple[str, ...]

    @property
    def evaluated(self) -> list[Problem]:
        """All problems of an evaluation."""
        return [*self.held_out, *self.harder, *self.twins]


def fitting_problems(task: Task, config: RootConfig, fits: Callable[[Problem], bool]) -> Fitting:
    """All that fit to train on, and as many of the others as an evaluation takes."""
    train, of_train = _fitting("train", task.train, len(task.train), fits)
    held_out, of_test = _fitting("test", task.test, config.evaluation.problems, fits)
    harder, of_harder = _fitting("harder", task.harder, config.evaluation.harder_problems, fits)
    twins, of_twins = _twins(held_out, config, fits)
    return Fitting(train, held_out, harder, twins, (of_train, of_test, of_harder, of_twins))


def _twins(
    held_out: Sequence[Problem], config: RootConfig, fits: Callable[[Problem], bool]
) -> tuple[Sequence[Problem], str]:
    """The twins of the first held-out problems that have one, and a note where they are fewer than wanted."""
    wanted, name = config.evaluation.twins, config.task.name
    made = (twin_of(problem, name, limit=config.task.arithmetic.max_number) for problem in held_out) if wanted else ()
    found = [*islice((twin for twin in made if twin is not None and fits(twin)), wanted)]
    few = f"{len(found)} of {len(held_out)} held-out problems have a twin, fewer than evaluation.twins={wanted}"
    return found, few if len(found) < wanted else ""


def room_for_prompts(config: RootConfig, policy: Policy) -> int:
    """Tokens that the context leaves for a prompt; raises SettingsError where there are none."""
    budget = config.rollout.budget
    if policy.context <= budget:
        raise SettingsError(
            f"rollout.max_new_tokens={budget} fills the model's context of {policy.context} tokens; lower it"
        )
    return policy.context - budget


def _fitting(
    split: str, problems: Sequence[Problem], wanted: int, fits: Callable[[Problem], bool]
) -> tuple[Sequence[Problem], str]:
    """The first `wanted` problems that fit, and a note on those that do not; an endless supply to train on is left
    whole, since `training_problems` passes over what does not fit.
    """
    nothing = SettingsError(
        f"no {split} prompt leaves room for rollout.max_new_tokens in the model's context; lower it"
    )
    if wanted >= ENDLESS:
        if not any(map(fits, islice(problems, 64))):
            raise nothing
        return problems, ""
    kept: list[Problem] = []
    left_out = 0
    for problem in problems if len(problems) < ENDLESS else islice(problems, 10 * wanted):
        if len(kept) == wanted:
            break
        if fits(problem):
            kept.append(problem)
        else:
            left_out += 1
    if left_out and not kept:
        raise nothing
    total = left_out + len(kept)
    return kept, f"{left_out} of {total} {split} prompts do not fit the context and are left out" if left_out else ""


def budget_behind(config: RootConfig, policy: Policy, *, prompt: int) -> int:
    """New tokens behind one prompt of so many tokens."""
    chosen = choose(
        config,
        parameters=policy.parameters,
        adapter=policy.lora is not None,
        context=policy.context,
        longest_prompt=lambda: prompt,
        longest_solution=lambda: 0,
    )
    return with_chosen(config, chosen.values).rollout.budget
