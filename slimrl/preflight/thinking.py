"""Models that think before they answer: prompts that begin the thinking, and the tokens that it takes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from slimrl.algorithm.metrics import Metrics
from slimrl.model.policy import Policy
from slimrl.records import Completion, Rollout
from slimrl.thinking import is_open, split


def thinking_tokens(policy: Policy, completion: Completion, text: str) -> int:
    """Tokens of a completion up to the end of its thinking; all of them where that does not end, 0 where there is none.

    `text` is the completion decoded. Of an episode it is the last turn that counts.
    """
    ids, heard = completion.last_turn(), completion.heard()
    if is_open(text):
        return len(ids)
    thought, _ = split(text)
    if len(thought) <= len(policy.begun(heard)):
        return 0
    return bisect_left(range(len(ids) + 1), True, key=lambda n: policy.decode(ids[:n], heard).startswith(thought))


def thinking_metrics(policy: Policy, rollouts: Sequence[Rollout]) -> Metrics:
    """Mean lengths of thinking and of what stands behind it in tokens, and the share cut off while thinking; empty where none
    thinks. Of an episode it is the last turn that counts.
    """
    thought = [thinking_tokens(policy, r.completion, r.text) for r in rollouts]
    if not any(thought):
        return {}
    answers = [len(r.completion.last_turn()) - count for r, count in zip(rollouts, thought, strict=True)]
    cut = [r.completion.finish == "length" and is_open(r.text) for r in rollouts]
    return {
        "completions/thinking_length": float(np.mean(thought)),
        "completions/answer_length": float(np.mean(answers)),
        "completions/thinking_clipped_ratio": float(np.mean(cut)),
    }
