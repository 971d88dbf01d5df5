"""Held-out measurement under a fixed protocol: the same problems and the same random draws every time.

Accuracy is strict (the answer in the required form, equal to the gold answer); lenient accuracy (last number) is reported with
it. The training reward is never the headline: several switches change what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from slimrl.preflight.setup import Setup
from slimrl.preflight.thinking import thinking_tokens
from slimrl.records import Completion, Problem
from slimrl.results import Evaluation, GradedCompletion, Mode, SplitEvaluation
from slimrl.tasks.grade import votes

Progress = Callable[[int, int], None]
"""Receives the number of problems whose completions are done, and that of all."""
Graded = tuple[list[GradedCompletion], list[GradedCompletion]]
"""The samples of a problem, and its greedy completions."""


def _silent(_done: int, _total: int) -> None:
    """The `Progress` of a caller that shows none."""


def evaluate(setup: Setup[Any], *, step: int, progress: Progress = _silent) -> Evaluation:
    """Sample (at the training temperature) and decode greedily on the held-out problems, all in one batch.

    `progress` is called with 0 before the first token, and whenever all completions of a problem are done.
    """
    rollout, evaluation = setup.config.rollout, setup.config.evaluation
    problems, held_out = [*setup.held_out, *setup.harder], len(setup.held_out)
    # The step is not part of the key: before and after meet the same draws, so their difference is paired.
    requests = setup.requests(
        problems, stream="evaluate", step=0, samples=evaluation.samples, greedy=int(evaluation.greedy)
    )
    graded: dict[int, Future[Graded]] = {}

    def grade(index: int, completions: tuple[Completion, ...]) -> None:
        graded[index] = setup.grading.submit(_graded, setup, problems[index], completions)
        progress(len(graded), len(problems))

    progress(0, len(problems))
    try:
        setup.engine.generate(requests, max_new_tokens=rollout.budget, temperature=rollout.temperature, on_group=grade)
        found = [setup.awaited(graded[index]) for index in range(len(problems))]
    except BaseException:
        for future in graded.values():
            future.cancel()
        raise
    return Evaluation(step, _split(found[:held_out]), _split(found[held_out:]))


def _graded(setup: Setup[Any], problem: Problem, completions: Sequence[Completion]) -> Graded:
    """The samples of a problem and its greedy completions, in a thread beside the sampling of others."""
    samples = setup.config.evaluation.samples
    drawn: list[GradedCompletion] = []
    taken: list[GradedCompletion] = []
    for n, completion in enumerate(completions):
        setup.stop.check()  # a symbolic checker may take seconds for each
        if n < samples:
            drawn.append(_grade(setup, problem, completion, "sampled", n))
        else:
            taken.append(_grade(setup, problem, completion, "greedy", n - samples))
    return _voted(setup, drawn), _voted(setup, taken)


def _voted(setup: Setup[Any], rows: Sequence[GradedCompletion]) -> list[GradedCompletion]:
    cast = votes(setup.task.grader, [(row.extracted_strict, row.strict) for row in rows])
    return [replace(row, vote=vote) for row, vote in zip(rows, cast, strict=True)]


def _split(graded: Sequence[Graded]) -> SplitEvaluation:
    """The samples of every problem, and after them the greedy completions."""
    drawn, taken = ([one for both in graded for one in both[mode]] for mode in (0, 1))
    return SplitEvaluation((*drawn, *taken))


def _grade(setup: Setup[Any], problem: Problem, completion: Completion, mode: Mode, sample: int) -> GradedCompletion:
    text = setup.policy.decode(completion.token_ids)
    grade = setup.task.grade(text, problem.answer)
    return GradedCompletion(
        id=problem.id,
        mode=mode,
        sample=sample,
        strict=grade.strict,
        lenient=grade.lenient,
        well_formed=setup.task.style.well_formed(text),
        finish=completion.finish,
        tokens=len(completion.token_ids),
        thinking=thinking_tokens(setup.policy, completion, text),
        question=problem.question,
        answer=problem.answer,
        extracted_strict=grade.extracted_strict,
        extracted_lenient=grade.extracted_lenient,
        text=text,
    )
