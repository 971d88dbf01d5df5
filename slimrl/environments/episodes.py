"""Episodes as they are played: each turn of the policy goes to its environment in a thread of its own, and the answer comes
back as ids. An environment that fails, or is late, ends its own episode and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from math import inf
from threading import Lock, Thread, Timer

from slimrl.environments import Environment, Make, Messages
from slimrl.environments.answers import answer_of, score_of, told
from slimrl.environments.packages import Package
from slimrl.environments.processes import Elsewhere
from slimrl.environments.tools import called_in, tools_called
from slimrl.environments.waiting import awaited, opened
from slimrl.errors import DataError
from slimrl.records import Completion, Played, Problem, ToolCall, Turns, turns_of

Ids = tuple[int, ...]


def _nothing() -> None:
    """Does what there is to do where environments have no processes of their own."""


@dataclass(frozen=True)
class Rules:
    """The part that all episodes of a run have in common."""

    make: Make
    opening: Callable[[Problem], Turns]
    """The prompt with which `reset` opened an episode of a problem before; empty where the task wrote it."""
    decode: Callable[[Ids, Ids], str]
    """The text of a turn of the policy behind what the environment wrote before it, which is empty before the first."""
    encode: Callable[[Messages, int], Ids]
    """The ids of messages behind a turn whose last token is given, up to where the policy goes on."""
    turns: int
    """Of the policy, at most."""
    deadline: float
    """Seconds for an answer; infinity where there is no bound."""
    package: Package | None = None
    """The package of the environment, whose score decides what is right; None where the answer in the last turn does."""
    ready: Callable[[], object] = _nothing
    """Waits until the processes of environments have loaded the class."""
    close: Callable[[], object] = _nothing
    """Ends them."""

    @property
    def scores(self) -> bool:
        """True where the class has `score`."""
        made = self.make()
        return made.scores if isinstance(made, Elsewhere) else hasattr(made, "score")

    @property
    def shown(self) -> bool:
        """True where reward functions read the environments themselves, which are in this process only."""
        return hasattr(self.make(), "of_trl")

    def verdict(self, score: float | None) -> bool | None:
        """True where an episode of this score is right; None where the score does not decide."""
        return None if self.package is None else score is not None and score >= self.package.passing


@dataclass
class Episode:
    """One episode on its way. Whoever settles the answer to a turn, its thread or the deadline, has written it down before."""

    environment: Environment | None = None
    said: tuple[tuple[str, str], ...] = ()
    """Role and content of what was said behind the prompt."""
    turns: int = 0
    asked: int = 0
    """Tokens up to the end of the last turn."""
    seen: int = 0
    """Tokens up to the end of the last answer."""
    heard: Ids = ()
    """The last answer."""
    answered: int = 0
    """Messages of the last answer."""
    rewards: tuple[float | None, ...] = ()
    """Of the turns that were answered."""
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""
    calls: tuple[ToolCall, ...] | None = None
    """Of tools, in the turns that were answered."""
    over: bool = False
    method: str = "reset"
    """The method that is called, or was called last."""
    text: str = ""
    """Of the turn that it is called with."""
    lock: Lock = field(default_factory=Lock)

    def busy(self) -> str:
        """The method that the environment is busy with, or the tools that a turn calls."""
        tools = self.tools()
        return f"{'tool' if len(tools) == 1 else 'tools'} {', '.join(tools)}" if tools else self.method

    def tools(self) -> list[str]:
        """The tools that are called by a turn which is not answered yet."""
        return tools_called(self.environment, self.text) if self.method == "step" else []

    def called(self) -> tuple[ToolCall, ...] | None:
        """All calls of tools up to now; None where the environment has none, or calls them itself."""
        environment = self.environment
        return environment.called if isinstance(environment, Elsewhere) else called_in(environment)


class Play:
    """The episodes of one problem: an `OnTurn` for the sampler."""

    def __init__(self, rules: Rules, problem: Problem) -> None:
        self.rules, self.problem = rules, problem
        self.episodes: dict[int, Episode] = {}
        self._heard: tuple[Played, ...] | None = None

    def __call__(self, number: int, ids: Ids) -> Future[Ids]:
        """Hand a turn to the environment of completion `number`."""
        episode = self.episodes.get(number)
        if episode is None or len(ids) <= episode.asked:  # sampling began anew, where memory ran out
            episode = self.episodes[number] = Episode()
        episode.asked = len(ids)
        found: Future[Ids] = Future()
        self._within_deadline(episode, found, lambda: self._turn(episode, ids, found))
        return found

    def played(self, completions: Sequence[Completion]) -> tuple[Played, ...]:
        """The records of the episodes, once all are over."""
        if self._heard is not None:
            return self._heard
        ends = [self._end(number, completion.token_ids) for number, completion in enumerate(completions)]
        wait(ends)
        for episode in self.episodes.values():
            if isinstance(episode.environment, Elsewhere):
                episode.environment.leave()
        return tuple(self._record(self.episodes[number], c) for number, c in enumerate(completions))

    def hear(self, records: tuple[Played, ...]) -> None:
        """Take the records of episodes that another process played."""
        self._heard = records

    def _within_deadline(self, episode: Episode, found: Future[Ids], work: Callable[[], None]) -> None:
        def late() -> None:
            what = f"gave no answer within environment.deadline={self.rules.deadline:g} s"
            failed = f"the environment's {episode.busy()} {what} (raise it where an answer takes longer)"
            _settle(episode, found, failed=failed, late=[ToolCall(tool, what) for tool in episode.tools()])
            if isinstance(episode.environment, Elsewhere):
                episode.environment.give_up()

        self.rules.ready()  # loading does not count
        if self.rules.deadline < inf:
            timer = Timer(self.rules.deadline, late)
            timer.daemon = True
            found.add_done_callback(lambda _: timer.cancel())
            timer.start()
        Thread(target=work, daemon=True).start()

    def _environment(self, episode: Episode) -> Environment:
        if episode.environment is None:
            episode.environment = self.rules.make()
            reset = getattr(episode.environment, "reset", None)
            begun = turns_of((opened(reset, self.problem) if reset is not None else None) or ())
            if begun != self.rules.opening(self.problem):
                raise DataError("opens two episodes of a problem with different prompts")
        return episode.environment

    def _turn(self, episode: Episode, ids: Ids, found: Future[Ids]) -> None:
        try:
            environment = self._environment(episode)
            text = self.rules.decode(ids[episode.seen :], episode.heard)
            episode.method, episode.text = "step", text
            messages, over, reward = answer_of(environment, text)
            over = over or episode.turns + 1 >= self.rules.turns
            episode.method = "score" if over else "step"
            score, metrics = score_of(environment) if over else (None, {})
            reply = () if over or found.done() else self._encoded(messages, ids[-1])
            heard = () if over else turns_of(messages)
        except BaseException as error:  # whatever it is: nobody else would hear of it
            _settle(episode, found, failed=f"the environment {told(error)}")
            return
        with episode.lock:
            if not found.done():
                episode.said += (("assistant", text), *heard)
                episode.rewards += (reward,)
                episode.turns, episode.answered = episode.turns + 1, len(heard)
                episode.seen, episode.heard, episode.over = len(ids) + len(reply), reply, over
                episode.score, episode.metrics, episode.calls = score, metrics, episode.called()
                found.set_result(reply)

    def _encoded(self, messages: Messages, last: int) -> Ids:
        try:
            ids = self.rules.encode(messages, last)
        except DataError as error:
            raise DataError(f"returned messages that cannot be written: {error}") from error
        if not ids:
            raise DataError("returned messages of which the template writes nothing")
        return ids

    def _end(self, number: int, ids: Ids) -> Future[Ids]:
        """Ask for the score of an episode that was cut off, and of one whose first turn never ended."""
        episode, found = self.episodes.setdefault(number, Episode()), Future[Ids]()
        if episode.over or episode.failed:
            found.set_result(())
            return found

        def work() -> None:
            try:
                environment = self._environment(episode)
                if len(ids) > episode.seen and (cut := getattr(environment, "cut", None)):
                    episode.method = "cut"
                    awaited(cut(self.rules.decode(ids[episode.seen :], episode.heard)))
                episode.method = "score"
                score, metrics = score_of(environment)
            except BaseException as error:
                _settle(episode, found, failed=f"the environment {told(error)}")
                return
            with episode.lock:
                if not found.done():
                    episode.score, episode.metrics, episode.calls = score, metrics, episode.called()
                    found.set_result(())

        self._within_deadline(episode, found, work)
        return found

    def _record(self, episode: Episode, completion: Completion) -> Played:
        said, ids = episode.said, completion.token_ids
        if episode.seen > len(ids):  # the last answer did not fit
            said = said[: len(said) - episode.answered]
        elif not episode.over and len(ids) > episode.seen:
            said = (*said, ("assistant", self.rules.decode(ids[episode.seen :], episode.heard)))
        environment = episode.environment
        if episode.failed:
            return Played(said, failed=episode.failed, right=self.rules.verdict(None), calls=episode.calls)
        paid = any(reward is not None for reward in episode.rewards)
        shown = getattr(environment, "of_trl", None)
        # of a package whose turns are paid the score is only the rest
        whole = None if episode.score is None else getattr(environment, "total", episode.score)
        rewards, right, metrics = episode.rewards if paid else (), self.rules.verdict(whole), episode.metrics
        return Played(
            said, episode.score, rewards=rewards, right=right, metrics=metrics, environment=shown, calls=episode.calls
        )


def _settle(episode: Episode, found: Future[Ids], *, failed: str, late: Sequence[ToolCall] = ()) -> None:
    """End an episode, unless its answer was given by the other thread; calls that are `late` got none."""
    with episode.lock:
        if not found.done():
            calls = episode.called()
            episode.failed, episode.calls = failed, None if calls is None else (*calls, *late)
            found.set_result(())
