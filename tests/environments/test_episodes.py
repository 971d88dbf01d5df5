"""Episodes are played to their end whatever an environment does, and what was said is recorded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from slimrl.config.environment import EnvironmentConfig
from slimrl.environments import Messages, maker, opening
from slimrl.environments.episodes import Play, Rules
from slimrl.errors import DataError, SettingsError
from slimrl.records import Completion, Played, Problem

PROBLEM = Problem("p", "q", "1")
Answer = Callable[[str], Any]


def encode(messages: Messages) -> tuple[int, ...]:
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
    decode = lambda ids: "".join(map(chr, ids))  # noqa: E731
    return Play(Rules(lambda: Scripted(answer, score), decode, encode, turns, deadline), PROBLEM)


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
        (lambda _: 1 / 0, "step of the environment raised ZeroDivisionError: division by zero"),
        (lambda _: "yes", "step of the environment returned 'yes', which is no pair of messages and True or False"),
        (lambda _: ("yes", False), "step of the environment returned str in place of a list of messages first"),
        (lambda _: ([{"role": "user"}], False), "which is no message with a text as role and as content, first"),
        (lambda _: ([], False), "step of the environment returned no messages for an episode that is not over"),
        (lambda _: user("<|end|>"), "returned messages that cannot be written: it spells a control token"),
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
    assert "gave no answer within environment.deadline=0.05 s" in played.played([completion("a")])[0].failed
    go.set()


@pytest.mark.parametrize("score", [ValueError("mine"), "much"])
def test_a_score_that_fails_is_told(score: object) -> None:
    played = play(lambda _: ([], True), score=score)
    played(0, ids("a")).result()
    assert "score of the environment raised ValueError" in played.played([completion("a")])[0].failed


def test_an_episode_that_is_sampled_again_begins_anew() -> None:
    played = play(user)
    played(0, ids("a")).result()
    played(0, ids("aab")).result()
    assert played(0, ids("a")).result() == ids("a")
    assert played.played([completion("aa", "length")])[0].turns == (
        ("assistant", "a"),
        ("user", "a"),
        ("assistant", ""),
    )


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


def test_openings() -> None:
    class Opens(Scripted):
        def reset(self, problem: Problem) -> Any:
            return [{"role": "user", "content": f"{problem.question}!"}] if problem.id == "p" else [problem.id]

    make = maker(EnvironmentConfig(name="e.py:E", arguments={"answer": user}), lambda *_: Opens)
    assert opening(make, PROBLEM) == [{"role": "user", "content": "q!"}]
    with pytest.raises(SettingsError, match=r"reset returned 'r', which is no message .* for problem r"):
        opening(make, Problem("r", "q", "1"))
