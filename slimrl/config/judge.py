"""The settings of a judge: a language model behind an OpenAI-compatible endpoint that scores completions."""

import json
import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from slimrl.config.base import Count, CountOrZero, NonNegative, Positive, Section

SCORE = r"(?i)\bscore[\"'*_]*\s*[:=][\s\"'*_(\[]*(-?\d+(?:\.\d+)?)(?!\w|[.,]\d)"
"""`Score: 7.5`, also with Markdown or JSON around it. What may be something else, as `Score (0-10): 7`, is no score."""


class JudgeReward(Section):
    """A reward that a language model gives."""

    endpoint: str
    """Base address of an OpenAI-compatible server, like http://localhost:8000/v1; it may end with /chat/completions."""
    model: str
    """Name of the model, as the server knows it."""
    prompt: str = ""
    """Text of the request: {question}, {answer}, {solution}, {completion}, {prompt} and every column of the data stand for the
    row's; other braces stay as they are."""
    prompt_file: str = ""
    """File that holds the text of the request instead."""
    pattern: str = SCORE
    """Regular expression with one group, the number that is the score; where it fits several times, the last one counts. The
    default finds `Score: 7.5`, and no score where that is in doubt."""
    weight: float = 1.0
    """Factor before the sum."""
    low: float
    """Lowest score; a number below it is no score."""
    high: float
    """Highest score."""
    temperature: NonNegative | Literal["default"] = 0.0
    """Of the judge's reply; `default` sends none, and the server's own holds."""
    max_tokens: Count | Literal["default"] = 512
    """Of the judge's reply; `default` sends none, and the server's own holds."""
    request: dict[str, Any] = Field(default={})
    """Further fields of the request, as {max_completion_tokens: 2048, reasoning_effort: low}."""
    concurrency: Count = 16
    """Requests that are under way at once."""
    retries: CountOrZero = 4
    """Further attempts where the server limits the rate, fails or cannot be reached, each after twice the wait or what the server
    asks for."""
    timeout: Positive = 60.0
    """Seconds for a score, all attempts together, after which the completion is unscorable."""
    cache: str = "auto"
    """File of all replies, by which no question is asked twice; `auto`: judge-cache.jsonl in the folder of the runs."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; empty: none is sent. The key itself is written nowhere."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        place = urlsplit(self.endpoint)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError(f"endpoint={self.endpoint!r} is no address; write it like http://localhost:8000/v1")
        if "@" in place.netloc:
            raise ValueError(
                "endpoint holds a name or a password; put the key into the variable that api_key_env names"
            )
        if bool(self.prompt) == bool(self.prompt_file):
            raise ValueError("a judge needs either prompt or prompt_file; set one of them")
        for name in sorted({"model", "messages", "temperature", "max_tokens", "stream", "n"} & {*self.request}):
            setting = "prompt" if name == "messages" else name
            own = (
                f"set {setting} of the judge instead"
                if setting in type(self).model_fields
                else "a judge is asked for one whole reply"
            )
            raise ValueError(f"request may not hold {name}; {own}")
        try:
            json.dumps(self.request, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("request holds something that JSON cannot, such as a date; write it as a text") from None
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r} is no regular expression ({error}); correct it") from None
        if groups != 1:
            raise ValueError(f"pattern={self.pattern!r} has {groups} groups; put the number, and it alone, into one")
        return self


Name = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
"""Of a judge, which names its reward."""
