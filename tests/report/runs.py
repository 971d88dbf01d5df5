"""Folders of runs that never were, with texts of a test's own in every place that holds text from outside."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from slimrl.records import TRACED

CONFIG = "steps: {steps}\ntask:\n  name: arithmetic\n  checker: numeric\n"


def write_run(
    folder: Path,
    texts: Sequence[str] = ("fine",),
    *,
    steps: int = 3,
    groups: int = 2,
    size: int = 4,
    length: int = 10,
    tokens: bool = True,
    status: str = "finished",
    episodes: bool = False,
) -> Path:
    """A run of `steps` steps with `groups` groups of `size` completions each, which are `length` tokens long.

    Every text from outside is one of `texts`, in turn. Test accuracy goes from 1 to 3 of 4 problems. Of `episodes` each has two turns of
    the policy, between which an environment wrote the fifth and sixth of ten tokens.
    """
    text = cycle(texts)
    for name in ("rollouts", "evals"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    change = {"change": 0.5, "low": 0.125, "high": 0.8125, "n": 4}
    summary = {
        "run": next(text), "difference": {"test": {"sampled": change}}, "inert": [next(text)], "confounded": [next(text)], "findings": [next(text)],
        "unscorable": {next(text): 2}, "seconds": 12.5, "memory": {"measured": 1.5, "estimated": 2.0}, "profile": {"decode": 0.25, "backward": 0.5},
    }  # fmt: skip
    record = {
        "verb": "train", "status": status, "reason": next(text), "started": "2026-11-26T12:00:00+00:00", "parameters": 1_500_000, "device": next(text),
        "chosen": {"rollout.max_new_tokens": 64}, "told": {"warnings": [next(text)], "notes": [next(text)]},
        **({"summary": summary} if status == "finished" else {}),
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(CONFIG.format(steps=steps) + f"model:\n  path: {json.dumps(next(text))}\n")
    rows = [
        {"step": i + 1, "reward": i / steps, "accuracy": 0.5, "sampling/groups": groups, "num_tokens": 100 * (i + 1), "time/rollout": 1.0,
         "time/update": 3.0, "time/total": 4.0 * (i + 1), "entropy": 0.5}
        for i in range(steps)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "events.jsonl").write_text(
        json.dumps({"at": "now", "step": 1, "event": next(text), "why": next(text)}) + "\n"
    )
    for step, right in ((0, 1), (steps, 3)):
        answers = [_answer(i, i < right, text) for i in range(4)]
        (folder / "evals" / f"step-{step:08d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        measured = {
            "accuracy": right / 4,
            "low": 0.1,
            "high": 0.9,
            "n": 4,
            "lenient": 0.5,
            "format": 0.5,
            "truncated": 0.0,
            "mean_length": 5.0,
        }
        reward = {
            "rewards/brief": right / 2,
            "rewards/brief/low": 0.0,
            "rewards/brief/high": 2.0,
            "rewards/brief/least": 0.0,
        }
        (folder / "evals" / f"step-{step:08d}.json").write_text(json.dumps({"test": measured | reward}))
    for step in range(1, steps + 1):
        _write_step(folder, step, [size] * groups, length if tokens else 0, text)
    if episodes:
        as_episodes(folder, text)
    return folder


def as_episodes(folder: Path, text: Iterator[str]) -> None:
    """Make every completion of a run an episode, and cut off those of sample 1."""
    for file in folder.glob("rollouts/*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row |= {
                "turns": _said(text),
                "turn_rewards": [0.25, None],
                "environment_score": 0.5,
                "scores": {"environment": 0.75},
            }
            row |= {"logged": {"environment": {next(text): 3.0}}, "finish": "length" if row["sample"] == 1 else "stop"}
            row["tokens"] -= file.with_suffix(".npz").exists() * 2
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in folder.glob("rollouts/*.npz"):
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        given = np.arange(len(arrays["ids"])) % 10 // 2 == 2
        arrays["advantage"] = np.where(np.arange(len(given)) % 10 < 5, 0.5, -1.0).astype(np.float16)
        for name in ("sampler", *TRACED):
            arrays[name][given] = math.nan
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    for file in folder.glob("evals/*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        of_episode = {"turns": 2, "turn_rewards": [0.25, None], "environment_score": 0.5}
        file.write_text("".join(json.dumps(row | of_episode | {"said": _said(text)}) + "\n" for row in rows))


def _said(text: Iterator[str]) -> list[list[str]]:
    return [["assistant", next(text)], ["tool", next(text)], ["user", next(text)], ["assistant", next(text)]]


def _answer(number: int, right: bool, text: Any) -> dict[str, Any]:
    return {
        "split": "test", "id": f"p{number}", "mode": "sampled", "sample": 0, "strict": right, "lenient": right, "well_formed": True, "finish": "stop",
        "tokens": 5, "question": next(text), "answer": next(text), "extracted_strict": "", "extracted_lenient": "", "text": next(text),
    }  # fmt: skip


def _write_step(folder: Path, step: int, sizes: Sequence[int], length: int, text: Any) -> None:
    rows = [
        {"id": next(text) if sample == 0 else "same", "question": next(text), "answer": next(text), "sample": sample, "sampled_at": step, "trained": True,
         "text": next(text), "correct": sample % 2 == 0, "reward": 1.0 - sample % 2, "scores": {next(text): 1.0, "other": 0.5},
         "unscorable": next(text) if sample == 3 else "", "finish": "stop" if sample else next(text), "tokens": length or 7}
        for size in sizes
        for sample in range(size)
    ]  # fmt: skip
    path = folder / "rollouts" / f"step-{step:08d}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if length:
        path.with_suffix(".npz").write_bytes(token_bytes([length] * len(rows), [next(text) for _ in range(20)]))


def token_bytes(lengths: Sequence[int], vocabulary: Sequence[str]) -> bytes:
    """A file of tokens whose numbers go through every colour, some unknown."""
    total = sum(lengths)
    grid = np.linspace(-3, 3, total)
    grid[::7] = math.nan
    numbers = {name: grid.astype(np.float16) for name in TRACED}
    numbers["clipped"] = (np.arange(total) % 5 == 0).astype(np.float16)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        row=np.arange(len(lengths), dtype=np.int32),
        length=np.array(lengths, dtype=np.int32),
        ids=(np.arange(total) % len(vocabulary)).astype(np.int32),
        vocabulary_ids=np.arange(len(vocabulary), dtype=np.int32),
        vocabulary=np.frombuffer(json.dumps([*vocabulary]).encode(), dtype=np.uint8),
        sampler=-np.abs(np.nan_to_num(grid)).astype(np.float16),
        **numbers,  # type: ignore[arg-type]
    )
    return buffer.getvalue()
