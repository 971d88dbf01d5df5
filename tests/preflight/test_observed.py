"""Counts of what a run sampled and did."""

from __future__ import annotations

from dataclasses import replace

from slimrl.preflight.observed import Observed, combine, note_update

BUSY = Observed(
    completions=64, truncated=5, longest=64, shortest=8, groups=8, constant=3, steps=4, corrected=1, bounded=2, alphas=frozenset([1.2, 1.5])
)  # fmt: skip


def test_counts_add_up() -> None:
    nothing = Observed(0, 0, 0, 0, 0, 0)
    other = Observed(completions=1, truncated=0, longest=90, shortest=3, groups=1, constant=1)
    assert combine(nothing, BUSY) == combine(BUSY, nothing) == BUSY
    assert combine(BUSY, other) == replace(BUSY, completions=65, longest=90, shortest=3, groups=9, constant=4)
    turns = combine(replace(BUSY, turns=3, paid_by_turn=2), replace(BUSY, turns=2, paid_by_turn=5))
    assert (turns.turns, turns.paid_by_turn) == (3, 7)


def test_updates_are_noted() -> None:
    observed = note_update(BUSY, {"update/skipped": 1.0})
    assert observed == replace(BUSY, skipped=1)
    observed = note_update(observed, {"update/clipped": 1.0, "gpg_alpha": 2.0})
    observed = note_update(observed, {"update/clipped": 0.5, "importance/max": 1.4, "importance/mean": 1.0})
    assert (observed.steps, observed.clipped, observed.corrected) == (6, 1, 2)
    assert 2.0 in observed.alphas
    both = combine(observed, observed)
    assert (both.steps, both.skipped, both.clipped, both.corrected, both.alphas) == (12, 2, 2, 4, observed.alphas)
