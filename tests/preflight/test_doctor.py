"""Which switches are said to be inert, and when they are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slimrl.config.files import build
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.preflight import doctor
from slimrl.preflight.effects import Seen, combine, confounded_switches, inert_switches, note_update
from slimrl.preflight.setup import prepare_training
from tests.tiny import tiny_policy

BUSY = Seen(
    completions=64, truncated=5, longest=64, shortest=8, groups=8, constant=3, steps=4, corrected=1, bounded=2, alphas=frozenset([1.2, 1.5])
)  # fmt: skip
SWITCHES = {
    "algorithm.overlong_filtering": ({"algorithm": {"overlong_filtering": True}}, {"truncated": 0}),
    "rewards.soft_overlong": ({"rewards": {"soft_overlong": 1.0}, "rollout": {"max_new_tokens": 64}}, {"longest": 48}),
    "algorithm.dynamic_sampling": ({"algorithm": {"dynamic_sampling": "refill"}}, {"constant": 0}),
    "algorithm.aggregation": ({"algorithm": {"aggregation": "token_mean"}}, {"shortest": 64}),
    "rewards.zero_truncated": ({"rewards": {"zero_truncated": True}}, {"truncated": 0}),
    "algorithm.importance": ({"algorithm": {"importance": "mask"}}, {"corrected": 0}),
    "algorithm.surrogate": (
        {"algorithm": {"surrogate": "gpg", "clip_low": 0.2, "kl_coef": 0.0}},
        {"alphas": frozenset([1.5])},
    ),
}


def names(settings: dict[str, object], seen: Seen) -> set[str]:
    several = {"optimizer": {"minibatches": 2}}
    return {s.partition(":")[0] for s in inert_switches(build(TrainConfig, {**settings, **several}), seen)}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_inert_only_where_nothing_lets_it_act(switch: str) -> None:
    settings, quiet = SWITCHES[switch]
    assert switch not in names(settings, BUSY)
    assert switch in names(settings, replace(BUSY, **quiet))
    assert switch not in names({}, replace(BUSY, **quiet)), "a switch that is off is not inert, it is off"


def test_clip_is_inert_with_one_update_only() -> None:
    one = inert_switches(TrainConfig(), BUSY)
    assert [s.partition(":")[0] for s in one] == ["algorithm.clip_low and clip_high"]
    assert (
        "may carry over" in inert_switches(build(TrainConfig, {"algorithm": {"dynamic_sampling": "refill"}}), BUSY)[0]
    )
    acting = replace(BUSY, carried=1)
    assert inert_switches(build(TrainConfig, {"algorithm": {"dynamic_sampling": "refill"}}), acting) == []
    for several in ({"minibatches": 2}, {"epochs": 2}):
        assert inert_switches(build(TrainConfig, {"optimizer": several}), BUSY) == []


def test_seen_adds_up() -> None:
    nothing = Seen(0, 0, 0, 0, 0, 0)
    other = Seen(completions=1, truncated=0, longest=90, shortest=3, groups=1, constant=1)
    assert combine(nothing, BUSY) == combine(BUSY, nothing) == BUSY
    assert combine(BUSY, other) == replace(BUSY, completions=65, longest=90, shortest=3, groups=9, constant=4)


def test_a_cpu_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    monkeypatch.setattr(doctor, "problem", lambda: "")
    assert doctor._slow(policy) == []
    monkeypatch.setattr(doctor, "problem", lambda: "there is no g++")
    assert "since there is no g++; install g++" in doctor._slow(policy)[0]
    policy.model.to(torch.bfloat16)
    assert doctor._slow(policy) == []


@pytest.mark.parametrize(
    ("surrogate", "says"),
    [("cispo", "reinforce"), ("gspo", "reinforce"), ("sapo", "reinforce"), ("reinforce", ""), ("gpg", "")],
)
def test_every_surrogate_with_a_ratio_is_reinforce_with_one_update(surrogate: str, says: str) -> None:
    found = inert_switches(build(TrainConfig, {"algorithm": {"surrogate": surrogate}}), BUSY)
    assert [says in sentence for sentence in found] == ([True] if says else [])


def test_a_dual_clip_is_named_too() -> None:
    found = inert_switches(build(TrainConfig, {"algorithm": {"dual_clip": 3.0}}), BUSY)
    assert [s.partition(":")[0] for s in found] == ["algorithm.clip_low and clip_high", "algorithm.dual_clip"]


def test_components_need_company() -> None:
    alone = {"algorithm": {"normalize_components": True}}
    assert any("only correct is paid" in s for s in inert_switches(build(TrainConfig, alone), BUSY))
    both = build(TrainConfig, {**alone, "rewards": {"format": 0.5}})
    assert not any("is paid" in s for s in inert_switches(both, BUSY))


@pytest.mark.parametrize(
    ("settings", "seen", "word"),
    [
        ({"algorithm": {"scale_rewards": "none"}}, {}, "algorithm.scale_rewards"),
        ({"algorithm": {"baseline": "leave_one_out"}}, {}, "algorithm.baseline"),
        ({}, {"clipped": 4}, "optimizer.max_grad_norm"),
        ({"algorithm": {"surrogate": "gpg"}, "optimizer": {"epochs": 2}}, {}, "algorithm.surrogate"),
        ({"algorithm": {"surrogate": "reinforce"}}, {"carried": 3}, "algorithm.surrogate"),
        ({"algorithm": {"kl_estimator": "k1"}}, {}, "algorithm.kl_estimator"),
        ({"algorithm": {"normalize_components": True}}, {}, "algorithm.normalize_components"),
    ],
)
def test_what_acts_as_something_else_is_said(settings: dict[str, object], seen: dict[str, object], word: str) -> None:
    found = confounded_switches(build(TrainConfig, settings), replace(BUSY, **seen))
    assert [sentence.partition(":")[0] for sentence in found] == [word]


def test_nothing_is_mixed_up_in_a_plain_run() -> None:
    assert confounded_switches(TrainConfig(), BUSY) == []
    without = build(TrainConfig, {"algorithm": {"scale_rewards": "none", "baseline": "leave_one_out", "kl_coef": 0.0}})
    assert any("constant factor" in sentence for sentence in inert_switches(without, BUSY))
    assert confounded_switches(without, BUSY) == []
    assert confounded_switches(TrainConfig(), replace(BUSY, steps=2, clipped=2)) == [], "two steps say little"


def test_updates_are_noted() -> None:
    seen = note_update(BUSY, {"update/skipped": 1.0})
    assert seen == BUSY
    seen = note_update(seen, {"update/clipped": 1.0, "gpg_alpha": 2.0})
    seen = note_update(seen, {"update/clipped": 0.5, "importance/max": 1.4, "importance/mean": 1.0})
    assert (seen.steps, seen.clipped, seen.corrected) == (6, 1, 2)
    assert 2.0 in seen.alphas
    both = combine(seen, seen)
    assert (both.steps, both.clipped, both.corrected, both.alphas) == (12, 2, 4, seen.alphas)


def test_bounds_that_no_ratio_reached_are_named_after_some_steps() -> None:
    several = build(TrainConfig, {"optimizer": {"minibatches": 2}})
    assert inert_switches(several, BUSY) == []
    (sentence,) = inert_switches(several, replace(BUSY, bounded=0))
    assert sentence == "algorithm.clip_low and clip_high: no importance ratio lay beyond them in 4 steps"
    assert inert_switches(several, replace(BUSY, bounded=0, steps=2)) == []
    without = build(TrainConfig, {"optimizer": {"minibatches": 2}, "algorithm": {"surrogate": "sapo"}})
    assert inert_switches(without, replace(BUSY, bounded=0)) == []


def test_a_small_file_need_not_fill_the_default_batch(tiny_folder: Path, tmp_path: Path) -> None:
    """A file of 20 rows holds 18 to train on; the default of 32 a step gives way, a number that was asked for does not."""
    file = tmp_path / "mine.jsonl"
    rows = [{"question": f"What is {i} plus {i + 1}?", "answer": str(2 * i + 1)} for i in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    settings: dict[str, object] = {
        "task": {"name": "jsonl", "path": str(file)},
        "model": {"path": str(tiny_folder), "device": "cpu", "dtype": "bfloat16"},
    }
    setup = prepare_training(build(TrainConfig, settings))
    with setup.scorer:
        assert setup.config.rollout.problems == len(setup.task.train) < 20
        assert sum("instead of 32 (rollout.problems)" in note for note in setup.notes) == 1
    with pytest.raises(SettingsError, match=r"rollout\.problems=19 exceeds"):
        prepare_training(build(TrainConfig, {**settings, "rollout": {"problems": 19}}))
