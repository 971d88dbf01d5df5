"""Episodes are played to their end whatever an environment does, and what was said is recorded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slimrl.config.environment import EnvironmentConfig
from slimrl.environments import Messages, maker, opening
from slimrl.environments.episodes import Play, Rules
from slimrl.environments.tools import called_in
from slimrl.errors import DataError, SettingsError
from slimrl.preflight.environment import asked
from slimrl.records import Completion, Played, Problem, ToolCall
from slimrl.tasks import prompt_messages

PROBLEM = Problem("p", "q", "1")
Answer = Callable[[str], Any]


def encode(messages: Messages, _last: int) -> tuple[int, ...]:
    if any("<|" in message["content"] for message in messages):
        raise DataError("it spells a control token")
    return tuple(ord(character) for message in messages for character in message["content"])


class Scripted:
    """Answers with a function of the test's."""

    def __init__(self, answer: Answer, score: object = None) -> None:
        self.answer, self.value = answer, score
        self.heard: list[str] = []

    def reset(self, problem: Problem) -> None:
        self.heard.append(f"begins {problem.id}")

    def step(self, text: str) -> Any:
        self.heard.append(text)
        return self.answer(text)

    def score(self) -> object:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def play(answer: Answer, *, turns: int = 3, deadline: float = 5.0, score: object = None) -> Play:
    decode = lambda ids, _: "".join(map(chr, ids))  # noqa: E731
    return Play(Rules(lambda: Scripted(answer, score), lambda _: (), decode, encode, turns, deadline), PROBLEM)


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def completion(text: str, finish: Any = "stop") -> Completion:
    return Completion((1,), ids(text), (0.0,) * len(text), finish)


def user(text: str) -> tuple[list[dict[str, str]], bool]:
    return [{"role": "user", "content": text}], False


def test_turns_are_heard_and_told() -> None:
    played = play(lambda text: ([], True) if text == "b" else user(f"<{text}>"), score=2)
    assert played(0, ids("a")).result() == ids("<a>")
    assert played(1, ids("b")).result() == ()
    assert played(0, ids("a<a>b")).result() == ()
    first, second = played.played([completion("a<a>b"), completion("b")])
    assert first == Played((("assistant", "a"), ("user", "<a>"), ("assistant", "b")), score=2.0)
    assert second == Played((("assistant", "b"),), score=2.0)
    environment = played.episodes[0].environment
    assert isinstance(environment, Scripted)
    assert environment.heard == ["begins p", "a", "b"]


def test_rewards_of_turns() -> None:
    rewards = iter([np.float32(0.5), None, 2])
    played = play(lambda text: (*user(text), next(rewards)), score=7, turns=3)
    for number, text in enumerate(("a", "aab", "aabbc")):
        assert played(0, ids(text)).result() == (ids(text[-1]) if number < 2 else ())
    assert played.played([completion("aabbc")])[0].rewards == (0.5, None, 2.0)


def test_rewards_of_turns_that_were_awaited() -> None:
    async def later(text: str) -> Any:
        await asyncio.sleep(0.01)
        return *user(text), True

    played = play(later)
    assert played(0, ids("a")).result() == ids("a")
    assert played.played([completion("aa", "length")])[0].rewards == (1.0,)


def test_a_turn_that_was_cut_off_has_no_reward_of_its_own() -> None:
    played = play(lambda text: (*user(text), 1.5), score=7)
    played(0, ids("a")).result()
    played(1, ids("a")).result()
    cut, full, never = played.played(
        [completion("aabc", "length"), completion("a", "length"), completion("x", "length")]
    )
    assert (cut.rewards, full.rewards, never.rewards) == ((1.5,), (1.5,), ())
    assert len(cut.turns) == 3


def test_an_episode_that_fails_later_has_no_rewards() -> None:
    played = play(lambda text: (*user(text), 1.5) if text == "a" else 1 / 0)
    played(0, ids("a")).result()
    played(0, ids("aab")).result()
    (record,) = played.played([completion("aab")])
    assert (record.rewards, record.score) == ((), None)
    assert record.failed


def test_an_episode_that_begins_anew_forgets_its_rewards() -> None:
    played = play(lambda text: (*user(text), 1.5))
    played(0, ids("a")).result()
    played(0, ids("aab")).result()
    played(0, ids("a")).result()
    assert played.played([completion("aa", "length")])[0].rewards == (1.5,)


def test_a_class_without_a_score_has_0() -> None:
    class Plain:
        def step(self, _: str) -> Any:
            return [], True

    rules = Rules(Plain, lambda _: (), lambda ids, _: str(ids), encode, 3, 5.0)
    played = Play(rules, PROBLEM)
    played(0, ids("a")).result()
    assert [one.score for one in played.played([completion("a"), completion("x", "length")])] == [0.0, 0.0]


def test_awaited_answers() -> None:
    async def later(text: str) -> Any:
        await asyncio.sleep(0.01)
        return user(text)

    assert play(later)(0, ids("a")).result() == ids("a")


def test_the_last_turn_of_an_episode_is_heard_too() -> None:
    played = play(user, turns=2)
    assert played(0, ids("a")).result() == ids("a")
    assert played(0, ids("aab")).result() == ()
    assert played.played([completion("aab")])[0].turns == (("assistant", "a"), ("user", "a"), ("assistant", "b"))


def test_a_turn_that_was_cut_off_and_an_answer_that_did_not_fit() -> None:
    played = play(user, score=7)
    played(0, ids("a")).result()
    played(1, ids("a")).result()
    (cut, full, never) = played.played(
        [completion("aabc", "length"), completion("a", "length"), completion("x", "length")]
    )
    assert cut.turns == (("assistant", "a"), ("user", "a"), ("assistant", "bc"))
    assert full.turns == (("assistant", "a"),)
    assert never == Played((("assistant", "x"),), score=7.0), "the score of an environment that has heard nothing"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda _: 1 / 0, "the environment raised ZeroDivisionError: division by zero"),
        (lambda _: "yes", "the environment returned 'yes' from step, which is no pair of messages and True or False"),
        (lambda _: ("yes", False), "the environment returned str in place of a list of messages from step"),
        (lambda _: ([{"role": "user"}], False), "which is no message with a text as role and as content, from step"),
        (lambda _: ([], False), "the environment returned no messages from step for an episode that is not over"),
        (lambda _: user("<|end|>"), "returned messages that cannot be written: it spells a control token"),
        (lambda _: user(""), "the environment returned messages of which the template writes nothing"),
        (
            lambda _: ([{"role": "robot", "content": "5"}], False),
            "a message of the role 'robot', which is none of user, tool, from step",
        ),
        (lambda _: exit(3), "the environment raised SystemExit: 3"),
        (lambda _: ([], True, 0.5, "more"), "which is no pair of messages and True or False, with or without a reward"),
        (lambda _: ([], True, "1"), "returned '1' from step as the reward of a turn, which is no finite number"),
        (
            lambda _: ([], True, float("nan")),
            "returned 'nan' from step as the reward of a turn, which is no finite number",
        ),
    ],
)
def test_a_failure_ends_its_own_episode(answer: Answer, sentence: str) -> None:
    played = play(answer)
    assert played(0, ids("a")).result() == ()
    assert sentence in played.played([completion("a")])[0].failed


def test_an_answer_that_is_late_is_not_waited_for() -> None:
    go = threading.Event()
    played = play(lambda text: go.wait(20) and user(text), deadline=0.05)
    began = time.perf_counter()
    assert played(0, ids("a")).result() == ()
    assert time.perf_counter() - began < 15
    assert (
        "the environment's step gave no answer within environment.deadline=0.05 s"
        in played.played([completion("a")])[0].failed
    )
    go.set()


def test_a_call_that_is_late_has_failed_whenever_the_tool_returns() -> None:
    go = threading.Event()

    def look() -> str:
        """Look for a long time."""
        go.wait(20)
        return "seen"

    class Slow:
        tools = (look,)

    make = maker(EnvironmentConfig(name="m:Slow"), lambda *_: Slow)
    decode = lambda ids, _: "".join(map(chr, ids))  # noqa: E731
    played = Play(Rules(make, lambda _: (), decode, encode, 3, 0.05), PROBLEM)
    text = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    assert played(0, ids(text)).result() == ()
    environment = played.episodes[0].environment
    go.set()
    while not called_in(environment):
        time.sleep(0.01)
    (record,) = played.played([completion(text)])
    assert record.calls == (ToolCall("look", "gave no answer within environment.deadline=0.05 s"),)


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (ValueError("mine"), "raised ValueError: mine"),
        ("much", "returned 'much' from score, which is no finite number"),
        (float("nan"), "returned 'nan' from score, which is no finite number"),
    ],
)
def test_a_score_that_fails_is_told(score: object, told: str) -> None:
    played = play(lambda _: ([], True), score=score)
    played(0, ids("a")).result()
    assert f"the environment {told}" in played.played([completion("a")])[0].failed


@pytest.mark.parametrize(
    ("metrics", "told"), [([1], "has list as metrics"), ({"n": "x"}, "has 'x' as metrics['n'], which is no number")]
)
def test_metrics_that_are_no_numbers_are_told(metrics: object, told: str) -> None:
    class Measured(Scripted):
        def __init__(self) -> None:
            super().__init__(lambda _: ([], True))
            self.metrics = metrics

    rules = Rules(Measured, lambda _: (), lambda ids, _: "".join(map(chr, ids)), encode, 3, 5.0)
    played = Play(rules, PROBLEM)
    played(0, ids("a")).result()
    assert told in played.played([completion("a")])[0].failed


def test_half_a_surrogate_pair_is_replaced() -> None:
    played = play(lambda _: ([{"role": "user", "content": "a\ud800b"}], False))
    assert played(0, ids("a")).result() == ids("a?b")


def test_an_episode_that_is_sampled_again_begins_anew() -> None:
    played = play(user)
    played(0, ids("a")).result()
    played(0, ids("aab")).result()
    assert played(0, ids("a")).result() == ids("a")
    assert played.played([completion("aa", "length")])[0].turns == (("assistant", "a"), ("user", "a"))


class Broken:
    def __init__(self) -> None:
        raise KeyError("mine")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(Broken, "making 'e.py:E' raised KeyError"), (dict, "'e.py:E' has no method step")],
)
def test_a_class_that_is_no_environment_is_refused(kind: type, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        maker(EnvironmentConfig(name="e.py:E"), lambda *_: kind)


@pytest.mark.parametrize("hangs", ["reset", "score"])
def test_a_reset_and_a_score_that_hang_are_not_waited_for(hangs: str) -> None:
    go = threading.Event()

    class Hangs(Scripted):
        def reset(self, _: Problem) -> None:
            return None if hangs == "score" else go.wait(20) and None

        def score(self) -> object:
            return 1.0 if hangs == "reset" else go.wait(20)

    rules = Rules(lambda: Hangs(user), lambda _: (), lambda ids, _: "".join(map(chr, ids)), encode, 3, 0.05)
    played = Play(rules, PROBLEM)
    first = played(0, ids("a")).result()
    assert first == (() if hangs == "reset" else ids("a"))
    whole, never = played.played([completion("aab", "length"), completion("x", "length")])
    assert f"the environment's {hangs} gave no answer within" in whole.failed
    assert f"the environment's {hangs} gave no answer within" in never.failed
    go.set()


def test_an_error_of_reset_ends_its_own_episode() -> None:
    class Breaks(Scripted):
        def reset(self, problem: Problem) -> None:
            raise KeyError(problem.id)

    rules = Rules(lambda: Breaks(user), lambda _: (), lambda ids, _: str(ids), encode, 3, 5.0)
    played = Play(rules, PROBLEM)
    assert played(0, ids("a")).result() == ()
    where = f"test_episodes.py:{Breaks.reset.__code__.co_firstlineno + 1} in reset"
    assert [one.failed for one in played.played([completion("a"), completion("x")])] == [
        f"the environment raised KeyError: 'p' ({where})"
    ] * 2
    with pytest.raises(SettingsError, match=rf"reset raised KeyError: 'p' \({where}\), for problem p; correct it"):
        opening(lambda: Breaks(user), PROBLEM, 20.0)


def test_two_prompts_of_one_problem_are_a_failure() -> None:
    count = iter(range(9))

    class Unstable(Scripted):
        def reset(self, problem: Problem) -> Any:
            return [{"role": "user", "content": f"{problem.question} {next(count)}"}]

    rules = Rules(lambda: Unstable(user), lambda _: (("user", "q 0"),), lambda ids, _: str(ids), encode, 3, 5.0)
    played = Play(rules, PROBLEM)
    assert played(0, ids("a")).result() == ids("(97,)")
    assert played(1, ids("a")).result() == ()
    assert "opens two episodes of a problem with different prompts" in played.episodes[1].failed


def test_a_turn_that_is_asked_again_while_its_answer_is_on_the_way_is_another_episode() -> None:
    go = threading.Event()
    played = play(lambda text: go.wait(20) and user(text), deadline=30)
    first = played(0, ids("a"))
    second = played(0, ids("a"))
    go.set()
    assert first.result() == second.result() == ids("a")
    heard = played.episodes[0].environment
    assert isinstance(heard, Scripted)
    assert heard.heard == ["begins p", "a"]


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([{"role": "tool", "content": "5"}], "a message of the role 'tool', which is none of system, user, assistant,"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "a prompt that ends with the role assistant",
        ),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "a system message behind others"),
        ([], "reset returned an empty list of messages, where None stands for the prompt of the task, for problem p"),
    ],
)
def test_messages_that_are_no_prompt(messages: Any, sentence: str) -> None:
    class Opens(Scripted):
        def reset(self, _: Problem) -> Any:
            return messages

    with pytest.raises(SettingsError, match=sentence):
        opening(lambda: Opens(user), PROBLEM, 20.0)


def test_openings() -> None:
    class Opens(Scripted):
        def reset(self, problem: Problem) -> Any:
            return [{"role": "user", "content": f"{problem.question}!"}] if problem.id == "p" else [problem.id]

    make = maker(EnvironmentConfig(name="e.py:E", arguments={"answer": user}), lambda *_: Opens)
    assert opening(make, PROBLEM, 20.0) == [{"role": "user", "content": "q!"}]
    with pytest.raises(SettingsError, match=r"reset returned 'r', which is no message .* for problem r"):
        opening(make, Problem("r", "q", "1"), 20.0)


class Slow:
    """Every method is a coroutine."""

    async def reset(self, problem: Problem) -> list[dict[str, str]]:
        await asyncio.sleep(0)
        self.heard = [problem.question]
        return [{"role": "user", "content": "Go."}]

    async def step(self, text: str) -> tuple[list[dict[str, str]], bool]:
        self.heard.append(text)
        return [{"role": "user", "content": "on"}], text == "b"

    async def cut(self, text: str) -> None:
        self.heard.append(f"cut {text}")

    async def score(self) -> float:
        await asyncio.sleep(0)
        return float(len(self.heard))


def test_methods_may_be_coroutines() -> None:
    made = maker(EnvironmentConfig(name="e.py:E"), lambda *_: Slow)
    prompt = opening(made, PROBLEM, 20.0)
    assert prompt == [{"role": "user", "content": "Go."}]
    rules = Rules(made, lambda _: (("user", "Go."),), lambda ids, _: "".join(map(chr, ids)), encode, 5, 5.0)
    episodes = Play(rules, PROBLEM)
    assert episodes(0, ids("a")).result() == ids("on")
    (record,) = episodes.played([completion("aonc", "length")])
    assert record.score == 3.0
    assert not record.failed


def test_arguments_are_an_episodes_own() -> None:
    class Pops:
        def __init__(self, hints: list[str]) -> None:
            self.hint = hints.pop()

        def step(self, _: str) -> tuple[list[dict[str, str]], bool]:
            return [], True

    made = maker(EnvironmentConfig(name="e.py:E", arguments={"hints": ["a", "b"]}), lambda *_: Pops)
    assert [made().hint for _ in range(3)] == ["b"] * 3  # type: ignore[attr-defined]


def test_a_question_by_itself_has_the_prompt_of_a_problem() -> None:
    opened = lambda _: (("user", "Guess my number."),)  # noqa: E731
    rules = Rules(lambda: Scripted(user), opened, lambda *_: "", encode, 3, 5.0)
    messages, episodes = asked(rules, "Be brief.", "q")
    problem = Problem("p", "q", "1", turns=opened(None))
    assert messages == prompt_messages("Be brief.", problem) != prompt_messages("", problem)
    assert episodes is not None
