"""The success rate of every problem, sampled before a training that is to choose among them (`slimrl difficulty`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from slimrl import __version__
from slimrl.errors import SettingsError
from slimrl.preflight.environment import environment_digest, played
from slimrl.preflight.fitting import room_for_prompts
from slimrl.preflight.setup import Setup
from slimrl.records import Completion, Played, Problem
from slimrl.tasks.curriculum import ENDLESS
from slimrl.tasks.rates import Rate, question_digest

CHUNK = 512
"""Problems in one call of the sampler, whose random numbers are in memory at once: 8 bytes for each token that may be drawn."""
MAY_DIFFER = ("model", "dtype", "date", "slimrl")
"""Of what `origin_of` says, that which changes no rate, or by rounding alone."""

OnRate = Callable[[Rate], None]
"""Receives the rate of a problem as soon as its completions are graded, in another thread and in any order."""
Failed = tuple[str, str]
"""The id of a problem, and why an episode of it broke off."""


def measured_problems(setup: Setup[Any], split: str, limit: int | None) -> Sequence[Problem]:
    """The problems of a split, `train` or `test`, that leave room for a completion; with `limit` the first of them.

    Raises SettingsError where one of them has no answer, and no score of an environment decides what is right.
    """
    found: Sequence[Problem] = setup.task.train
    if split == "test":
        room = room_for_prompts(setup.config, setup.policy)
        found = [problem for problem in setup.task.test if len(setup.prompt_ids(problem)) <= room]
    found = found[:limit]
    assert len(found) < ENDLESS
    scored = setup.rules is not None and setup.rules.package is not None
    if not scored and (unanswered := next((problem for problem in found if not problem.answer), None)):
        raise SettingsError(f"{unanswered.id} has no answer, so there is no success rate; add one to every row")
    return found


def origin_of(
    setup: Setup[Any], problems: Sequence[Problem], *, split: str, samples: int, weights: str
) -> dict[str, Any]:
    """The first line of a file of rates: all that decides them.

    The first prompt stands for tokenizer, template, instruction and the date that a template writes.
    """
    config, rollout = setup.config, setup.config.rollout
    prompt = hashlib.sha256(repr(setup.prompt_ids(problems[0])).encode()).hexdigest()
    environment = config.environment.model_dump(exclude={"deadline"})
    return {
        **({"environment": environment | {"files": environment_digest(config.environment)}} if setup.rules else {}),
        "task": config.task.name,
        "split": split,
        "model": config.model.path,
        "weights": weights,
        "template": "plain" if setup.prompter.chat is None else "chat",
        "first_prompt": prompt[:16],
        "prompt_date": setup.prompter.date,
        "style": config.task.style,
        "checker": config.task.checker,
        "temperature": rollout.temperature,
        "max_new_tokens": rollout.budget,
        "stop": rollout.stop,
        "samples": samples,
        "seed": config.seed,
        "dtype": str(setup.policy.model.dtype).removeprefix("torch."),
        "date": datetime.now().isoformat(timespec="seconds"),
        "slimrl": __version__,
    }


def measure_rates(setup: Setup[Any], problems: Sequence[Problem], samples: int, on_rate: OnRate) -> list[Failed]:
    """Sample and grade `samples` completions of each problem, at the training temperature; returns the episodes that broke off.

    Such an episode is in no rate, and a problem has none where all of its episodes broke off. The draws of a problem depend on
    the seed and its id alone, so it does not matter which others are measured with it.
    Raises SettingsError where all episodes of a call of the sampler broke off.
    """
    failed: list[Failed] = []
    for start in range(0, len(problems), CHUNK):
        part = problems[start : start + CHUNK]
        broken = _measure(setup, part, samples, on_rate)
        if len(broken) == samples * len(part):
            name, why = broken[0]
            raise SettingsError(f"{why}, on problem {name}; correct the class of environment.name")
        failed += broken
    return failed


def _measure(setup: Setup[Any], problems: Sequence[Problem], samples: int, on_rate: OnRate) -> list[Failed]:
    rollout = setup.config.rollout
    requests = setup.requests(problems, stream="difficulty", step=0, samples=samples)
    graded: list[Future[list[Failed]]] = []

    def grade(index: int, completions: tuple[Completion, ...]) -> None:
        episodes = [*zip(completions, played(requests[index], completions) or [Played()] * samples, strict=True)]
        graded.append(setup.grading.submit(_grade, setup, problems[index], episodes, on_rate))

    try:
        setup.engine.generate(requests, max_new_tokens=rollout.budget, temperature=rollout.temperature, on_group=grade)
        return [failure for future in graded for failure in setup.awaited(future)]
    except BaseException:
        for future in graded:
            future.cancel()
        raise


def _grade(
    setup: Setup[Any], problem: Problem, episodes: Sequence[tuple[Completion, Played]], on_rate: OnRate
) -> list[Failed]:
    """Tell of the rate of a problem; the failures of its episodes."""
    whole = [(completion, told.right) for completion, told in episodes if not told.failed]
    right = 0
    for completion, verdict in whole:
        setup.stop.check()  # a symbolic checker may take seconds for each
        right += setup.task.grade(setup.text(completion), problem.answer).strict if verdict is None else verdict
    if whole:
        on_rate(Rate(problem.id, question_digest(problem), right, len(whole)))
    return [(problem.id, told.failed) for _, told in episodes if told.failed]
