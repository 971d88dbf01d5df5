"""Settings of the smallest run, and one that is finished."""

from __future__ import annotations

from typing import Any

import pytest

import slimrl

SMALL: dict[str, Any] = {
    "steps": 2,
    "rollout": {"problems": 2, "group_size": 2, "max_new_tokens": 16},
    "evaluation": {"problems": 4, "harder_problems": 0, "greedy": False},
    "quiet": True,
}
OVERRIDES = (
    "steps=2", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=16", "evaluation.problems=4", "evaluation.harder_problems=0",
    "evaluation.greedy=false",
)  # fmt: skip
"""The same on the command line."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> slimrl.Result:
    """A finished run of the built-in model."""
    return slimrl.train(output=tmp_path_factory.mktemp("runs"), name="done", **SMALL)
