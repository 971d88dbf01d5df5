"""The doctor's warnings, and what a training file of few rows may leave open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slimrl.config.files import build
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.preflight import doctor
from slimrl.preflight.setup import prepare_training
from tests.tiny import tiny_policy


def test_a_cpu_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    monkeypatch.setattr(doctor, "problem", lambda: "")
    assert doctor._slow(policy) == []
    monkeypatch.setattr(doctor, "problem", lambda: "there is no g++")
    assert "since there is no g++; install g++" in doctor._slow(policy)[0]
    policy.model.to(torch.bfloat16)
    assert doctor._slow(policy) == []


def test_a_probe_of_long_completions_has_fewer_problems(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """192 tokens are 16 problems with 2 completions of 6 tokens, or 4 with 4 of 12; 2 problems are the least."""
    settings: dict[str, object] = {"model": {"path": str(tiny_folder), "device": "cpu"}, "output": str(tmp_path)}
    monkeypatch.setattr(doctor, "PROBE_TOKENS", 16 * 12)
    for group_size, tokens, problems in ((2, 6, 16), (4, 12, 4), (8, 24, 2)):
        rollout = {"group_size": group_size, "max_new_tokens": tokens}
        training = prepare_training(build(TrainConfig, {**settings, "rollout": rollout}))
        found = doctor.examine(training)
        assert (found.groups, found.completions) == (problems, problems * group_size)
        ends = " or ".join(f"{token} ({i})" for i, token in found.stop_ids.items())
        assert [warning for warning in found.warnings if warning.endswith(f"ends its turns with {ends}")]
        assert found.notes[: len(training.setup.notes)] == list(training.setup.notes)
        assert any(f"the probe has {problems} problems instead of 16" in note for note in found.notes) == (
            problems < 16
        )


def test_a_small_file_need_not_fill_the_default_batch(tiny_folder: Path, tmp_path: Path) -> None:
    """A file of 20 rows holds 18 to train on; the default of 32 a step gives way, a number that was asked for does not."""
    file = tmp_path / "mine.jsonl"
    rows = [{"question": f"What is {i} plus {i + 1}?", "answer": str(2 * i + 1)} for i in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    settings: dict[str, object] = {
        "task": {"name": "jsonl", "path": str(file)},
        "model": {"path": str(tiny_folder), "device": "cpu", "dtype": "bfloat16"},
    }
    training = prepare_training(build(TrainConfig, settings))
    setup = training.setup
    with training.scorer:
        assert setup.config.rollout.problems == len(setup.task.train) < 20
        assert sum("instead of 32 (rollout.problems)" in note for note in setup.notes) == 1
    with pytest.raises(SettingsError, match=r"rollout\.problems=19 exceeds"):
        prepare_training(build(TrainConfig, {**settings, "rollout": {"problems": 19}}))
