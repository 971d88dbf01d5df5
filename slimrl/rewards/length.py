"""Rewards that look at nothing but length."""

from __future__ import annotations

from collections.abc import Sequence


def soft_overlong(length: int, max_new_tokens: int, buffer: int) -> float:
    """DAPO's soft overlong punishment, equation 13 of arXiv:2503.14476, between -1 and 0.

    Args:
        length: tokens of the completion, its stop token included.
        max_new_tokens: L_max, the budget.
        buffer: L_cache, tokens before the budget at which the punishment begins to grow.
    """
    free = max_new_tokens - buffer
    if length <= free:
        return 0.0
    return (free - length) / buffer if length <= max_new_tokens else -1.0


def soft_overlong_reward(
    max_new_tokens: int,
    buffer: int,
    /,
    completions: Sequence[object],  # noqa: ARG001  (part of the signature)
    *,
    completion_ids: Sequence[Sequence[int]],
    **columns: object,  # noqa: ARG001
) -> list[float]:
    """`soft_overlong` of each completion, with TRL's signature."""
    return [soft_overlong(len(ids), max_new_tokens, buffer) for ids in completion_ids]
