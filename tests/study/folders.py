"""Run directories as `slimrl train` leaves them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence

from slimrl.config.files import dump_yaml
from slimrl.study.runs import Planned

PROBLEMS = 10


def evaluation(
    step: int, right: Sequence[int], *, samples: int = 1
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Summary and rows of an evaluation in which the problems with these numbers are right."""
    rows = [
        {
            "split": "test", "id": f"test/{i}", "mode": mode, "sample": sample, "strict": i in right, "lenient": i in right,
            "well_formed": i != 0, "finish": "stop", "tokens": 5, "question": f"question {i}", "answer": str(i),
            "extracted_strict": "", "extracted_lenient": "", "text": f"text of {i} after {step}",
        }
        for mode in ("sampled", "greedy") for i in range(PROBLEMS) for sample in range(samples)
    ]  # fmt: skip
    accuracy = len(right) / PROBLEMS
    summary = {
        "accuracy": accuracy,
        "greedy": accuracy,
        "lenient": accuracy,
        "format": 0.9,
        "truncated": 0.0,
        "mean_length": 5.0,
    }
    return {"test": summary}, rows


def write_run(
    run: Planned,
    right: Sequence[int],
    *,
    status: str = "finished",
    weights: str = "",
    steps: int = 3,
    tokens: int = 100,
    inert: Sequence[str] = (),
) -> None:
    """A run after which the problems with these numbers are right."""
    (run.folder / "evals").mkdir(parents=True, exist_ok=True)
    (run.folder / "config.yaml").write_text(dump_yaml(run.config(1.0)))
    rows = [
        {
            "step": step + 1, "num_tokens": tokens * (step + 1), "time/total": 2.0 * (step + 1), "time/rollout": 1.0,
            "time/update": 1.0, "accuracy": 0.1 * step, "completions/mean_length": 5.0, "completions/clipped_ratio": 0.0,
            "completions/max_length": 8, "completions/min_length": 3, "entropy": 0.5, "reward": 0.1 * step,
            "sampling/groups": 4, "sampling/no_signal": 0.25,
        }
        for step in range(steps)
    ]  # fmt: skip
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluations = [(0, [1])] if status == "diverged" else [(0, [1]), (steps, right)]
    for step, answers in evaluations:
        summary, completions = evaluation(step, answers)
        path = run.folder / "evals" / f"step-{step:08d}"
        path.with_suffix(".json").write_text(json.dumps(summary))
        path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in completions))
    state = {
        "status": status, "started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:00:10+00:00", "torch": "2.13.0",
        "reason": "the loss is nan" if status == "diverged" else "",
        "summary": {"weights": weights or f"{run.name} {sorted(right)}", "inert": list(inert)},
    }  # fmt: skip
    (run.folder / "run.json").write_text(json.dumps(state))
