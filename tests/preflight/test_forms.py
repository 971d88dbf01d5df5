"""The comparison of answer forms finds the one that a model follows, and advises no other without reason."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.preflight import forms
from slimrl.preflight.forms import compare_forms, form_advice
from slimrl.preflight.setup import prepare
from slimrl.records import Completion, Problem
from slimrl.results import FormFinding
from slimrl.rewards.custom import offering
from slimrl.rollout import Request
from slimrl.tasks.styles import STYLES, interchangeable

FORMS = interchangeable("hashes")
"""Those of answers, which programs are not."""


def finding(style: str, verdicts: str, in_form: int) -> FormFinding:
    right = verdicts.count("1")
    return FormFinding(style, len(verdicts), in_form, right, right, 0, 9.0, verdicts, "")


@pytest.mark.parametrize("style", ["hashes", "boxed"])
def test_the_built_in_model_follows_the_form_that_it_was_taught(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "FORM_TOKENS", 12 * 64 * len(FORMS))
    setup = prepare(load_config(TrainConfig, [], [f"task.style={style}"]))
    found = compare_forms(setup)
    assert [form.style for form in found] == [style, *(name for name in FORMS if name != style)]
    by_name = {form.style: form for form in found}
    assert {form.problems for form in found} == {12}
    assert by_name["hashes"].in_form == 12
    assert by_name["hashes"].right == by_name["hashes"].verdicts.count("1") >= 4
    assert max(form.in_form for name, form in by_name.items() if name != "hashes") < 6
    assert bool(form_advice(found)) is (style == "boxed")


def test_every_form_is_asked_for_with_its_own_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the run's own form with the run's own, on the same problems, and greedily."""
    setup = prepare(load_config(TrainConfig, [], ["task.instruction=Mind the ####.", "rollout.max_new_tokens=9"]))
    asked: list[Request] = []
    whole = setup.engine.generate

    def seen(requests: list[Request], **how: object) -> object:
        asked.extend(requests)
        return whole(requests, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(setup.engine, "generate", seen)
    found = compare_forms(setup)
    prompts = [setup.policy.tokenizer.decode(request.prompt_ids) for request in asked]
    count = found[0].problems
    assert len(asked) == count * len(FORMS)
    assert all(request.greedy == 1 and not len(request.uniforms) for request in asked)
    for i, form in enumerate(found):
        instruction = "Mind the ####." if form.style == "hashes" else STYLES[form.style].instruction
        assert all(instruction in prompt for prompt in prompts[i * count : (i + 1) * count])
    assert len({prompt.replace(instruction, "") for prompt in prompts[-count:]}) == count


def test_problems_are_those_whose_prompts_fit_in_every_form() -> None:
    setup = prepare(load_config(TrainConfig, [], ["task.instruction=", "rollout.max_new_tokens=9"]))
    problems = islice(setup.training_problems(step=0, count=64), 64)
    lengths = [len(setup.prompt_ids(problem)) for problem in problems]
    assert compare_forms(setup)
    assert compare_forms(replace(setup, policy=replace(setup.policy, context=max(lengths) + 9))) == []


@pytest.mark.parametrize(
    ("own", "other", "advised"),
    [
        (finding("hashes", "00000", 0), finding("boxed", "11111", 5), True),
        (finding("hashes", "00000", 0), finding("boxed", "11110", 5), False),  # 4 of 4 by chance: 1 in 16
        (finding("hashes", "10000000", 8), finding("boxed", "01111111", 8), True),  # 7 of 8: 1 in 28
        (finding("hashes", "11000000", 8), finding("boxed", "00111111", 8), False),
        (finding("hashes", "11111111", 8), finding("boxed", "11111111", 8), False),
        (finding("hashes", "000000", 0), finding("boxed", "000000", 6), True),  # right in none, and in form
        (finding("hashes", "100000", 1), finding("boxed", "000000", 4), False),
    ],
)
def test_another_form_is_advised_where_it_is_clearly_better(
    own: FormFinding, other: FormFinding, advised: bool
) -> None:
    advice = form_advice([own, other, finding("tags", "0" * own.problems, 0)])
    assert advice.endswith("set task.style=boxed") is advised
    assert bool(advice) is advised
    assert form_advice([]) == ""


def test_where_nothing_is_right_in_any_form_a_warm_start_is_advised() -> None:
    found = [finding("hashes", "000000", 1), finding("boxed", "000000", 4)]
    assert "right in none of 6 problems in any form" in form_advice(found)
    assert "slimrl sft" in form_advice(found)


def test_where_most_completions_are_cut_off_a_larger_budget_is_advised() -> None:
    cut = [replace(finding(name, "000000", 0), cut_off=off) for name, off in (("hashes", 4), ("boxed", 6))]
    assert form_advice(cut).endswith("raise rollout.max_new_tokens and ask again")
    assert "slimrl sft" in form_advice([replace(cut[0], cut_off=3), cut[1]])


class Once:
    """A first turn is answered, the second ends the episode."""

    def __init__(self, breaks: bool = False) -> None:
        self.breaks, self.asked = breaks, False

    def step(self, text: str) -> tuple[list[dict[str, str]], bool]:
        if self.breaks:
            raise ValueError("broken")
        over, self.asked = self.asked, True
        return [{"role": "user", "content": f"Once more, {len(text)}?"}], over


@pytest.mark.parametrize("breaks", [False, True])
def test_forms_are_measured_in_the_environment(breaks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [
        "environment.name=__main__:Once",
        f"environment.arguments={{breaks: {breaks}}}",
        "rollout.max_new_tokens=96",
    ]
    with offering({"__main__:Once": Once}):
        setup = prepare(load_config(TrainConfig, [], settings))
    drawn: list[Completion] = []
    whole = setup.engine.generate

    def seen(requests: list[Request], **how: object) -> object:
        found = whole(requests, **how)  # type: ignore[arg-type]
        drawn.extend(completion for (completion,) in found)
        return found

    monkeypatch.setattr(setup.engine, "generate", seen)
    own, *_ = compare_forms(setup)
    first = drawn[: own.problems]
    assert own.mean_length == sum(one.drawn for one in first) / own.problems
    assert max(one.turns for one in first) == (1 if breaks else 2)
    assert own.example == ("" if breaks else setup.text(first[0]))
    assert bool(own.in_form) is not breaks


class Asks(Once):
    """A system message of its own."""

    def reset(self, problem: Problem) -> list[dict[str, str]]:
        return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": problem.question}]


def test_an_environment_that_asks_for_a_form_itself_has_no_others() -> None:
    with offering({"__main__:Asks": Asks}):
        setup = prepare(load_config(TrainConfig, [], ["environment.name=__main__:Asks", "rollout.max_new_tokens=96"]))
    assert [found.style for found in compare_forms(setup)] == [setup.task.style.name]
