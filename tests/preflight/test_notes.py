"""Notes on a run on its way: said where they hold, and not where nothing can be told yet."""

from __future__ import annotations

import pytest
import torch

from slimrl.preflight.notes import LEAST_MOVED, UNMOVED_STEPS, unmoved_note
from tests.tiny import tiny_policy

PEAK = 1e-8


def row(applied: float = LEAST_MOVED / 2, norm: float = 1.0, rate: float = PEAK) -> dict[str, float]:
    return {"grad_norm": norm, "learning_rate": rate, "update/applied_fraction": applied}


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (row(), True),
        (row(applied=LEAST_MOVED), False),
        (row(applied=0.0, norm=0.0), False),
        (row(applied=0.0, rate=PEAK / 4), False),
        ({"update/skipped": 1.0}, False),
    ],
)
def test_updates_that_change_hardly_a_narrow_weight_are_said(last: dict[str, float], said: bool) -> None:
    policy = tiny_policy()
    before = [row()] * (UNMOVED_STEPS - 1)
    assert not unmoved_note(policy, PEAK, [*before, last]), "a float32 weight takes every step"
    policy.model.to(torch.bfloat16)
    assert not unmoved_note(policy, PEAK, before), "too few to tell"
    assert bool(unmoved_note(policy, PEAK, [*before, last])) is said
    assert unmoved_note(policy, PEAK, [row(applied=1.0), *before, row(norm=0.0), row()]).startswith(
        "at optimizer.learning_rate=1e-08 an update changes fewer than one in 10,000 of the bfloat16 weights"
    )
