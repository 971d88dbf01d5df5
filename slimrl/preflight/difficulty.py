"""The success rate of every problem, sampled before a training that is to choose among them (`slimrl difficulty`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from slimrl import __version__
from slimrl.errors import SettingsError
from slimrl.preflight.fitting import room_for_prompts
from slimrl.preflight.setup import Setup
from slimrl.records import Completion, Problem
from slimrl.tasks.curriculum import ENDLESS
from slimrl.tasks.rates import Rate, question_digest

CHUNK = 512
"""Problems in one call of the sampler, whose random numbers are in memory at once: 8 bytes for each token that may be drawn."""
MAY_DIFFER = ("model", "dtype", "date", "slimrl")
"""Of what `origin_of` says, that which changes no rate, or by rounding alone."""

OnRate = Callable[[Rate], None]
"""Receives the rate of a problem as soon as its completions are graded, in another thread and in any order."""


def measured_problems(setup: Setup[Any], split: str, limit: int | None) -> Sequence[Problem]:
    """The problems of a split, `train` or `test`, that leave room for a completion; with `limit` the first of them.

    Raises SettingsError where one of them has no answer.
    """
    found: Sequence[Problem] = setup.task.train
    if split == "test":
        room = room_for_prompts(setup.config, setup.policy)
        found = [problem for problem in setup.task.test if len(setup.prompt_ids(problem)) <= room]
    found = found[:limit]
    assert len(found) < ENDLESS
    if unanswered := next((problem for problem in found if not problem.answer), None):
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
    return {
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


def measure_rates(setup: Setup[Any], problems: Sequence[Problem], samples: int, on_rate: OnRate) -> None:
    """Sample and grade `samples` completions of each problem, at the training temperature.

    The draws of a problem depend on the seed and its id alone, so it does not matter which others are measured with it.
    """
    for start in range(0, len(problems), CHUNK):
        _measure(setup, problems[start : start + CHUNK], samples, on_rate)


def _measure(setup: Setup[Any], problems: Sequence[Problem], samples: int, on_rate: OnRate) -> None:
    rollout = setup.config.rollout
    requests = setup.requests(problems, stream="difficulty", step=0, samples=samples)
    graded: list[Future[None]] = []

    def grade(index: int, completions: tuple[Completion, ...]) -> None:
        graded.append(setup.grading.submit(_grade, setup, problems[index], completions, on_rate))

    try:
        setup.engine.generate(requests, max_new_tokens=rollout.budget, temperature=rollout.temperature, on_group=grade)
        for future in graded:
            setup.awaited(future)
    except BaseException:
        for future in graded:
            future.cancel()
        raise


def _grade(setup: Setup[Any], problem: Problem, completions: Sequence[Completion], on_rate: OnRate) -> None:
    right = 0
    for completion in completions:
        setup.stop.check()  # a symbolic checker may take seconds for each
        right += setup.task.grade(setup.text(completion), problem.answer).strict
    on_rate(Rate(problem.id, question_digest(problem), right, len(completions)))
