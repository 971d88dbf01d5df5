"""Greedy answers of two samplers, compared: both compute the same model, so they differ by rounding, or one of them is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimrl.records import Completion
from slimrl.rollout import Request, Sampler


@dataclass(frozen=True)
class Difference:
    """The place at which two greedy completions of a prompt differ most."""

    nats: float
    """Between the log-probabilities of the tokens there; infinite where one completion ends and the other goes on."""
    prompt: int
    """Number of the prompt, from 0."""
    token: int
    """Number of the token in the completion, from 0."""


def largest_difference(
    first: Sampler, second: Sampler, prompts: Sequence[tuple[int, ...]], *, max_new_tokens: int
) -> Difference:
    """The largest difference of two samplers on greedy completions of these prompts."""
    requests = [Request(ids, np.zeros((0, max_new_tokens)), greedy=1) for ids in prompts]
    drawn = [sampler.generate(requests, max_new_tokens=max_new_tokens) for sampler in (first, second)]
    found = []
    for prompt, ((ours,), (theirs,)) in enumerate(zip(*drawn, strict=True)):
        nats, token = difference(ours, theirs)
        found.append(Difference(nats, prompt, token))
    return max(found, key=lambda one: one.nats)


def difference(ours: Completion, theirs: Completion) -> tuple[float, int]:
    """Nats by which two greedy completions differ at most, up to the first token that is another one, and the place of it.

    Behind that token the two answer different texts. There rounding may have decided between two tokens of about the same
    probability, so the log-probabilities of the two are compared like those of equal tokens.
    """
    most, place = 0.0, 0
    pairs = zip(ours.token_ids, theirs.token_ids, ours.logprobs, theirs.logprobs, strict=False)
    for token, (a, b, of_a, of_b) in enumerate(pairs):
        nats = abs(of_a - of_b)
        if not nats <= most:
            most, place = (math.inf if math.isnan(nats) else nats), token
        if a != b:
            return most, place
    if len(ours.token_ids) != len(theirs.token_ids):
        return math.inf, min(len(ours.token_ids), len(theirs.token_ids))
    return most, place
