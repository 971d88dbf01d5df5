"""Loading rewards, TRL's signature, what cannot be scored, and texts that must not be paid."""

# ruff: noqa: ARG001, ARG005  (reward functions take what TRL passes)

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from slimrl.config.rewards import CustomReward, RewardsConfig, Weight
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.preflight.payment import checked_gold
from slimrl.records import Completion, Group, Played, Problem
from slimrl.rewards import Reward, load_rewards
from slimrl.rewards.builtin import BUILT_IN, UNDECIDED, needs_answers, soft_overlong
from slimrl.rewards.gold import bare, check_gold
from slimrl.rewards.scoring import Sampled, score, unpaid_when_truncated
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES, TAGS

PROBLEM = Problem("p/1", "How many of 12, 13 and 18?", "18", "13 + 5 = 18", 1.0, {"tag": "easy"})


def _task(style: str = "hashes", instruction: str = "") -> Task:
    return Task("test", (PROBLEM,), (), (), STYLES[style], Grader("numeric"), instruction, {})


def _completions(n: int, length: int = 3) -> list[Completion]:
    return [Completion((1, 2), tuple(range(length)), (0.0,) * length, "stop") for _ in range(n)]


def _score(reward: Reward, texts: list[str], *, strict: bool = False, task: Task | None = None) -> Any:
    return score(Sampled(PROBLEM, _completions(len(texts)), texts, step=4, strict=strict), [reward], task or _task())


def _reward(function: Any, low: float = 0.0, high: float = 1.0, weight: float = 1.0, kind: Any = "text") -> Reward:
    return Reward("mine", function, weight, low, high, kind)


def test_correct_and_format_are_paid_by_weight() -> None:
    rewards = load_rewards(RewardsConfig(correct=2.0, format=0.5), _task(), max_new_tokens=64)
    texts = ["#### 18", "#### 17", "18", "#### 18 eggs"]
    group = score(Sampled(PROBLEM, _completions(4), texts, step=4), rewards, _task())
    assert [rollout.reward for rollout in group.rollouts] == [2.5, 0.5, 0.0, 2.5]
    assert [rollout.correct for rollout in group.rollouts] == [True, False, False, True]
    assert group.rollouts[1].scores == {"correct": 0.0, "format": 1.0}
    assert (group.step, group.problem, group.rollouts[0].text) == (4, PROBLEM, "#### 18")


def test_an_environment_is_paid_for_turns_and_score() -> None:
    """Returns are summed from the last turn on: equal ends have equal returns, whatever came before."""
    rewards = load_rewards(RewardsConfig(correct=1.0, format=0.5, environment=2.0), _task(), max_new_tokens=64)
    given = (False, True, False, True, False)
    completions = [Completion((1, 2), tuple(range(5)), (0.0,) * 5, "stop", given) for _ in range(5)]
    played = [
        Played(score=0.25, rewards=(0.1, None, 0.7)),
        Played(score=0.25, rewards=(0.3, None, 0.7)),
        Played(score=None, rewards=(0.1, 0.2)),
        Played(score=0.25),
        Played(),
    ]
    texts = ["#### 18"] * 4 + ["18"]
    group = score(replace(Sampled(PROBLEM, completions, texts, step=4), played=played), rewards, _task())
    first, second, third, scored, bare = group.rollouts
    assert [r.scores.get("environment") for r in group.rollouts] == [
        math.fsum([0.25, 0.1, 0.7]), math.fsum([0.25, 0.3, 0.7]), math.fsum([0.1, 0.2]), 0.25, None
    ]  # fmt: skip
    assert first.reward == pytest.approx(1.5 + 2 * 1.05)
    assert first.returns == (first.reward, 3.4, 3.4)
    assert second.returns == (second.reward, 3.4, 3.4)
    assert third.returns == (third.reward, 1.9, 1.5)
    assert (scored.returns, scored.turn_returns) == ((), (2.0, 2.0, 2.0))
    assert (bare.reward, bare.returns) == (0.0, ())
    assert [r.turn_rewards for r in (first, scored)] == [(0.1, None, 0.7), ()]
    cut = replace(
        group, rollouts=tuple(replace(r, completion=replace(r.completion, finish="length")) for r in group.rollouts)
    )
    unpaid = unpaid_when_truncated(cut, rewards).rollouts[0]
    assert (unpaid.reward, unpaid.turn_returns) == (0.0, (0.0, 0.0, 0.0))
    watched = load_rewards(RewardsConfig(watched=["environment"]), _task(), max_new_tokens=64)
    seen = score(replace(Sampled(PROBLEM, completions, texts, step=4), played=played), watched, _task()).rollouts[0]
    assert (seen.reward, seen.returns, seen.scores["environment"]) == (1.0, (), math.fsum([0.25, 0.1, 0.7]))


def test_turns_of_an_episode_without_a_reward_have_no_returns() -> None:
    rewards = load_rewards(RewardsConfig(correct=0.0, environment=1.0), _task(), max_new_tokens=64)
    sampled = replace(
        Sampled(PROBLEM, _completions(2), ["a", "b"], step=4),
        played=[Played(failed="the environment is late", rewards=(1.0,)), Played(score=1e308, rewards=(1e308,))],
    )
    late, endless = score(sampled, rewards, _task()).rollouts
    assert (late.unscorable, late.returns) == ("the environment is late", ())
    assert (endless.unscorable, endless.returns) == ("reward environment returned nan", ())


def test_every_weight_has_a_row_in_the_table_and_every_row_a_weight() -> None:
    weights = RewardsConfig.marked(Weight)
    assert list(weights) == list(BUILT_IN)
    assert {name for name, weight in weights.items() if weight.case_study} == {
        name for name, row in BUILT_IN.items() if row.as_published is not None
    }


def test_correct_is_recorded_when_it_is_not_paid() -> None:
    rewards = load_rewards(RewardsConfig(correct=0.0, format=1.0), _task(), max_new_tokens=64)
    assert [reward.name for reward in rewards] == ["format"]
    assert score(Sampled(PROBLEM, _completions(1), ["#### 18"], step=0), rewards, _task()).rollouts[0].correct


EXPLOITS = [
    "", " ", "18", "The answer is 18", "12 13 18", "####", "#### ", "# 18", "### 18", "##### 18", "#### 12\n#### 18",
    "#### 18\n#### 12", "#### 18\n#### 18", "#### 12 or 13 or 18", "#### 12, 13, 18", "#### 12,13,18", "#### 12;18",
    "#### 12/13/18", "#### 12 13 18", "#### 18 or 12", "#### 18 and 12", "#### either 12 or 18", "#### 18 not 12",
    "#### 18?", "#### 18 (or 12)", "#### 18 maybe twelve", "#### 12 -> 18", "#### 12=18", "#### 18=18", "#### x=18",
    "#### 17+1", "#### 36/2/1", "#### 9*2", "#### 18x", "#### 18e", "#### 18!", "#### 18 squared", "#### 0x12",
    "#### 0b10010", "#### \uff11\uff18", "#### \u0661\u0668", "#### 1\uff18", "#### 18\u200b9", "#### \u2460\u2467",
    "#### XVIII", "#### eighteen", "#### 1_8", "#### 1,8", "#### 0,018", "#### -18", "#### \u221218", "#### --18",
    "#### 18/0", "#### 1/0", "#### nan", "#### inf", "#### 1e9999999", "#### 18.0000001", "#### 17.9999999999999999",
    "#### 18\nHow many of 12, 13 and 18?", "#### 18\n\nmore", "#### 18 " * 9, "#### How many of 12, 13 and 18?",
    "#### " + "18 " * 50, "#### " + "1" * 50_000, "18" * 25_000 + "####", "Answer: 18", "\\boxed{18}",
    "<SOLUTION>18</SOLUTION>", "#### <answer>", "#### <number>", "#### answer", "#### [12..18]", "#### 12-18",
    "#### <= 18", "#### >17", "#### ~18", "#### 18+-6", "#### {18}", "#### '18'", "#### 18 thousand", "#### 0.18",
    "#### 1 8",
]  # fmt: skip


@pytest.mark.parametrize("text", EXPLOITS, ids=range(len(EXPLOITS)))
def test_exploits_do_not_earn_correct(text: str) -> None:
    rewards = load_rewards(RewardsConfig(), _task(), max_new_tokens=64)
    rollout = score(Sampled(PROBLEM, _completions(1), [text], step=0), rewards, _task()).rollouts[0]
    assert (rollout.reward, rollout.correct, rollout.unscorable) == (0.0, False, "")


OTHER_EXPLOITS = {
    "boxed": [
        "\\boxed{12} or \\boxed{18}", "\\boxed{12, 18}", "\\boxed{18", "\\boxed{}", "\\boxed 18",
        "boxed{18}", "\\boxed{12}\\boxed{13}\\boxed{18}", "\\boxed{12 \\text{ or } 18}", "\\boxed{\\boxed{12}18}",
        "\\boxed{17+1}", "\\boxed{\\{12,18\\}}", "\\boxed{\\pm 18}",
    ],
    "tags": [
        "<SOLUTION>12</SOLUTION><SOLUTION>18</SOLUTION>", "<SOLUTION>12 or 18</SOLUTION>", "<SOLUTION>18",
        "18</SOLUTION>", "<SOLUTION><SOLUTION>18</SOLUTION>", "<SOLUTION>18</SOLUTION> or 12",
        "<SOLUTION>12\n18</SOLUTION>", "<SOLUTION></SOLUTION>18",
    ],
    "answer": [
        "Answer: 12\nAnswer: 18", "Answer: 12 or 18", "Answer: 18\nor 12", "answer: 18", "Answer 18", "Answer:\n18",
        "Answer: 12 Answer: 18",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("style", "text"), [(style, text) for style, texts in OTHER_EXPLOITS.items() for text in texts]
)
def test_exploits_of_other_styles(style: str, text: str) -> None:
    assert not _task(style).grade(text, "18").strict


def test_the_case_studys_rewards_need_its_tags() -> None:
    config = RewardsConfig(correct=0.0, check_answer=1.0)
    with pytest.raises(SettingsError, match=r"rewards\.check_answer .* set task\.style=tags"):
        load_rewards(config, _task("hashes"), max_new_tokens=64)
    assert [reward.name for reward in load_rewards(config, _task("tags"), max_new_tokens=64)] == ["check_answer"]


def test_as_published_changes_the_function() -> None:
    text = f"{TAGS[0]}w{TAGS[1]}{TAGS[2]} 18 {TAGS[3]}"
    for published, points in ((True, 1.5), (False, 3.0)):
        config = RewardsConfig(correct=0.0, check_answer=1.0, as_published=published)
        rewards = load_rewards(config, _task("tags"), max_new_tokens=64)
        assert (
            score(Sampled(PROBLEM, _completions(1), [text], step=0), rewards, _task("tags")).rollouts[0].reward
            == points
        )


@pytest.mark.parametrize(
    ("length", "value"),
    [(0, 0.0), (12, 0.0), (13, -0.25), (14, -0.5), (16, -1.0), (17, -1.0), (100, -1.0)],
)
def test_soft_overlong_by_hand(length: int, value: float) -> None:
    assert soft_overlong(length, max_new_tokens=16, buffer=4) == value


def test_soft_overlong_is_added_once_to_the_sum() -> None:
    config = RewardsConfig(correct=1.0, format=1.0, soft_overlong=0.5, overlong_buffer=4)
    rewards = load_rewards(config, _task(), max_new_tokens=16)
    group = score(Sampled(PROBLEM, _completions(1, length=14), ["#### 18"], step=0), rewards, _task())
    assert group.rollouts[0].scores == {"correct": 1.0, "format": 1.0, "soft_overlong": -0.5}
    assert group.rollouts[0].reward == 1.75


def test_further_arguments_are_for_functions_that_take_them() -> None:
    assert _reward(lambda **_: []).further == ("trainer_state", "log_extra", "log_metric")
    assert _reward(lambda completions, log_metric, trainer_state: []).further == ("trainer_state", "log_metric")
    assert _reward(lambda log_extra, /, log_metric=None: []).further == ("log_metric",)
    assert _reward(dict.update).further == _reward(lambda completions: []).further == ()


def test_a_function_receives_what_trl_passes() -> None:
    seen: dict[str, Any] = {}

    def spy(completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns, completions=completions)
        return [0.0] * len(completions)

    task = _task(instruction="Be brief.")
    score(Sampled(PROBLEM, _completions(2), ["a", "b"], step=3, steps=40), [_reward(spy)], task)
    state = seen.pop("trainer_state")
    assert (state.global_step, state.max_steps) == (3, 40)
    assert callable(seen.pop("log_extra"))
    assert callable(seen.pop("log_metric"))
    assert seen == {
        "prompts": ["Be brief.\n\n" + PROBLEM.question] * 2,
        "completions": ["a", "b"],
        "completion_ids": [[0, 1, 2]] * 2,
        "id": ["p/1"] * 2,
        "question": [PROBLEM.question] * 2,
        "answer": ["18"] * 2,
        "solution": ["13 + 5 = 18"] * 2,
        "difficulty": [1.0] * 2,
        "tag": ["easy"] * 2,
    }
    score(Sampled(PROBLEM, _completions(1), ["a"], step=0), [_reward(spy, kind="messages")], task)
    assert seen["completions"] == [[{"role": "assistant", "content": "a"}]]
    assert seen["prompts"] == [task.messages(PROBLEM)]


def test_a_completion_to_which_no_reward_applies_is_unscorable_not_zero() -> None:
    group = _score(_reward(lambda completions, **_: [None, 1.0]), ["a", "b"], strict=True)
    first, second = group.rollouts
    assert (first.unscorable, first.reward, dict(first.scores)) == ("no reward applies", 0.0, {})
    assert (second.unscorable, second.reward, dict(second.scores)) == ("", 1.0, {"mine": 1.0})


def test_none_is_left_out_of_the_sum_as_in_trl() -> None:
    """Two rewards for two kinds of problems, each None on the other's."""
    first = Reward("first", lambda completions, **_: [1.0, None], 2.0, 0.0, 1.0)
    second = Reward("second", lambda completions, **_: [None, 0.5], 1.0, 0.0, 1.0)
    rollouts = score(
        Sampled(PROBLEM, _completions(2), ["a", "b"], step=0, strict=True), [first, second], _task()
    ).rollouts
    assert [r.reward for r in rollouts] == [2.0, 0.5]
    assert [r.unscorable for r in rollouts] == ["", ""]
    assert [dict(r.scores) for r in rollouts] == [{"first": 1.0}, {"second": 0.5}]


def test_a_reward_that_fails_makes_the_row_unscorable_whatever_the_others_say() -> None:
    good = Reward("good", lambda completions, **_: [1.0], 1.0, 0.0, 1.0)
    bad = _reward(lambda completions, **_: [math.nan])
    rollout = score(Sampled(PROBLEM, _completions(1), ["#### 18"], step=0), [good, bad], _task()).rollouts[0]
    assert (rollout.scores, rollout.reward, rollout.correct) == ({"good": 1.0}, 0.0, True)
    assert rollout.unscorable == "reward mine returned nan"


@pytest.mark.parametrize(
    ("weights", "values"), [([100.0], [1e308]), ([1.0, 1.0], [1e308, 1e308]), ([100.0, -100.0], [1e308, 1e308])]
)
def test_a_sum_that_is_not_finite_is_unscorable(weights: list[float], values: list[float]) -> None:
    rewards = [
        Reward(f"r{i}", lambda completions, _value=value, **_: [_value], weight, None, None)
        for i, (weight, value) in enumerate(zip(weights, values, strict=True))
    ]
    (rollout,) = score(Sampled(PROBLEM, _completions(1), ["a"], step=0), rewards, _task()).rollouts
    said = "reward r0 returned 1e+308, which makes the weighted sum of rewards too large for a number"
    assert (rollout.reward, rollout.unscorable) == (0.0, said)
    with pytest.raises(SettingsError, match="too large for a number"):
        score(Sampled(PROBLEM, _completions(1), ["a"], step=0, strict=True), rewards, _task())


def test_a_missed_deadline_is_unscorable_and_no_fault_of_the_function() -> None:
    slow = Reward("slow", lambda completions, **_: [UNDECIDED], 1.0, 0.0, 1.0)
    rollout = score(Sampled(PROBLEM, _completions(1), ["#### 18"], step=0, strict=True), [slow], _task()).rollouts[0]
    assert rollout.unscorable == "reward slow reached no verdict in time"


@pytest.mark.parametrize("column", ["task", "buffer", "max_new_tokens", "length", "answer_format"])
def test_columns_may_have_any_name(column: str) -> None:
    problem = Problem("p/1", "q", "18", columns={column: "math"})
    config = RewardsConfig(correct=1.0, format=1.0, soft_overlong=1.0)
    rewards = load_rewards(config, _task(), max_new_tokens=64)
    assert (
        score(Sampled(problem, _completions(1), ["#### 18"], step=0, strict=True), rewards, _task()).rollouts[0].reward
        == 2.0
    )


@pytest.mark.parametrize("values", [np.array([0.5]), [np.float32(0.5)], torch.tensor([0.5]), [torch.tensor(0.5)]])
def test_numbers_of_numpy_and_torch_are_numbers(values: object) -> None:
    rollout = _score(_reward(lambda completions, **_: values), ["a"], strict=True).rollouts[0]
    assert rollout.reward == 0.5


def _raises(completions: list[str], **columns: object) -> list[float]:
    raise KeyError("colour")


async def _later() -> list[float]:
    return [1.0, 1.0]


FAULTS = {
    "raised KeyError: 'colour'": _raises,
    "raised TypeError: ": lambda completions: [1.0],
    "returned 1 values for 2 completions": lambda completions, **_: [1.0],
    "returned float instead of a list": lambda completions, **_: 1.0,
    "returned NoneType instead of a list": lambda completions, **_: None,
    "returned coroutine instead of a list": lambda completions, **_: _later(),
    "returned dict instead of a list": lambda completions, **_: {1.0: "a", 0.0: "b"},
    "returned more than 2 values for 2 completions": lambda completions, **_: iter(int, 1),
    "returned str instead of a list": lambda completions, **_: "11",
    "returned str instead of a number": lambda completions, **_: ["1", "1"],
    "returned list instead of a number": lambda completions, **_: [[1.0], [1.0]],
    "returned nan": lambda completions, **_: [math.nan] * 2,
    "returned inf": lambda completions, **_: [math.inf] * 2,
    "returned 2, outside of its bounds 0 to 1": lambda completions, **_: [2.0] * 2,
    "returned -0.5, outside of its bounds 0 to 1": lambda completions, **_: [-0.5] * 2,
}


@pytest.mark.parametrize("what", FAULTS)
def test_faults(what: str) -> None:
    reward = _reward(FAULTS[what])
    group = _score(reward, ["a", "b"])
    for rollout in group.rollouts:
        assert rollout.unscorable.startswith(f"reward mine {what}")
        assert rollout.reward == 0.0
        assert not rollout.scores
    with pytest.raises(SettingsError) as caught:
        _score(reward, ["a", "b"], strict=True)
    assert str(caught.value).startswith(f"reward mine {what}")
    assert "on problem p/1, completion 'a'; correct the function" in str(caught.value)


def test_one_bad_value_spoils_one_row() -> None:
    group = _score(_reward(lambda completions, **_: [1.0, math.nan]), ["a", "b"])
    assert [rollout.unscorable for rollout in group.rollouts] == ["", "reward mine returned nan"]


def test_arrays_tuples_integers_and_booleans_are_numbers() -> None:
    for values in (np.array([1.0, 0.0]), (1, 0), [True, False], [np.float32(1), np.int64(0)]):
        group = _score(_reward(lambda completions, _values=values, **_: _values), ["a", "b"], strict=True)
        assert [rollout.reward for rollout in group.rollouts] == [1.0, 0.0]


def _custom(path: Path, code: str, name: str = "mine", **settings: Any) -> RewardsConfig:
    path.write_text(code)
    return RewardsConfig(correct=0.0, custom={f"{path}:{name}": CustomReward(low=0.0, high=2.0, **settings)})


CODE = """
from dataclasses import dataclass

@dataclass
class Weights:
    short: float = 2.0

def mine(completions, answer, **kwargs):
    return [Weights().short if text == gold else None for text, gold in zip(completions, answer)]

number = 5

async def later(completions, **kwargs):
    return [0.0]
"""


def test_custom_functions_are_loaded_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _custom(tmp_path / "my_rewards.py", CODE, weight=0.5)
    rewards = load_rewards(config, _task(), max_new_tokens=64)
    assert [(reward.name, reward.weight, reward.best) for reward in rewards] == [("mine", 0.5, 2.0)]
    assert score(Sampled(PROBLEM, _completions(1), ["18"], step=0), rewards, _task()).rollouts[0].reward == 1.0
    monkeypatch.chdir(tmp_path)
    relative = RewardsConfig(custom={"my_rewards.py:mine": CustomReward(low=0.0, high=2.0)})
    assert [reward.name for reward in load_rewards(relative, _task(), max_new_tokens=64)] == ["correct", "mine"]
    measured = RewardsConfig(custom={"my_rewards.py:mine": CustomReward(low=0.0, high=2.0, weight=0.0)})
    assert [(r.name, r.weight) for r in load_rewards(measured, _task(), max_new_tokens=64)] == [
        ("correct", 1),
        ("mine", 0),
    ]


@pytest.mark.parametrize(
    ("code", "name", "what"),
    [
        (CODE, "other", "defines no other"),
        (CODE, "number", "is not a function"),
        ("import no_such_module_anywhere", "mine", "ModuleNotFoundError"),
        ("def mine(:", "mine", "SyntaxError"),
        ("import sys; sys.exit(7)", "mine", "SystemExit"),
        (CODE, "not a name", "does not have the form file.py:function or package.module:function"),
    ],
)
def test_custom_functions_that_cannot_be_used(tmp_path: Path, code: str, name: str, what: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_rewards(_custom(tmp_path / "my_rewards.py", code, name), _task(), max_new_tokens=64)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_functions_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("def mine(completions, **_): return [1.0] * len(completions)")
    both = {f"{tmp_path}/{name}:mine": CustomReward() for name in ("a.py", "b.py")}
    with pytest.raises(SettingsError, match=r"has the name of another reward, mine; rename it"):
        load_rewards(RewardsConfig(custom=both), _task(), max_new_tokens=64)


@pytest.mark.parametrize("name", [*BUILT_IN])
@pytest.mark.parametrize("spec", ["mine.py:{}", "package.module:{}"])
def test_the_name_of_a_built_in_reward_is_refused_paid_or_not(name: str, spec: str) -> None:
    """Under it a function would be left out of evaluations, and the gold check would ask it instead of the checker."""
    way_out = "rename it, or import the function under another name in a file of yours"
    for given in ({"correct": 1.0}, {"correct": 0.0, "format": 1.0}):
        with pytest.raises(ValidationError, match=f"has the name of the built-in reward {name}; {way_out}"):
            RewardsConfig.model_validate({**given, "custom": {spec.format(name): 1}})


@pytest.mark.parametrize("spec", ["missing.py:mine", "mine", ":mine", "missing.py:", "/:mine"])
def test_custom_specs_that_name_nothing(spec: str) -> None:
    config = RewardsConfig(custom={spec: CustomReward(low=0.0, high=1.0)})
    with pytest.raises(SettingsError, match=r"^rewards\.custom: "):
        load_rewards(config, _task(), max_new_tokens=64)


def test_gold_check_names_what_cannot_score() -> None:
    task = _task()
    problems = [PROBLEM, Problem("p/2", "q", "about 5"), Problem("p/3", "q", "1,080", "with #### in it")]
    config = RewardsConfig(correct=1.0, format=0.5, soft_overlong=1.0)
    report = check_gold(task, problems, load_rewards(config, task, max_new_tokens=64))
    assert (report.n, report.maximum) == (3, 1.5)
    assert [(f.id, f.answer, f.reward, f.got, f.expected) for f in report.failures] == [
        ("p/2", "about 5", "correct", 0, 1)
    ]


@pytest.mark.parametrize("own", [True, False])
def test_gold_answers_that_a_function_of_one_s_own_pays_less_are_told_its_bounds(own: bool, tmp_path: Path) -> None:
    """Bounds say what gold answers earn, so without them such a function is only tried."""
    (tmp_path / "mine.py").write_text("def long(completions, **_):\n    return [0.0] * len(completions)\n")
    problems = (PROBLEM,) if own else (PROBLEM, Problem("p/2", "q", "12)", "with"))
    task = replace(_task(), train=problems)
    config = TrainConfig(rewards=RewardsConfig(custom={f"{tmp_path}/mine.py:long": CustomReward(low=0.0, high=1.0)}))
    rewards = load_rewards(config.rewards, task, max_new_tokens=64)

    def scored(sampled: Sampled) -> Future[Group]:
        done: Future[Group] = Future()
        done.set_result(score(sampled, rewards, task))
        return done

    with pytest.raises(SettingsError) as caught:
        checked_gold(task, (), config, rewards, scored, bare)
    assert ("or leave out its bounds in rewards.custom" in str(caught.value)) == own


def test_gold_check_sees_the_checker_even_where_correct_is_not_paid() -> None:
    task = _task()
    rewards = load_rewards(RewardsConfig(correct=0.0, format=1.0), task, max_new_tokens=64)
    failures = check_gold(task, [Problem("p/2", "q", "five")], rewards).failures
    assert [(failure.reward, failure.got) for failure in failures] == [("correct", 0.0)]


def test_gold_check_asks_no_more_of_an_answer_than_it_can_earn() -> None:
    """Where nothing is right, or an answer is a pattern that does not fit itself, only other rewards are asked for."""
    for checker, answer in (("numeric", ""), ("none", "7"), ("regex", "7|seven")):
        task = replace(_task(), grader=Grader(checker))
        rewards = load_rewards(RewardsConfig(correct=float(checker == "regex"), format=1.0), task, max_new_tokens=64)
        assert check_gold(task, [Problem("p/2", "q", answer)], rewards).failures == (), checker
    rewards = load_rewards(RewardsConfig(), task, max_new_tokens=64)
    assert check_gold(task, [Problem("p/2", "q", "seven")], rewards).failures == ()


def test_rewards_that_compare_need_a_checker() -> None:
    for style, name in (("hashes", "correct"), ("tags", "check_answer"), ("tags", "check_numbers")):
        task = replace(_task(style=style), grader=Grader("none"))
        config = RewardsConfig.model_validate({"correct": 0.0, name: 1.0})
        assert needs_answers(config)
        with pytest.raises(
            SettingsError, match=rf"rewards\.{name} compares with right answers, and task\.checker=none has none"
        ):
            load_rewards(config, task, max_new_tokens=64)
    assert not needs_answers(RewardsConfig(correct=0.0, format=1.0))


def test_functions_get_the_data_s_own_solution_where_it_is_the_answer() -> None:
    seen: dict[str, Any] = {}

    def mine(completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns)
        return [1.0] * len(completions)

    for problem, solution in (
        (Problem("p", "q", "7", columns={"solution": "7"}), "7"),
        (Problem("p", "q", "7", "worked", columns={"solution": "7"}), "worked"),
    ):
        check_gold(_task(), [problem], [_reward(mine)])
        assert seen["solution"] == [solution]


def test_a_function_that_names_what_a_row_lacks_fails_and_pays_nothing() -> None:
    """An empty text is in every completion, so a column that is misspelt would pay for anything."""

    def contains(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [float(gold in text) for text, gold in zip(completions, answer, strict=True)]

    called: list[list[str] | None] = []
    check_gold(
        _task(),
        [Problem("p", "q", "")],
        [_reward(lambda completions, answer=None, **_: called.append(answer) or [1.0])],
    )
    assert called == [None]
    with pytest.raises(SettingsError, match="missing 1 required positional argument: 'answer'"):
        check_gold(_task(), [Problem("p", "q", "")], [_reward(contains)])


def test_gold_check_of_custom_rewards() -> None:
    half = _reward(lambda completions, **_: [0.5], 0.0, 1.0)
    elsewhere = Reward("elsewhere", lambda completions, **_: [None], 1.0, 0.0, 1.0)
    penalty = Reward("penalty", lambda completions, **_: [0.0], -1.0, 0.0, 1.0)
    report = check_gold(_task(), [PROBLEM], [half, elsewhere, penalty])
    assert [(f.reward, f.got, f.expected) for f in report.failures] == [("mine", 0.5, 1.0)], "None: not its row"
    assert report.maximum == 2.0
    nobody = check_gold(_task(), [PROBLEM], [elsewhere])
    assert [(f.reward, f.got) for f in nobody.failures if f.reward == "elsewhere"] == [("elsewhere", None)]
    with pytest.raises(SettingsError, match="reward mine raised KeyError"):
        check_gold(_task(), [PROBLEM], [_reward(_raises)])
