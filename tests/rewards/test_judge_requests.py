"""The fields of a judge's request, and endpoints that do not take all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.judge import JudgeReward
from slimrl.errors import SettingsError
from slimrl.rewards.judge_endpoint import refused_field
from tests.judges import serving
from tests.rewards.test_judge import group_of, only

REQUIRED = {"path", "model", "messages"}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 512}),
        ({"temperature": "default"}, {"max_tokens": 512}),
        ({"temperature": "default", "max_tokens": "default"}, {}),
        (
            {"max_tokens": "default", "request": {"max_completion_tokens": 2048, "reasoning": {"effort": "low"}}},
            {"temperature": 0.0, "max_completion_tokens": 2048, "reasoning": {"effort": "low"}},
        ),
    ],
)
def test_fields_can_be_left_out_and_added(given: dict[str, Any], sent: dict[str, Any], tmp_path: Path) -> None:
    with serving(lambda *_: "Score: 7") as server:
        assert only(group_of(server.endpoint, tmp_path, ["text"], **given))[1] == {"quality": 7.0}
    (request,) = server.asked
    assert {key: value for key, value in request.items() if key not in REQUIRED} == sent


def _openai(param: str | None, message: str, code: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return json.dumps({"error": error}).encode()


TOKENS = _openai(
    "max_tokens",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "unsupported_parameter",
)
HEAT = _openai(
    "temperature",
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
    "unsupported_value",
)
EFFORT = b'{"detail": "unknown field reasoning_effort"}'
LONG = _openai(
    "max_tokens", "'max_tokens' is too large: 512. This model's maximum context length is 4096 tokens.", "invalid_value"
)
COLD = _openai("temperature", "Invalid value: must be 1 for this model.", "invalid_value")
NESTED = _openai(
    "reasoning_effort.level", "Invalid value: 'none'. Supported values are: 'low' and 'high'.", "invalid_value"
)
LONG_AND_UNKNOWN = _openai("messages", "an unknown word near max_tokens", "invalid_value")


@pytest.mark.parametrize(
    ("body", "field"),
    [(TOKENS, "max_tokens"), (HEAT, "temperature"), (COLD, "temperature"), (NESTED, "reasoning_effort"), (EFFORT, "reasoning_effort"), (LONG, ""), (LONG_AND_UNKNOWN, ""),
     (b"Unsupported parameter: max_tokens", "max_tokens"), (b"", ""), (b"[" * 5000 + b"unsupported", ""), (b"\xff unsupported", "")],
)  # fmt: skip
def test_the_field_that_a_server_does_not_take(body: bytes, field: str) -> None:
    assert refused_field(body, ["temperature", "max_tokens", "reasoning_effort"]) == field


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        (
            TOKENS,
            "set rewards.judge.quality.max_tokens=default and rewards.judge.quality.request.max_completion_tokens=512",
        ),
        (HEAT, "set rewards.judge.quality.temperature=default"),
        (EFFORT, "change or remove reasoning_effort in rewards.judge.quality.request"),
    ],
)
def test_a_field_that_is_refused_is_named_with_the_way_out(body: bytes, remedy: str, tmp_path: Path) -> None:
    """In the gold check and the first step, so before anything is paid."""
    with serving(lambda *_: (400, {}, body)) as server:
        with pytest.raises(SettingsError) as caught:
            group_of(server.endpoint, tmp_path, ["text"], strict=True, request={"reasoning_effort": "low"})
        assert len(server.asked) == 1, "the same request would be refused again"
    sentence = str(caught.value)
    assert sentence.startswith("reward quality was answered 400 Bad Request by its judge, which does not take ")
    assert sentence.endswith(f"; {remedy}")
    assert "\n" not in sentence


def test_a_text_that_is_too_long_costs_its_own_score(tmp_path: Path) -> None:
    with serving(lambda *_: (400, {}, LONG)) as server:
        assert only(group_of(server.endpoint, tmp_path, ["text"], strict=True))[2] == (
            "reward quality was answered 400 Bad Request by its judge"
        )


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"model": "m"}, "request may not hold model; set model of the judge instead"),
        ({"messages": []}, "request may not hold messages; set prompt of the judge instead"),
        ({"max_tokens": 3}, "request may not hold max_tokens; set max_tokens of the judge instead"),
        ({"stream": True}, "request may not hold stream; a judge is asked for one whole reply"),
        ({"n": 2}, "request may not hold n; a judge is asked for one whole reply"),
        ({"x": object()}, "request holds something that JSON cannot"),
    ],
)
def test_fields_that_no_request_may_have(request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        JudgeReward(endpoint="http://h", model="m", prompt="{completion}", low=0, high=1, request=request_)
