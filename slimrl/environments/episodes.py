"""Episodes as they are played: each turn of the policy goes to its environment in a thread of its own, and the answer comes
back as ids. An environment that fails, or is late, ends its own episode and no other.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from threading import Lock, Thread, Timer
from typing import Any

from slimrl.environments import Environment, Make, Messages, message_fault
from slimrl.errors import DataError, SlimError
from slimrl.records import Completion, Played, Problem

PROMPT_SECONDS = 0.002
"""An answer within this time costs the sampler nothing; a row that waits longer has its keys and values put aside."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Rules:
    """The part that all episodes of a run have in common."""

    make: Make
    decode: Callable[[Ids], str]
    """The text of a turn of the policy."""
    encode: Callable[[Messages], Ids]
    """The ids of messages between two turns, up to where the policy goes on."""
    turns: int
    """Of the policy, at most."""
    deadline: float
    """Seconds for an answer."""


@dataclass
class Episode:
    """One episode on its way; a thread that plays a turn is the only one that writes to it."""

    environment: Environment
    said: list[tuple[str, str]] = field(default_factory=list)
    """Role and content of what was said behind the prompt."""
    turns: int = 0
    seen: int = 0
    """Tokens up to the end of the last answer."""
    answered: int = 0
    """Messages of the last answer."""
    failed: str = ""
    over: bool = False


class Play:
    """The episodes of one problem: an `OnTurn` for the sampler."""

    def __init__(self, rules: Rules, problem: Problem) -> None:
        self.rules, self.problem = rules, problem
        self.episodes: dict[int, Episode] = {}
        self._lock = Lock()
        """Held by threads that use the tokenizer, which may not be used by two at once."""

    def __call__(self, number: int, ids: Ids) -> Future[Ids]:
        """Hand a turn to the environment of completion `number`."""
        episode = self.episodes.get(number)
        if episode is None or len(ids) <= episode.seen:  # sampling began anew, where memory ran out
            episode = self.episodes[number] = Episode(self._begin())
        found: Future[Ids] = Future()
        Thread(target=self._turn, args=(episode, ids, found), daemon=True).start()
        if wait([found], timeout=PROMPT_SECONDS).not_done:
            late = Timer(self.rules.deadline, self._late, (episode, found))
            late.daemon = True
            found.add_done_callback(lambda _: late.cancel())
            late.start()
        return found

    def played(self, completions: Sequence[Completion]) -> tuple[Played, ...]:
        """The records of the episodes, once all are over."""
        return tuple(self._record(number, completion) for number, completion in enumerate(completions))

    def _begin(self) -> Environment:
        environment = self.rules.make()
        reset = getattr(environment, "reset", None)
        if reset is not None:
            reset(self.problem)
        return environment

    def _turn(self, episode: Episode, ids: Ids, found: Future[Ids]) -> None:
        reply: Ids = ()
        try:
            with self._lock:
                text = self.rules.decode(ids[episode.seen :])
            messages, over = _answer(episode.environment, text)
            episode.turns += 1
            over = over or episode.turns >= self.rules.turns
            reply = () if over else self._encoded(messages)
            if not found.done():
                episode.said.append(("assistant", text))
                episode.said += [] if over else [(m["role"], m["content"]) for m in messages]
                episode.answered = 0 if over else len(messages)
                episode.seen, episode.over = len(ids) + len(reply), over
        except Exception as error:
            episode.failed = f"step of the environment {_told(error)}"
        _settle(found, reply)

    def _encoded(self, messages: Messages) -> Ids:
        try:
            with self._lock:
                return self.rules.encode(messages)
        except DataError as error:
            raise DataError(f"returned messages that cannot be written: {error}") from error

    def _late(self, episode: Episode, found: Future[Ids]) -> None:
        if not found.done():
            episode.failed = f"the environment gave no answer within environment.deadline={self.rules.deadline:g} s"
            _settle(found, ())

    def _record(self, number: int, completion: Completion) -> Played:
        episode = self.episodes.get(number) or Episode(self._begin())  # its first turn never ended
        said, ids = episode.said, completion.token_ids
        if episode.seen > len(ids):  # the last answer did not fit
            said = said[: len(said) - episode.answered]
        elif not episode.over and not episode.failed:
            said = [*said, ("assistant", self.rules.decode(ids[episode.seen :]))]
        if episode.failed:
            return Played(tuple(said), failed=episode.failed)
        try:
            score = getattr(episode.environment, "score", lambda: None)()
            return Played(tuple(said), score=None if score is None else float(score))
        except Exception as error:
            return Played(tuple(said), failed=f"score of the environment {_told(error)}")


def _answer(environment: Environment, text: str) -> tuple[Messages, bool]:
    """Messages and whether the episode is over; raises DataError for an answer of another form."""
    answer: Any = environment.step(text)
    if inspect.isawaitable(answer):
        answer = asyncio.run(_awaited(answer))
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], bool):
        raise DataError(f"returned {str(answer)[:60]!r}, which is no pair of messages and True or False")
    messages, over = answer
    if fault := message_fault(messages):
        raise DataError(f"returned {fault} first")
    if not over and not messages:
        raise DataError("returned no messages for an episode that is not over")
    return messages, over


async def _awaited(answer: Any) -> Any:
    return await answer


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, SlimError) else f"raised {type(error).__name__}: {error}"


def _settle(found: Future[Ids], reply: Ids) -> None:
    """Give the result, unless it was given by the other thread."""
    if not found.done():
        try:
            found.set_result(reply)
        except Exception:  # the other thread was quicker
            return
