"""Names of numbers and tables that trackers get."""

from __future__ import annotations

import pytest

from slimrl.text import without_secrets
from slimrl.trackers.keys import columns_of, evaluation_numbers, sample_table, summary_numbers

ROW = {
    "id": "7", "question": "1+1?", "answer": "2", "sample": 0, "sampled_at": 3, "trained": True, "text": "#### 2", "correct": True,
    "reward": 1.5, "scores": {"correct": 1.0}, "unscorable": "", "finish": "stop", "tokens": 4,
}  # fmt: skip


def test_an_evaluation_has_a_key_for_each_split_and_measure() -> None:
    found = evaluation_numbers({"test": {"accuracy": 0.5, "n": 2}, "harder": {"accuracy": 0.1}})
    assert found == {"eval/test/accuracy": 0.5, "eval/test/n": 2, "eval/harder/accuracy": 0.1}


def test_a_summary_has_its_numbers_and_no_texts() -> None:
    summary = {
        "run": "runs/a", "before": {"accuracy": 0.1}, "difference": {"test": {"sampled": {"change": 0.2}}}, "steps": 3, "weights": "ab",
        "inert": ["x"], "unscorable": {"time-out": 2},
    }  # fmt: skip
    assert summary_numbers(summary) == {
        "before/accuracy": 0.1,
        "difference/test/sampled/change": 0.2,
        "steps": 3.0,
        "unscorable/time-out": 2.0,
    }


def test_a_table_has_trls_columns_and_one_for_each_reward() -> None:
    rows = sample_table(3, [ROW, {**ROW, "scores": {"brief": 0.5}, "text": "no"}])
    names, data = columns_of(rows)
    assert names == [
        "step", "prompt", "completion", "rewards/brief", "rewards/correct", "reward", "answer", "correct", "finish", "tokens",
    ]  # fmt: skip
    assert data[0][:5] == [3, "1+1?", "#### 2", None, 1.0]
    assert data[1][2:5] == ["no", 0.5, None]
    assert columns_of([]) == ([], [])


def test_a_table_has_all_turns_of_an_episode() -> None:
    said = [["assistant", "1"], ["user", "higher"], ["assistant", "#### 2"]]
    (row,) = sample_table(3, [ROW | {"turns": said, "turn_rewards": [0.5, None]}])
    assert row["completion"] == "[policy, turn 1, reward 0.5]\n1\n[user]\nhigher\n[policy, turn 2]\n#### 2"


def test_an_errors_words_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    text = without_secrets("refused:\n  key 0123456789abcdef at https://me:word@host/a")
    assert text == "refused: key $WANDB_API_KEY at https://host/a"
