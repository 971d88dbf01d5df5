"""Held-out measurement under a fixed protocol: the same problems and the same random draws every time.

Accuracy is strict (the answer in the required form, equal to the gold answer); lenient accuracy (last number) is reported with
it, an independent checker's dispute, and every reward that is paid. The training reward is never the headline: several switches
change what it means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from slimrl.measures import Bounds
from slimrl.preflight.environment import played, posed
from slimrl.preflight.setup import Setup
from slimrl.preflight.thinking import thinking_tokens
from slimrl.records import Completion, Group, Played, Problem, policy_turns
from slimrl.results import Evaluation, GradedCompletion, Mode, SplitEvaluation
from slimrl.rewards import declared_bounds as declared_bounds
from slimrl.rewards.judge import Judge
from slimrl.rewards.reward import Reward
from slimrl.rewards.scoring import Sampled
from slimrl.tasks import independent
from slimrl.tasks.votes import votes

Progress = Callable[[int, int], None]
"""Receives the number of problems whose completions are done, and that of all."""


class Graded(NamedTuple):
    """The completions of one problem, graded."""

    drawn: list[GradedCompletion]
    taken: list[GradedCompletion]
    """The samples, and the greedy ones."""
    scored: Future[Group] | None
    """What rewards give for all of them, in this order; None where none is measured."""


def _silent(_done: int, _total: int) -> None:
    """The `Progress` of a caller that shows none."""


def evaluate(setup: Setup[Any], *, step: int, progress: Progress = _silent) -> Evaluation:
    """Sample (at the training temperature) and decode greedily on the held-out problems, all in one batch.

    `progress` is called with 0 before the first token, and whenever all completions of a problem are done.
    """
    rollout, evaluation, problems = setup.config.rollout, setup.config.evaluation, setup.measured
    # The step is not part of the key: before and after meet the same draws, so their difference is paired.
    requests = setup.requests(
        problems, stream="evaluate", step=0, samples=evaluation.samples, greedy=int(evaluation.greedy)
    )
    graded: dict[int, Future[Graded]] = {}

    def grade(index: int, completions: tuple[Completion, ...]) -> None:
        if setup.task.runs_programs:
            setup.task.begin([setup.text(completion) for completion in completions], problems[index].answer)
        told = played(requests[index], completions)
        graded[index] = setup.grading.submit(_graded, setup, problems[index], completions, told)
        progress(len(graded), len(problems))

    progress(0, len(problems))
    try:
        setup.engine.generate(requests, max_new_tokens=rollout.budget, temperature=rollout.temperature, on_group=grade)
        found = [_scored(setup, setup.awaited(graded[index])) for index in range(len(problems))]
    except BaseException:
        for future in graded.values():
            future.cancel()
        raise
    bounds = bounds_of(setup)
    rest = iter(found)
    splits = (islice(rest, len(split)) for split in (setup.held_out, setup.harder, setup.twins))
    test, harder, twins = (_split([*split], bounds) for split in splits)
    return Evaluation(step, test, harder, twins, _ways_out(setup.rewards))


def _ways_out(rewards: Sequence[Reward]) -> dict[str, str]:
    """By the reason of completions without a score: the words of the judge that gave none, and what to change."""
    judges = {reward.name: reward.function for reward in rewards if isinstance(reward.function, Judge)}
    failures = {name: judge.failure for name, judge in judges.items()}
    return {
        f"reward {name} {failure.reason}": f"{f' ({failure.where})' if failure.where else ''}; {failure.remedy}"
        for name, failure in failures.items()
        if failure.remedy
    }


def bounds_of(setup: Setup[Any]) -> Mapping[str, Bounds]:
    """The bounds of the rewards that an evaluation measures."""
    declared = declared_bounds(setup.config.rewards) if setup.rewards else {}
    return {reward.name: declared[reward.name] for reward in setup.rewards}


def _graded(setup: Setup[Any], problem: Problem, completions: Sequence[Completion], told: Sequence[Played]) -> Graded:
    """The samples of a problem and its greedy completions, in a thread beside the sampling of others."""
    samples = setup.config.evaluation.samples
    texts = [setup.text(completion) for completion in completions]
    scored: Future[Group] | None = None
    if setup.scorer is not None and setup.rewards:
        # at step 0 always, as the tokens: rewards that draw meet the same draws before and after
        patience = math.ceil(len(texts) / setup.config.rollout.group_size)
        sampled = Sampled(
            posed(setup.rules, problem), completions, texts, 0, steps=setup.config.steps, seed=setup.config.seed
        )
        scored = setup.scorer.submit(replace(sampled, played=told, patience=patience))
    drawn: list[GradedCompletion] = []
    taken: list[GradedCompletion] = []
    for n, (completion, text) in enumerate(zip(completions, texts, strict=True)):
        setup.stop.check()  # a symbolic checker may take seconds for each
        row = _grade(setup, problem, completion, text, ("sampled", n) if n < samples else ("greedy", n - samples))
        if told and (right := told[n].right) is not None:
            row = replace(row, strict=right, lenient=right)
        if told:
            one = told[n]
            row = replace(row, turns=policy_turns(one.turns), said=one.turns, turn_rewards=one.rewards)
            known = one.score is not None and math.isfinite(one.score)
            row = replace(row, environment_score=one.score if known else None, failed=one.failed)
        if told and told[n].failed:  # an episode that broke off has no answer
            row = replace(row, strict=False, lenient=False, unscorable=told[n].failed)
        (drawn if n < samples else taken).append(row)
    return Graded(_voted(setup, drawn), _voted(setup, taken), scored)


def _voted(setup: Setup[Any], rows: Sequence[GradedCompletion]) -> list[GradedCompletion]:
    found = votes(setup.task.grader, [(row.extracted_strict, row.strict) for row in rows])
    return [
        replace(row, vote=vote, uncompared=index in found.uncompared)
        for index, (row, vote) in enumerate(zip(rows, found.cast, strict=True))
    ]


def _scored(setup: Setup[Any], graded: Graded) -> Graded:
    """The same with what rewards give, once they are done."""
    if graded.scored is None:
        return graded
    names = [reward.name for reward in setup.rewards]
    rollouts = iter(setup.awaited(graded.scored).rollouts)
    drawn, taken = (
        [
            replace(
                row,
                scores={name: rollout.scores.get(name) for name in names},
                unscorable=rollout.unscorable or rollout.unmeasured,
            )
            for row, rollout in zip(rows, islice(rollouts, len(rows)), strict=True)
        ]
        for rows in (graded.drawn, graded.taken)
    )
    return Graded(drawn, taken, None)


def _split(graded: Sequence[Graded], bounds: Mapping[str, Bounds]) -> SplitEvaluation:
    """The samples of every problem, and after them the greedy completions."""
    drawn, taken = ([row for one in graded for row in one.drawn], [row for one in graded for row in one.taken])
    return SplitEvaluation((*drawn, *taken), bounds)


def _grade(
    setup: Setup[Any], problem: Problem, completion: Completion, text: str, place: tuple[Mode, int]
) -> GradedCompletion:
    grade = setup.task.grade(text, problem.answer)
    return GradedCompletion(
        id=problem.id,
        mode=place[0],
        sample=place[1],
        strict=grade.strict,
        lenient=grade.lenient,
        well_formed=setup.task.style.well_formed(text),
        finish=completion.finish,
        tokens=completion.drawn,
        thinking=thinking_tokens(setup.policy, completion, text),
        question=problem.question,
        answer=problem.answer,
        extracted_strict=grade.extracted_strict,
        extracted_lenient=grade.extracted_lenient,
        text=text,
        independent=independent.verdict(setup.task.grader.checker, text, problem.answer),
    )
