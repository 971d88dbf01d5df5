"""The rewards of a run before its first step: what scores them, and the check that gold answers earn the maximum."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

from slimrl.config.rewards import RewardsConfig
from slimrl.config.schema import TrainConfig
from slimrl.errors import DataError, SettingsError
from slimrl.preflight.notes import gold_sentence
from slimrl.records import Problem
from slimrl.rewards import Reward, load_rewards
from slimrl.rewards.custom import is_offered
from slimrl.rewards.gold import Completed, GoldReport, Submit, check_gold
from slimrl.rewards.loading import unloadable
from slimrl.rewards.workers import Scorer, worker_count
from slimrl.tasks import Task
from slimrl.tasks.checkers import answer_fault, fitting_checker
from slimrl.tasks.curriculum import ENDLESS
from slimrl.tasks.numbers import parse_number
from slimrl.terms import Checker
from slimrl.text import visible

GOLD_SAMPLE = 1000
"""Training problems whose gold answer is checked where the supply is endless; finite sets are checked whole."""
KINDS = {"choice": "letters of options", "exact": "words", "symbolic": "letters, words, LaTeX"}
"""The answers that checkers are for."""


def make_scorer(
    task: Task, config: RewardsConfig, budget: int, output: Path, *, here: bool
) -> tuple[tuple[Reward, ...], Scorer]:
    """The rewards of a run, and what scores them, which is to be closed; judges keep what they said in `output`.

    With `here` functions read the environments, so this process calls them; raises SettingsError where workers are to.
    """
    if here and config.workers not in ("auto", 0):
        raise SettingsError(
            f"rewards.workers={config.workers}: reward functions read the environments, which are in the process of the run; "
            "set rewards.workers=0"
        )
    workers = 0 if here else worker_count(config)
    rewards = load_rewards(config, task, max_new_tokens=budget, elsewhere=workers > 0, output=output)
    return rewards, Scorer(task, rewards, config, max_new_tokens=budget, workers=workers, show=show_printed)


def unmatched(problems: Sequence[Problem], checker: Checker) -> list[str]:
    """A note on held-out answers that no completion can match; raises DataError where that is true of all of them."""
    answered = [problem for problem in problems if problem.answer]
    faults = [reason for one in answered if (reason := answer_fault(checker, one.answer))]
    if not faults:
        return []
    if len(faults) == len(answered):
        raise DataError(f"none of the {len(faults)} held-out answers can be matched by any completion: {faults[0]}")
    return [f"{len(faults)} of the {len(answered)} held-out answers cannot be matched by any completion: {faults[0]}"]


def measurable(config: RewardsConfig) -> tuple[RewardsConfig, list[str]]:
    """The rewards that an evaluation can measure beside its accuracy, and notes on those that cannot be loaded.

    Each is tried before anything is sampled: a file may be gone, a package not installed, a judge's key not exported.
    """
    kept_back = {
        spec: f"{spec} is a function of the Python program that began the run; there slimrl.evaluate measures it (rewards=[...])"
        for spec in config.of_the_program
        if not is_offered(spec)
    }
    refused = kept_back | unloadable(
        _without(config, config.of_the_program),  # those that are offered are here already
        elsewhere=worker_count(config) > 0,
        show=lambda data: show_printed(data.decode("utf-8", "replace")),
    )
    notes = [f"not measured: {sentence}" for sentence in refused.values()]
    return _without(config, refused).model_copy(update={"correct": 0.0}), notes


def _without(config: RewardsConfig, refused: Collection[str]) -> RewardsConfig:
    """The settings without these functions, by their specs, and judges, by their names."""
    left = {
        "custom": {spec: custom for spec, custom in config.custom.items() if spec not in refused},
        "judge": {name: judge for name, judge in config.judge.items() if name not in refused},
    }
    return config.model_copy(update={**left, "watched": [name for name in config.watched if name not in refused]})


def show_printed(text: str) -> None:
    """Show what a reward or an environment prints as harmless text: it may be what a model wrote."""
    sys.stderr.write(visible(text))


def checked_gold(
    task: Task,
    held_out: Sequence[Problem],
    config: TrainConfig,
    rewards: Sequence[Reward],
    submit: Submit,
    completed: Completed,
) -> GoldReport:
    """The report on the gold answers; raises SettingsError for failures, unless `rewards.gold_check` only reports them."""
    train = task.train if len(task.train) < ENDLESS else islice(task.train, GOLD_SAMPLE)
    problems = [*train, *held_out]
    episodes = bool(config.environment.name)
    gold = check_gold(task, problems, rewards, submit, completed, episodes)
    if not gold.failures or config.rewards.gold_check != "refuse":
        return gold
    way_out = "correct the data"
    own = {spec.rpartition(":")[2] for spec in config.rewards.custom}
    if all(failure.reward in own for failure in gold.failures):
        way_out = "correct the data or the function, or leave out its bounds in rewards.custom, which say what gold answers earn"
    first = gold.failures[0]
    problem = next(p for p in problems if p.id == first.id)
    written = task.gold_text(problem)
    read = f" {written}"  # behind a plain prompt it begins with a space
    stops = sorted((at, stop) for stop in config.rollout.stop if (at := read.find(stop)) >= 0)
    if stops and first.text.strip() == read[: stops[0][0]].strip():
        stop = stops[0][1]
        way_out = f"a completion ends in front of {stop!r}, so no answer is read; set rollout.stop to texts without it, or to []"
    elif first.text != written and not check_gold(task, [problem], rewards, submit, episodes=episodes).failures:
        way_out = (
            "allow a space first, with which a completion behind a plain prompt begins"
            if first.text == f" {written}"
            else (
                f"the tokenizer decodes the gold text {written[-80:]!r} as {first.text[-80:]!r}; choose another task.style, or "
                "give the model a tokenizer that keeps this text"
            )
        )
    elif config.task.checker == "numeric" and any(parse_number(f.answer) is None for f in gold.failures):
        # a checker for letters or words only where every answer is one
        failed = {failure.id: failure.answer for failure in gold.failures}
        checker = fitting_checker([*failed.values()]) if len(failed) == gold.n else "symbolic"
        way_out = f"set task.checker={checker} for answers that are no numbers ({KINDS[checker]}), or correct the data"
    raise SettingsError(f"{gold_sentence(gold)}; {way_out}, or set rewards.gold_check=report to continue")
