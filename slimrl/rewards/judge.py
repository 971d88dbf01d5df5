"""A reward that a language model gives, behind any endpoint that speaks OpenAI's chat completions.

Judges are asked from threads of the main process: they wait for the network and compute nothing, one limit on concurrency holds
for the whole run, one process writes what they said, and the key never reaches the workers that run a user's code.
"""

import http.client
import json
import math
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import regex  # type: ignore[import-untyped]

from slimrl.config.judge import JudgeReward
from slimrl.errors import SettingsError
from slimrl.rewards.judge_cache import CACHE as CACHE
from slimrl.rewards.judge_cache import JudgeCache, key_of
from slimrl.rewards.judge_score import score_in
from slimrl.rewards.outcomes import Outcome, Unscored

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second attempt, doubled from one to the next, and the most of them; a server may ask for more."""
DEAD_SECONDS = 30.0
"""For so long after all attempts to reach a judge failed, others are made once only, so that a dead judge ends a step soon."""
LARGEST_REPLY = 1 << 22  # bytes
PASSING = {408, 409, 425, 429}
"""Answers of a server, besides 500 and above, after which the same request may succeed."""
OF_THE_SETUP = {401, 403, 404, 405, 407}
"""Answers that say that the judge is set up wrongly, whatever is asked."""


class _FailureError(Exception):
    """An attempt without a reply."""

    def __init__(self, what: Unscored, *, again: bool = False, wait: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(what.reason)
        self.what = what
        self.again = again
        """Another attempt may succeed."""
        self.wait = wait
        """Seconds that the server asks for before it."""
        self.unreachable = unreachable


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
        self.address = _address(config.endpoint)
        self._template = _template(name, config)
        self._key = _key(name, config)
        self._pattern = regex.compile(config.pattern)
        self._cache = JudgeCache(cache)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._jobs: SimpleQueue[tuple[str, dict[str, Any], Future[Outcome]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._under_way: dict[str, Future[Outcome]] = {}
        """By the key of the request: equal completions of a group are one question."""
        self._closed = threading.Event()
        self._not_before = self._dead_until = -math.inf
        self._setting = f"rewards.judge.{name}"
        limited = f"lower {self._setting}.concurrency, or raise its retries and timeout"
        self._rate_limited = replace(RATE_LIMITED, remedy=limited)
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
        text = self._filled(row)
        if isinstance(text, Unscored):
            future.set_result(text)
            return future
        config = self.config
        request: dict[str, Any] = {"model": config.model, "messages": [{"role": "user", "content": text}]}
        for name in OPTIONAL:
            if (value := getattr(config, name)) != "default":
                request[name] = value
        request |= config.request
        key = key_of(self.address, request)
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
                found = Unscored(self._shown(f"raised {type(error).__name__}: {error}"))
            if isinstance(found, Unscored):
                self.failure = found
            with self._lock:
                del self._under_way[key]
            future.set_result(found)

    def _filled(self, row: Mapping[str, Any]) -> str | Unscored:
        """The request's text, its names in braces replaced in one pass, so that braces in a completion stay what they are."""
        singular = {"prompts": "prompt", "completions": "completion"}
        values = {singular.get(name, name): value for name, value in row.items() if name != "completion_ids"}
        unknown = [name for doubled, name in NAMES.findall(self._template) if not doubled and name not in values]
        if unknown:
            return Unscored(
                f"has a prompt with {{{unknown[0]}}}, and the row has {', '.join(sorted(values))}",
                remedy=f"name one of these, or write {{{{{unknown[0]}}}}} for the braces themselves",
            )
        return NAMES.sub(lambda found: f"{{{found[2]}}}" if found[1] else _text(values[found[2]]), self._template)

    def _outcome(self, key: str, request: dict[str, Any]) -> Outcome:
        reply = self._cache.find(key)
        if reply is None:
            said = self._reply(request)
            if isinstance(said, Unscored):
                return said
            reply = said
            self._cache.keep(key, self.address, request, reply)
        return self._score(reply)

    def _reply(self, request: dict[str, Any]) -> str | Unscored:
        """The judge's text, after as many attempts as there is time for."""
        end = time.monotonic() + self.config.timeout
        attempts = 1 if time.monotonic() < self._dead_until else 1 + self.config.retries
        body = json.dumps(request).encode()
        last, ready = _FailureError(self._rate_limited), -math.inf
        for attempt in range(attempts):
            if not self._may_ask(ready, end):
                break
            try:
                reply = self._attempt(body, end)
            except _FailureError as failure:
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

    def _attempt(self, body: bytes, end: float) -> str:
        """The judge's text; raises _FailureError without one."""
        headers = {"Content-Type": "application/json", "User-Agent": "slimrl"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.address, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=max(0.001, end - time.monotonic())) as response:
                raw = _read(response, end)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError) or isinstance(error, TimeoutError):
                late = f"had no reply from its judge within {self._setting}.timeout={self.config.timeout:g} s"
                way_out = f"raise {self._setting}.timeout, or lower its concurrency"
                raise _FailureError(Unscored(late, excused=True, remedy=way_out)) from None
            broken = isinstance(reason, BrokenPipeError | ConnectionResetError | ConnectionAbortedError)
            if isinstance(error, urllib.error.URLError) and not broken:
                way_out = f"start the server, or correct {self._setting}.endpoint"
                what = Unscored(f"cannot reach its judge at {self.address} ({self._shown(reason)})", remedy=way_out)
                raise _FailureError(what, again=True, unreachable=True) from None
            raise _FailureError(Unscored("lost the connection to its judge", excused=True), again=True) from None
        finish: object = None
        try:
            choice = json.loads(raw)["choices"][0]
            content, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            content = 0
        if finish in CUT_OFF:  # what is left may end in the middle of a score
            cut_off, way_out = (
                f"got a reply that its judge did not finish ({finish})",
                f"raise {self._setting}.max_tokens",
            )
            raise _FailureError(Unscored(cut_off, excused=True, remedy=way_out))
        if content is not None and not isinstance(content, str):
            where = self._shown(raw[:200].decode("utf-8", "replace"))
            raise _FailureError(
                Unscored("got no chat completion from its judge", f"it sent {where!r}", excused=True), again=True
            )
        if not content:
            raise _FailureError(Unscored("got an empty reply from its judge", excused=True), again=True)
        return content

    def _refused(self, error: urllib.error.HTTPError) -> _FailureError:
        """The failure that a server's status stands for."""
        with error:
            try:
                raw = error.read(2000)
            except (OSError, http.client.HTTPException):
                raw = b""
        where = self._shown(raw.decode("utf-8", "replace"))
        if error.code == 429:
            return _FailureError(
                self._rate_limited, again=True, wait=_retry_after(error.headers.get("Retry-After", ""))
            )
        reason = f"was answered {error.code} {http.client.responses.get(error.code, '')}".strip() + " by its judge"
        if error.code in PASSING or error.code >= 500:
            wait = _retry_after(error.headers.get("Retry-After", ""))
            return _FailureError(Unscored(reason, where, excused=True), again=True, wait=wait)
        if error.code in (400, 422) and (name := refused_field(raw, [*OPTIONAL, *self.config.request])):
            return _FailureError(
                Unscored(f"{reason}, which does not take {name} as it is", where, remedy=self._remedy(name))
            )
        of_the_setup = error.code in OF_THE_SETUP or 300 <= error.code < 400
        way_out = f"correct endpoint, model or api_key_env of {self._setting}" if of_the_setup else ""
        return _FailureError(Unscored(reason, where, excused=not of_the_setup, remedy=way_out))

    def _remedy(self, name: str) -> str:
        """The way out where the server does not take a field of the request."""
        setting = self._setting
        if name in self.config.request:
            return f"change or remove {name} in {setting}.request"
        if name == "max_tokens":
            return (
                f"set {setting}.max_tokens=default and {setting}.request.max_completion_tokens={self.config.max_tokens}"
            )
        return f"set {setting}.{name}=default"

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

    def _shown(self, text: object) -> str:
        """A server's words in one line, without the key, which some servers repeat."""
        line = " ".join(str(text).split())[:160]
        return line.replace(self._key, "***") if self._key else line


def check_judge(name: str, config: JudgeReward) -> None:
    """Raises SettingsError where the prompt's file or the key is not there, as making the judge does."""
    _template(name, config)
    _key(name, config)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Sends the key to no other place than the one that the settings name."""

    def redirect_request(self, *_: Any) -> None:
        return None


NAMES = re.compile(r"\{(\{)?([A-Za-z_]\w*)\}(?(1)\})")
OPTIONAL = ("temperature", "max_tokens")
"""Fields of the request that are not sent where their setting is `default`."""
CUT_OFF = ("length", "content_filter")
"""Reasons of an endpoint for a reply that ends before the model ends it."""
RATE_LIMITED = Unscored("was rate-limited by its judge (429)", excused=True)
ENDED = Unscored("was not asked, since the run ended", excused=True)


def refused_field(body: bytes, names: Sequence[str]) -> str:
    """The field of the request that a server says it does not take; empty where its words are about something else, such as a
    prompt that is too long.
    """
    text = body.decode("utf-8", "replace")
    try:
        told = str(json.loads(text)["error"]["param"] or "").split(".")[0]
    except (ValueError, LookupError, TypeError, RecursionError):
        told = ""
    if told in names and "tokens" not in told:  # of how many tokens there may be, the prompt decides too
        return told
    if not re.search(
        r"unsupported|not support|unrecognized|unknown|unexpected|not permitted|not allowed", text, re.IGNORECASE
    ):
        return ""
    return next((name for name in ([told] if told else re.findall(r"\w+", text)) if name in names), "")


def _address(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith("/chat/completions") else path + "/chat/completions"))


def _template(name: str, config: JudgeReward) -> str:
    text = config.prompt
    if config.prompt_file:
        try:
            text = Path(config.prompt_file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise SettingsError(
                f"rewards.judge.{name}.prompt_file={config.prompt_file}: {reason}; name a text file"
            ) from None
    if ("", "completion") not in NAMES.findall(text):
        raise SettingsError(
            f"rewards.judge.{name}: the prompt does not hold {{completion}}, so the judge sees none; add it (doubled braces "
            "stand for themselves)"
        )
    return text


def _key(name: str, config: JudgeReward) -> str:
    if not config.api_key_env:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise SettingsError(
            f"rewards.judge.{name}.api_key_env={config.api_key_env}: there is no such environment variable; export it"
        )
    if not key.isascii() or not key.isprintable():
        raise SettingsError(f"rewards.judge.{name}: the key in {config.api_key_env} has characters that no key has")
    return key


def _text(value: object) -> str:
    """A value in a prompt."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)


def _read(response: http.client.HTTPResponse, end: float) -> bytes:
    """The body; raises TimeoutError where it is not there in time, however steadily it comes."""
    parts: list[bytes] = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if time.monotonic() >= end:
            raise TimeoutError
        if sum(map(len, parts)) > LARGEST_REPLY:
            break
    return b"".join(parts)


def _retry_after(text: str) -> float:
    """Seconds of a Retry-After header, which is a number or a date; 0 for anything else."""
    try:
        wait = float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, wait)
