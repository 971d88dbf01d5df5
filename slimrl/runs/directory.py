"""runs/NAME/: config.yaml, run.json, metrics.jsonl, rollouts/, evals/, curves.png, final/.

No database is the truth; anything else can be rebuilt from here. A run never overwrites another.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import transformers

from slimrl import __version__
from slimrl.algorithm.groups import Collected
from slimrl.config import RootConfig
from slimrl.errors import DivergedError, SettingsError
from slimrl.model.loading import Policy
from slimrl.runs.curves import draw_curves
from slimrl.runs.metrics import Metrics
from slimrl.settings import dump_yaml

if TYPE_CHECKING:
    from slimrl.evaluate import Evaluation

ENDINGS: dict[type[BaseException], str] = {KeyboardInterrupt: "interrupted", DivergedError: "diverged"}
"""How a run.json calls an end that is not success; any other is `failed`."""


class RunDirectory:
    """Writes one run; `history` keeps the metrics of every step for the picture at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[Metrics] = []
        self.evaluations: list[Evaluation] = []

    @classmethod
    def create(cls, path: Path, config: RootConfig, policy: Policy, *, verb: str, memory: Mapping[str, Any]) -> Self:
        """Make the directory with config.yaml and run.json; `memory` is the plan."""
        path.mkdir(parents=True)
        run = cls(path)
        (path / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
        run._write_state(
            {
                "verb": verb,
                "memory": memory,
                "status": "running",
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "slimrl": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
                "device": _device_name(policy),
                "dtype": str(policy.model.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                "parameters": sum(p.numel() for p in policy.model.parameters()),
            }
        )
        return run

    def log_step(self, step: int, metrics: Metrics, collected: Collected | None = None) -> None:
        """One line of metrics.jsonl, and the rollouts of the step where they are wanted."""
        row = {"step": step + 1, **metrics}
        self.history.append(row)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: finite(value) for key, value in row.items()}) + "\n")
        if collected is not None:
            write_jsonl(self.path / "rollouts" / f"step-{step + 1:08d}.jsonl", rollout_rows(collected))

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """Every held-out completion with its verdicts, and the summary."""
        self.evaluations.append(evaluation)
        write_jsonl(self.path / "evals" / f"step-{evaluation.step:08d}.jsonl", evaluation.table())
        self._write_json(self.path / "evals" / f"step-{evaluation.step:08d}.json", evaluation.summaries())

    def save_curriculum(self, state: Mapping[str, Any]) -> None:
        """curriculum.json: what a curriculum with a state knows of its problems."""
        if state:
            self._write_json(self.path / "curriculum.json", state)

    def save_final(self, policy: Policy) -> None:
        """final/: loads with AutoModelForCausalLM.from_pretrained."""
        policy.model.save_pretrained(self.path / "final")
        policy.tokenizer.save_pretrained(self.path / "final")

    def finish(self, summary: Any) -> None:
        """Close the run: summary into run.json, curves as a picture."""
        draw_curves(self.path / "curves.png", self.history, self.evaluations)
        state = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        # last of all: who finds a run finished finds all of it
        self._write_state({**state, "status": "finished", "ended": ended, "summary": dataclasses.asdict(summary)})

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Whatever ends the block early is noted in run.json, and goes on."""
        try:
            yield
        except BaseException as error:
            state = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            status = ENDINGS.get(type(error), "failed")
            self._write_state({**state, "status": status, "reason": str(error) or type(error).__name__})
            raise

    def _write_state(self, state: Mapping[str, Any]) -> None:
        self._write_json(self.path / "run.json", state)

    def _write_json(self, path: Path, data: Any) -> None:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(f".tmp{time.monotonic_ns()}")
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)


def new_run(config: RootConfig, verb: str) -> Path:
    """Where this run will lie. Asked before any work, so that what cannot be written is said at once.

    Raises SettingsError for a run that exists already, or an output folder that cannot be written.
    """
    name = config.name or f"{config.task.name}-{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
    path = Path(config.output) / name
    if "\0" in config.output:
        raise SettingsError(f"output={config.output!r}: no folder can be named so; remove the NUL character")
    # a link is neither followed nor replaced, wherever it leads
    if path.exists() or path.is_symlink():
        raise SettingsError(f"{path} exists already and is never overwritten; choose another name=...")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SettingsError(
            f"output={config.output}: {parent} is not a folder that can be written; choose another output"
        )
    return path


def rollout_rows(collected: Collected) -> list[dict[str, Any]]:
    """Every completion sampled for a step, and whether its group was trained on."""
    trained = {id(group) for group in collected.groups}
    fresh = {id(group) for group in collected.sampled}
    groups = [*collected.sampled, *(group for group in collected.groups if id(group) not in fresh)]
    return [
        {
            "id": rollout.problem.id,
            "question": rollout.problem.question,
            "answer": rollout.problem.answer,
            "sample": sample,
            "sampled_at": group.step + 1,
            "trained": id(group) in trained,
            "text": rollout.text,
            "correct": rollout.correct,
            "reward": finite(rollout.reward),
            "scores": {name: finite(value) for name, value in rollout.scores.items()},
            "unscorable": rollout.unscorable,
            "finish": rollout.completion.finish,
            "tokens": len(rollout.completion.token_ids),
        }
        for group in groups
        for sample, rollout in enumerate(group.rollouts)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def finite(value: float) -> float | str:
    """JSON has no NaN: it is written as a string, never as a number that it is not."""
    return value if math.isfinite(value) else str(value)


def _device_name(policy: Policy) -> str:
    if policy.device.type == "cuda":
        return str(torch.cuda.get_device_name(policy.device))
    return f"{policy.device.type} ({platform.machine()})"
