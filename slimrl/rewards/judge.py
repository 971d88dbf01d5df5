"""A reward that a language model gives, behind any endpoint that speaks OpenAI's chat completions.

Judges are asked from threads of the main process: they wait for the network and compute nothing, one limit on concurrency holds
for the whole run, one process writes what they said, and the key never reaches the workers that run a user's code.
"""

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import regex  # type: ignore[import-untyped]

from slimrl.config.judge import JudgeReward
from slimrl.rewards.judge_cache import CACHE as CACHE
from slimrl.rewards.judge_cache import JudgeCache, key_of
from slimrl.rewards.judge_endpoint import OPTIONAL, Endpoint, FailureError, read_key
from slimrl.rewards.judge_prompt import filled, read_prompt
from slimrl.rewards.judge_score import score_in
from slimrl.rewards.outcomes import Outcome, Unscored

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second attempt, doubled from one to the next, and the most of them; a server may ask for more."""
DEAD_SECONDS = 30.0
"""For so long after all attempts to reach a judge failed, others are made once only, so that a dead judge ends a step soon."""
ENDED = Unscored("was not asked, since the run ended", excused=True)


class Judge:
    """The reward function of a judge, with TRL's signature.

    Args:
        name: of the reward.
        config: its settings.
        cache: file of all replies.

    Raises SettingsError where the prompt's file or the key is not there. `ask` and calls may come from any thread.
    """

    def __init__(self, name: str, config: JudgeReward, cache: Path) -> None:
        self.name, self.config = name, config
        self._prompt = read_prompt(name, config)
        self._endpoint = Endpoint(name, config)
        self._pattern = regex.compile(config.pattern)
        self._cache = JudgeCache(cache)
        self._jobs: SimpleQueue[tuple[str, dict[str, Any], Future[Outcome]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._under_way: dict[str, Future[Outcome]] = {}
        """By the key of the request: equal completions of a group are one question."""
        self._closed = threading.Event()
        self._not_before = self._dead_until = -math.inf
        self._setting = f"rewards.judge.{name}"
        self.failure = ENDED
        """The last of the outcomes without a score."""

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[Outcome]:
        """The outcome of each completion, as soon as all are there."""
        lists = {name: column for name, column in columns.items() if isinstance(column, list)}
        return [future.result() for future in self.ask({"completions": completions, **lists})]

    def ask(self, columns: Mapping[str, Sequence[Any]]) -> list[Future[Outcome]]:
        """The outcome of each completion, while others are asked for; none of them is an exception."""
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return [self._asked(row) for row in rows]

    def close(self) -> None:
        """Ask nothing more; what waits is unscored."""
        self._closed.set()
        for _ in self._threads:
            self._jobs.put(None)

    def _asked(self, row: Mapping[str, Any]) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        text = filled(self._prompt, row)
        if isinstance(text, Unscored):
            future.set_result(text)
            return future
        config = self.config
        request: dict[str, Any] = {"model": config.model, "messages": [{"role": "user", "content": text}]}
        for name in OPTIONAL:
            if (value := getattr(config, name)) != "default":
                request[name] = value
        request |= config.request
        key = key_of(self._endpoint.address, request)
        with self._lock:
            if key in self._under_way:
                return self._under_way[key]
            self._under_way[key] = future
            self._jobs.put((key, request, future))
            if len(self._threads) < min(config.concurrency, len(self._under_way)):
                # a daemon: a program that ends does not wait for a judge that does not answer
                self._threads.append(threading.Thread(target=self._run, name=f"judge {self.name}", daemon=True))
                self._threads[-1].start()
        return future

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            key, request, future = job
            try:
                found = ENDED if self._closed.is_set() else self._outcome(key, request)
            except Exception as error:
                found = Unscored(self._endpoint.shown(f"raised {type(error).__name__}: {error}"))
            if isinstance(found, Unscored):
                self.failure = found
            with self._lock:
                del self._under_way[key]
            future.set_result(found)

    def _outcome(self, key: str, request: dict[str, Any]) -> Outcome:
        reply = self._cache.find(key)
        if reply is None:
            said = self._reply(request)
            if isinstance(said, Unscored):
                return said
            reply = said
            self._cache.keep(key, self._endpoint.address, request, reply)
        return self._score(reply)

    def _reply(self, request: dict[str, Any]) -> str | Unscored:
        """The judge's text, after as many attempts as there is time for."""
        end = time.monotonic() + self.config.timeout
        attempts = 1 if time.monotonic() < self._dead_until else 1 + self.config.retries
        body = json.dumps(request).encode()
        last, ready = FailureError(self._endpoint.rate_limited), -math.inf
        for attempt in range(attempts):
            if not self._may_ask(ready, end):
                break
            try:
                reply = self._endpoint.ask(body, end)
            except FailureError as failure:
                last = failure
            else:
                self._dead_until = -math.inf
                return reply
            if not last.again:
                break
            ready = time.monotonic() + min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
            if last.wait:  # for all requests: what one was refused others would be too
                self._not_before = max(self._not_before, time.monotonic() + last.wait)
        if last.unreachable:
            self._dead_until = time.monotonic() + DEAD_SECONDS
        return last.what

    def _may_ask(self, ready: float, end: float) -> bool:
        """Wait until the next attempt may be made; false where that is too late."""
        while (wait := max(ready, self._not_before) - time.monotonic()) > 0:
            if time.monotonic() + wait >= end or self._closed.wait(wait):
                return False
        return time.monotonic() < end

    def _score(self, reply: str) -> Outcome:
        """The score in a reply, if it is beyond doubt and within its bounds."""
        where = f"it wrote {reply[-80:]!r}"
        try:
            score = score_in(reply, self._pattern, self.config.high)
        except TimeoutError:
            return Unscored("took too long to look for a score in its judge's reply", where, excused=True)
        if isinstance(score, str):
            way_out = f"ask for a last line like Score: 7 in {self._setting}.prompt, or set its pattern"
            return Unscored(score, where, excused=True, remedy=way_out)
        if not self.config.low <= score <= self.config.high:
            bounds = f"{self.config.low:g} to {self.config.high:g}"
            way_out = f"ask for this scale in {self._setting}.prompt, or set its low and high"
            return Unscored(f"was given a score outside of {bounds} by its judge", where, excused=True, remedy=way_out)
        return score


def check_judge(name: str, config: JudgeReward) -> None:
    """Raises SettingsError where the prompt's file or the key is not there, as making the judge does."""
    read_prompt(name, config)
    read_key(name, config)
