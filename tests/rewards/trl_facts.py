"""Values of TRL's own reward functions on inputs of ours, recorded for tests that run without TRL.

pip install trl==1.16.0 math-verify
python -m tests.rewards.trl_facts          writes tests/rewards/trl_facts.json anew
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_suffix(".json")
TEXTS = [
    "<think>a</think> \\boxed{18}",
    "\\boxed{17}",
    "<think>a a a a a</think> \\boxed{18}",
    "no answer",
    "\\boxed{18.0}",
]
IDS = [[1, 2], [1, 2, 1], [1, 2, 1, 2], [1, 2, 1, 2, 1], [1, 2, 1, 2, 1, 2]]
SOLUTION = "$18$"
FUNCTIONS: dict[str, dict[str, Any] | None] = {
    "think_format_reward": None,
    "accuracy_reward": None,
    "reasoning_accuracy_reward": None,
    "get_soft_overlong_punishment": {"max_completion_len": 5, "soft_punish_cache": 3},
    "get_repetition_penalty_reward": {"ngram_size": 2},
    "get_cosine_scaled_reward": {"max_len": 8},
}
"""Names in `trl.rewards`, with the arguments of those that make a function."""


def columns() -> dict[str, list[Any]]:
    """The keyword arguments of a call by TRL's trainer."""
    return {
        "prompts": [[{"role": "user", "content": "q"}] for _ in TEXTS],
        "completions": [[{"role": "assistant", "content": text}] for text in TEXTS],
        "completion_ids": IDS,
        "solution": [SOLUTION] * len(TEXTS),
    }


def record() -> None:
    """Write what the installed TRL returns."""
    import trl
    import trl.rewards

    values = {}
    for name, arguments in FUNCTIONS.items():
        function = getattr(trl.rewards, name)
        values[name] = (function if arguments is None else function(**arguments))(**columns())
    FACTS.write_text(json.dumps({"trl": trl.__version__, "values": values}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
