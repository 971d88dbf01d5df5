"""Environments in processes of their own: what one prints, starts or breaks stays there, and ends with the run."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from weakref import finalize

from slimrl.environments import Environment, Messages, Step
from slimrl.environments.stage import Known, Loading, Reply, Request
from slimrl.environments.tools import Tool
from slimrl.environments.waiting import LostError
from slimrl.errors import DataError, SettingsError, SlimError
from slimrl.machine.processes import Guard
from slimrl.machine.worker import GIB, LOAD_SECONDS, LoadTimeoutError, Output, Worker
from slimrl.records import Problem, ToolCall

IDLE_SECONDS = 3600.0
"""A process that says nothing for so long is listened to again."""
CLOSING_SECONDS = 5.0
"""For a process that was killed to be gone."""
LOST = -1
"""The number of a reply that the process did not give, since it ended."""


class Elsewhere:
    """The environment of an episode, as the run sees it."""

    def __init__(self, process: Process, episode: int) -> None:
        self._process, self._episode = process, episode
        self.metrics: Mapping[str, float] = {}
        self._called: tuple[ToolCall, ...] = ()
        process.playing.add(episode)
        finalize(self, process.left.append, episode)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that prompts describe; `step` carries out their calls."""
        return tuple(Tool(schema["function"]["name"], schema, _unreachable) for schema in self._process.known.schemas)

    @property
    def scores(self) -> bool:
        """True where the class has `score`."""
        return self._process.known.scores

    def reset(self, problem: Problem) -> Messages | None:
        """The prompt, or None for the task's own."""
        messages: Messages | None = self._call("reset", problem)
        return messages

    def step(self, text: str) -> Step:
        """The answer to a turn."""
        answer: Step
        answer, called = self._call("step", text)
        self._called = called or ()
        return answer

    @property
    def called(self) -> tuple[ToolCall, ...] | None:
        """The calls of tools in turns that were answered; None where the class has no tools, or could not be loaded."""
        return self._called if self._process.has_tools else None

    def cut(self, text: str) -> None:
        """Tell of a turn that was cut off."""
        self._call("cut", text)

    def score(self) -> float | None:
        """The score; `metrics` are then those behind it."""
        score: float | None
        score, self.metrics = self._call("score")
        return score

    def leave(self) -> None:
        """Tell that the episode is over."""
        self._process.left.append(self._episode)

    def give_up(self) -> None:
        """Wait no longer for an answer that is late; its process is not trusted with further episodes."""
        self._process.retired = True
        self.leave()

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._process.call(self._episode, method, arguments)


def _unreachable(**_: Any) -> None:
    raise AssertionError("tools are called in the process of the environment")


class Process:
    """One process, and the thread that starts it, listens to it and ends it."""

    def __init__(self, worker: Worker) -> None:
        self.retired = False
        """It gets no further episodes."""
        self.playing: set[int] = set()
        self.left = deque[int]()
        """Episodes that are over, of which nothing here or there has been forgotten yet. Whatever collects garbage appends to it,
        in any thread, so it has no lock."""
        self._worker = worker
        self._known = Future[Known]()
        self._lock = threading.Lock()
        """Of what follows, and of the way to the process."""
        self._asked: dict[int, Future[Reply]] = {}
        self._numbers = itertools.count()
        self._loss = ""
        """The words on how it was lost."""
        self._thread = threading.Thread(target=self._serve, name="environments", daemon=True)
        self._thread.start()

    @property
    def known(self) -> Known:
        """Raises what kept the process from loading the class."""
        return self._known.result()

    @property
    def has_tools(self) -> bool:
        """True once a class with tools is loaded."""
        return self._known.done() and self._known.exception() is None and bool(self._known.result().schemas)

    @property
    def refused(self) -> bool:
        """True where the class cannot be loaded, which another process would not change."""
        return self._known.done() and isinstance(self._known.exception(), SettingsError)

    @property
    def over(self) -> bool:
        """True where no episode of it goes on."""
        self._forget()
        return not self.playing

    def call(self, episode: int, method: str, arguments: tuple[Any, ...]) -> Any:
        """The value of a method; raises DataError where it fails, or the process ends."""
        self._known.result()
        found = Future[Reply]()
        with self._lock:
            if self._loss:
                raise LostError(self._loss)
            number = next(self._numbers)
            self._asked[number] = found
            with suppress(EOFError, OSError):  # the thread that listens tells of that
                self._worker.ask(Request(number, episode, method, arguments, self._forget()))
        reply = found.result()
        if reply.failed:
            raise (LostError if reply.number == LOST else DataError)(reply.failed)
        return reply.value

    def close(self) -> None:
        """End the process with all that it started."""
        self.retired = True
        self._worker.kill()
        self._thread.join(CLOSING_SECONDS)

    def _forget(self) -> tuple[int, ...]:
        left: list[int] = []
        with suppress(IndexError):
            while True:
                left.append(self.left.popleft())
        self.playing.difference_update(left)
        return tuple(left)

    def _serve(self) -> None:
        try:
            self._worker.start()
            self._worker.ask(None)
            self._known.set_result(self._worker.reply(LOAD_SECONDS))
        except BaseException as error:
            self.retired = True
            self._known.set_exception(_refusal(error, self._worker.end()))
            return
        with suppress(Exception):  # it has ended, or says what cannot be read
            while True:
                with suppress(TimeoutError):
                    reply = self._worker.reply(IDLE_SECONDS)
                    self._asked.pop(reply.number).set_result(reply)
        self.retired = True
        how = self._worker.end()
        with self._lock:
            self._loss = f"lost its process, which ended with {how}"
        for found in self._asked.values():
            found.set_result(Reply(LOST, self._loss))


def _refusal(error: BaseException, how: str) -> BaseException:
    """The error for the user, where a class was not loaded."""
    if isinstance(error, SlimError):
        return error
    if isinstance(error, LoadTimeoutError | TimeoutError):
        what = (
            f"loading the class takes longer than {LOAD_SECONDS:g} s; make it load faster, or set environment.workers=0"
        )
    elif isinstance(error, EOFError):
        what = f"the process that loaded the class ended with {how}; correct it"
    elif isinstance(error, OSError):
        what = f"no process can be started for it ({error.strerror or error}); set environment.workers=0"
    else:
        return error
    return SettingsError(f"environment.name: {what}")


class Processes:
    """Processes that play the episodes of a class, each of them many at a time.

    A process in which an answer is late gets no further episodes, and is ended with all that it started once its other episodes
    are over; one that ends takes its episodes with it. Another takes its place. None outlives this process, and of what
    environments start only a process with a session of its own may, if its environment is its own too or this process was killed.
    """

    def __init__(self, loading: Loading, count: int, show: Callable[[str], object]) -> None:
        """Start `count` processes; `show` is called with what environments print, as far as `Output` shows it."""
        self._loading, self._count = loading, count
        try:
            self._output, self._guard = Output(show, "environments"), Guard()
        except OSError as error:
            raise _refusal(error, "") from None
        self._lock, self._episodes = threading.Lock(), itertools.count()
        self._current, self._retired = [self._started() for _ in range(count)], list[Process]()
        self.close = finalize(self, _close, self._current, self._retired, self._guard)
        """Ends all processes, and is called at the latest when this process ends."""

    @property
    def known(self) -> Known:
        """Raises SettingsError where the class cannot be loaded, or is no environment."""
        return self._current[0].known

    def ready(self) -> None:
        """Replace the processes that are retired, end those whose episodes are over, and wait until all have loaded the class."""
        with self._lock:
            for place, process in enumerate(self._current):
                if process.retired and not process.refused:
                    self._retired.append(process)
                    self._current[place] = self._started()
            for process in [process for process in self._retired if process.over]:
                self._retired.remove(process)
                process.close()
        for process in self._current:
            with suppress(Exception):  # which the first episode tells
                _ = process.known

    def make(self) -> Environment:
        """The environment of a new episode."""
        self.ready()
        with self._lock:
            episode = next(self._episodes)
            return Elsewhere(self._current[episode % self._count], episode)

    def _started(self) -> Process:
        memory = int(self._loading.config.memory * GIB)
        return Process(Worker(self._loading, memory=memory, output=self._output.write, guard=self._guard, at_once=True))


def _close(current: list[Process], retired: list[Process], guard: Guard) -> None:
    for process in (*current, *retired):
        process.close()
    guard.close()
