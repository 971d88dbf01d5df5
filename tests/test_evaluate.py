"""Held-out measurement in a run: the same problems and draws before and after, stored as they were judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_train import SMALL, run


def test_evaluation_is_paired_and_stored(tmp_path: Path) -> None:
    summary = run(tmp_path, "a", *SMALL, "evaluation.samples=2")
    before, after = (
        [json.loads(line) for line in (Path(summary.run) / "evals" / name).read_text().splitlines()]
        for name in ("step-00000000.jsonl", "step-00000003.jsonl")
    )
    assert [(r["id"], r["mode"], r["sample"]) for r in before] == [(r["id"], r["mode"], r["sample"]) for r in after]
    assert len(before) == (8 + 4) * (2 + 1)
    drawn = [r["strict"] for r in before if r["split"] == "test" and r["mode"] == "sampled"]
    assert summary.before["accuracy"] == pytest.approx(sum(drawn) / 16)
    assert {r["id"].split("/")[1] for r in before} == {"test", "harder"}
