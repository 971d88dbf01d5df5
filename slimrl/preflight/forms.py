"""The forms of an answer compared: which of them a model follows, on a few problems.

A form that a model does not know costs more than the form itself: asked for `#### N`, some models give a number and no
reasoning. So every form is tried with its own instruction, greedily, on the same training problems, which are played in the
environment where the run has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from scipy.stats import binomtest

from slimrl.environments.episodes import Play
from slimrl.preflight.environment import played
from slimrl.preflight.prompting import instruction_for
from slimrl.preflight.setup import Setup, encode_prompt
from slimrl.records import Completion, Played, Problem
from slimrl.results import FormFinding
from slimrl.rollout import Request
from slimrl.tasks import Task
from slimrl.tasks.styles import STYLES, interchangeable

MOST_PROBLEMS, FEWEST_PROBLEMS = 32, 8
FORM_TOKENS = 2**15
"""Bound on the new tokens of all forms, by which there are fewer problems where completions may be long."""
DOUBT = 0.05
"""A form counts as better where a fair coin would have favoured it as clearly with at most this probability (sign test)."""


def compare_forms(setup: Setup[Any]) -> list[FormFinding]:
    """One finding per form, the run's own first; empty where no problem's prompts fit in all forms, and for a package of
    environments, whose score decides what is right.
    """
    if setup.rules is not None and setup.rules.package is not None:
        return []
    budget, own = setup.config.rollout.budget, setup.task.style.name
    names = interchangeable(own)
    count = max(FEWEST_PROBLEMS, min(MOST_PROBLEMS, FORM_TOKENS // (budget * len(names))))
    tasks = [_in_form(setup, name) for name in names]
    room, problems = setup.policy.context - budget, list[Problem]()
    prompts: list[list[tuple[int, ...]]] = []
    for problem in islice(setup.training_problems(step=0, count=count), count):
        encoded = [encode_prompt(setup.prompter, task, problem) for task in tasks]
        if max(map(len, encoded)) <= room:
            problems.append(problem)
            prompts.append(encoded)
    if not prompts:
        return []
    if all(len({*encoded}) == 1 for encoded in prompts):  # the environment asks for a form of its own
        tasks, prompts = tasks[:1], [encoded[:1] for encoded in prompts]
    forms = zip(*prompts, strict=True)
    requests = [_asked(setup, problem, ids) for form in forms for problem, ids in zip(problems, form, strict=True)]
    groups = setup.engine.generate(requests, max_new_tokens=budget)
    drawn = [group[0] for group in groups]
    failed = [_failed(request, group) for request, group in zip(requests, groups, strict=True)]
    found = []
    for i, task in enumerate(tasks):
        part = slice(i * len(problems), (i + 1) * len(problems))
        completions = drawn[part]
        of_form = setup.prompter.control.spelled_by(task.style.render("", "")) - {*setup.policy.stop_ids}
        form_ids = of_form | setup.policy.form_ids
        decode = replace(setup.policy, form_ids=form_ids).decode
        texts = [
            "" if gone else decode(c.last_turn(), c.heard()) for c, gone in zip(completions, failed[part], strict=True)
        ]
        found.append(_finding(task, texts, completions, [problem.answer for problem in problems]))
    return found


def _asked(setup: Setup[Any], problem: Problem, ids: tuple[int, ...]) -> Request:
    """A greedy completion, or episode, of a prompt."""
    nothing, bound = np.zeros((0, setup.config.rollout.budget)), setup.config.environment.turn_tokens
    return Request(ids, nothing, 1, None if setup.rules is None else Play(setup.rules, problem), bound)


def _failed(request: Request, group: Sequence[Completion]) -> bool:
    """True for an episode that broke off, which has no answer."""
    (told,) = played(request, group) or (Played(),)
    return bool(told.failed)


def _in_form(setup: Setup[Any], name: str) -> Task:
    """The task in another form, with the instruction that asks for it or taught it; the task itself in its own form."""
    if name == setup.task.style.name:
        return setup.task
    instruction = instruction_for(setup.policy, name, setup.config.task.checker)
    return replace(setup.task, style=STYLES[name], instruction=instruction)


def _finding(
    task: Task, texts: Sequence[str], completions: Sequence[Completion], answers: Sequence[str]
) -> FormFinding:
    grades = [task.grade(text, answer) for text, answer in zip(texts, answers, strict=True)]
    return FormFinding(
        style=task.style.name,
        problems=len(texts),
        in_form=sum(map(task.style.well_formed, texts)),
        right=sum(grade.strict for grade in grades),
        lenient=sum(grade.lenient for grade in grades),
        cut_off=sum(completion.finish == "length" for completion in completions),
        mean_length=float(np.mean([completion.drawn for completion in completions])),
        verdicts="".join("1" if grade.strict else "0" for grade in grades),
        example=texts[0],
    )


def form_advice(found: Sequence[FormFinding], instruction: str = "auto") -> str:
    """A sentence on the form to take, where the findings (the run's own form first) tell one from the rest, or on what to do
    where no answer is right in any form; else empty.
    """
    if not found:
        return ""
    own, *_ = found
    best = max(found, key=lambda form: (form.right, form.in_form))  # the run's own where several are equal
    if best is own or not _is_better(best, own):
        if best.right:
            return ""
        if 2 * min(form.cut_off for form in found) > own.problems:
            return (
                f"right in none of {own.problems} problems in any form, and most completions were cut off in each; raise "
                "rollout.max_new_tokens and ask again"
            )
        return (
            f"right in none of {own.problems} problems in any form; rewards teach little where nothing is right, so let the "
            "model imitate worked solutions first (slimrl sft), or take easier problems"
        )
    return (
        f"asked for task.style={best.style} this model is right in {best.right} of {best.problems} problems and in form in "
        f"{best.in_form}, asked for {own.style} in {own.right} and {own.in_form}; set task.style={best.style}"
        f"{'' if instruction == 'auto' else ' and task.instruction=auto, with which it was asked'}"
    )


def _is_better(one: FormFinding, other: FormFinding) -> bool:
    """True where problems that only one of two forms gets right favour `one`; where there are none, its form is followed more."""
    pairs = list(zip(one.verdicts, other.verdicts, strict=True))
    wins, losses = pairs.count(("1", "0")), pairs.count(("0", "1"))
    if wins + losses:
        return bool(binomtest(wins, wins + losses, alternative="greater").pvalue <= DOUBT)
    return one.in_form - other.in_form > one.problems / 2
