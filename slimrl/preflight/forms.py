"""The forms of an answer compared: which of them a model follows, on a few problems.

A form that a model does not know costs more than the form itself: asked for `#### N`, some models give a number and no
reasoning. So every form is tried with its own instruction, greedily, on the same training problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from scipy.stats import binomtest

from slimrl.preflight.prompting import instruction_for
from slimrl.preflight.setup import Setup, encode_prompt
from slimrl.records import Completion
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
    """One finding per form, the run's own first; empty where no problem's prompts fit in all forms."""
    budget, own = setup.config.rollout.budget, setup.task.style.name
    names = interchangeable(own)
    count = max(FEWEST_PROBLEMS, min(MOST_PROBLEMS, FORM_TOKENS // (budget * len(names))))
    tasks = [_in_form(setup, name) for name in names]
    room, answers = setup.policy.context - budget, []
    prompts: list[list[tuple[int, ...]]] = []
    for problem in islice(setup.training_problems(step=0, count=count), count):
        encoded = [encode_prompt(setup.prompter, task, problem) for task in tasks]
        if max(map(len, encoded)) <= room:
            answers.append(problem.answer)
            prompts.append(encoded)
    if not prompts:
        return []
    nothing = np.zeros((0, budget))
    requests = [Request(ids, nothing, greedy=1) for form in zip(*prompts, strict=True) for ids in form]
    drawn = [group[0] for group in setup.engine.generate(requests, max_new_tokens=budget)]
    found = []
    for i, task in enumerate(tasks):
        completions = drawn[i * len(answers) : (i + 1) * len(answers)]
        of_form = setup.prompter.control.spelled_by(task.style.render("", "")) - {*setup.policy.stop_ids}
        form_ids = of_form | setup.policy.form_ids
        texts = [replace(setup.policy, form_ids=form_ids).decode(c.token_ids) for c in completions]
        found.append(_finding(task, texts, completions, answers))
    return found


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
        mean_length=float(np.mean([len(completion.token_ids) for completion in completions])),
        verdicts="".join("1" if grade.strict else "0" for grade in grades),
        example=texts[0],
    )


def form_advice(found: Sequence[FormFinding]) -> str:
    """A sentence on the form to take, where the findings (the run's own form first) tell one from the rest; else empty."""
    if not found:
        return ""
    own, *_ = found
    best = max(found, key=lambda form: (form.right, form.in_form))  # the run's own where several are equal
    if best is own or not _is_better(best, own):
        return ""
    return (
        f"asked for task.style={best.style} this model is right in {best.right} of {best.problems} problems and in form in "
        f"{best.in_form}, asked for {own.style} in {own.right} and {own.in_form}; set task.style={best.style}"
    )


def _is_better(one: FormFinding, other: FormFinding) -> bool:
    """True where problems that only one of two forms gets right favour `one`; where there are none, its form is followed more."""
    pairs = list(zip(one.verdicts, other.verdicts, strict=True))
    wins, losses = pairs.count(("1", "0")), pairs.count(("0", "1"))
    if wins + losses:
        return bool(binomtest(wins, wins + losses, alternative="greater").pvalue <= DOUBT)
    return one.in_form - other.in_form > one.problems / 2
