"""One request to an endpoint that speaks OpenAI's chat completions, and what its answers and failures mean."""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from slimrl.config.judge import JudgeReward
from slimrl.errors import SettingsError
from slimrl.rewards.outcomes import Unscored

LARGEST_REPLY = 1 << 22  # bytes
PASSING = {408, 409, 425, 429}
"""Answers of a server, besides 500 and above, after which the same request may succeed."""
OF_THE_SETUP = {401, 403, 404, 405, 407}
"""Answers that say that the judge is set up wrongly, whatever is asked."""
OPTIONAL = ("temperature", "max_tokens")
"""Fields of the request that are not sent where their setting is `default`."""
CUT_OFF = ("length", "content_filter")
"""Reasons of an endpoint for a reply that ends before the model ends it."""
RATE_LIMITED = Unscored("was rate-limited by its judge (429)", excused=True)


class FailureError(Exception):
    """An attempt without a reply."""

    def __init__(self, what: Unscored, *, again: bool = False, wait: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(what.reason)
        self.what = what
        self.again = again
        """Another attempt may succeed."""
        self.wait = wait
        """Seconds that the server asks for before it."""
        self.unreachable = unreachable


class Endpoint:
    """The endpoint of a judge.

    Args:
        name: of the reward.
        config: its settings.

    Raises SettingsError where the key is not there. Requests may come from any thread.
    """

    def __init__(self, name: str, config: JudgeReward) -> None:
        self.config = config
        self.address = _address(config.endpoint)
        self._key = read_key(name, config)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._setting = f"rewards.judge.{name}"
        limited = f"lower {self._setting}.concurrency, or raise its retries and timeout"
        self.rate_limited = replace(RATE_LIMITED, remedy=limited)

    def ask(self, body: bytes, end: float) -> str:
        """The judge's text; raises FailureError without one."""
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
                raise FailureError(Unscored(late, excused=True, remedy=way_out)) from None
            broken = isinstance(reason, BrokenPipeError | ConnectionResetError | ConnectionAbortedError)
            if isinstance(error, urllib.error.URLError) and not broken:
                way_out = f"start the server, or correct {self._setting}.endpoint"
                what = Unscored(f"cannot reach its judge at {self.address} ({self.shown(reason)})", remedy=way_out)
                raise FailureError(what, again=True, unreachable=True) from None
            raise FailureError(Unscored("lost the connection to its judge", excused=True), again=True) from None
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
            raise FailureError(Unscored(cut_off, excused=True, remedy=way_out))
        if content is not None and not isinstance(content, str):
            where = f"it sent {self.shown(raw[:200].decode('utf-8', 'replace'))!r}"
            way_out = f"correct {self._setting}.endpoint, the base address of an OpenAI-compatible API (it often ends with /v1)"
            what = Unscored("got no chat completion from its judge", where, excused=True, remedy=way_out)
            raise FailureError(what, again=True)
        if not content:
            raise FailureError(Unscored("got an empty reply from its judge", excused=True), again=True)
        return content

    def _refused(self, error: urllib.error.HTTPError) -> FailureError:
        """The failure that a server's status stands for."""
        with error:
            try:
                raw = error.read(2000)
            except (OSError, http.client.HTTPException):
                raw = b""
        where = self.shown(raw.decode("utf-8", "replace"))
        if error.code == 429:
            return FailureError(self.rate_limited, again=True, wait=retry_after(error.headers.get("Retry-After", "")))
        reason = f"was answered {error.code} {http.client.responses.get(error.code, '')}".strip() + " by its judge"
        if error.code in PASSING or error.code >= 500:
            wait = retry_after(error.headers.get("Retry-After", ""))
            return FailureError(Unscored(reason, where, excused=True), again=True, wait=wait)
        if error.code in (400, 422) and (name := refused_field(raw, [*OPTIONAL, *self.config.request])):
            return FailureError(
                Unscored(f"{reason}, which does not take {name} as it is", where, remedy=self._remedy(name))
            )
        of_the_setup = error.code in OF_THE_SETUP or 300 <= error.code < 400
        way_out = f"correct endpoint, model or api_key_env of {self._setting}" if of_the_setup else ""
        return FailureError(Unscored(reason, where, excused=not of_the_setup, remedy=way_out))

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

    def shown(self, text: object) -> str:
        """A server's words in one line, without the key, which some servers repeat."""
        line = " ".join(str(text).split())[:160]
        return line.replace(self._key, "***") if self._key else line


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Sends the key to no other place than the one that the settings name."""

    def redirect_request(self, *_: Any) -> None:
        return None


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


def read_key(name: str, config: JudgeReward) -> str:
    """The key of a judge, empty where it needs none; raises SettingsError where it is not there."""
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


def retry_after(text: str) -> float:
    """Seconds of a Retry-After header, which is a number or a date; 0 for anything else."""
    try:
        wait = float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, wait)
