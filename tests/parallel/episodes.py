"""What one rank does in the tests of episodes on several: `python -m tests.parallel.episodes FOLDER`, with torchrun's variables.

The leader takes every run once more alone, and prints a JSON object on how far both are apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.errors import SettingsError
from slimrl.machine import ranks as machine
from slimrl.machine.ranks import ALONE, Ranks
from slimrl.machine.signals import Stop
from slimrl.parallel.follow import follow
from slimrl.parallel.lookout import meeting
from slimrl.parallel.orders import End
from slimrl.train import train
from tests.conftest import ROOT
from tests.quick import QUICK

SMALL = [
    "rollout.problems=3", "rollout.group_size=3", "evaluation.problems=4", "evaluation.every=0", "model.dtype=float32",
    "evaluation.harder_problems=0", "log.model=false", "evaluation.greedy=false",
]  # fmt: skip
SHARED = ("num_tokens", "turns/mean", "turns/given_tokens", "accuracy", "reward", "unscorable")
"""Metrics of what was sampled, which are equal, beside those of the update, which differ by rounding."""

ODD = '''
import os


class Odd:
    """Breaks off in held-out problems with an odd answer, tells a number, and can be made on some ranks only."""

    tools = []

    def __init__(self, absent=-1, breaks=""):
        if int(os.environ["RANK"]) == absent:
            raise OSError("the port is taken")
        self.breaks, self.left, self.metrics = breaks, 2, {}

    def reset(self, problem):
        self.odd = "/train/" not in problem.id and problem.answer[-1] in "13579"

    def step(self, text):
        if self.breaks == "rank 1" and os.environ["RANK"] == "1":
            raise KeyError("mine")
        if self.odd:
            raise KeyError("mine")
        self.left -= 1
        self.metrics["letters"] = len(text)
        return [{"role": "user", "content": "And again?"}], self.left == 0, len(text) / 100
'''
FURTHER = ["rewards.environment=1", "rollout.max_new_tokens=64", "rewards.unscorable_limit=1.0"]


def settings(folder: Path, name: str, recipe: str, *more: str) -> TrainConfig:
    files = [str(ROOT / "recipes" / f"{recipe}.yaml")] if recipe else []
    return load_config(TrainConfig, files, [*SMALL, f"output={folder}", f"name={name}", *more])


def trained(ranks: Ranks, config: TrainConfig) -> str:
    """Take the run, as one of its ranks; the sentence with which it ends, empty where it finishes."""
    machine._joined = ranks
    if ranks.leads:
        try:
            train(config, Display(quiet=True))
        except SettingsError as error:
            return str(error)
        return ""
    try:
        follow(ranks, Stop())
    except SystemExit as end:
        return f"exit code {end.code}"
    return ""


def rows(run: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


def compared(run: Path, other: Path) -> dict[str, Any]:
    """Equality of what was sampled and measured in all steps, and the largest difference in what the first update computed."""
    ours, theirs = rows(run, "metrics.jsonl"), rows(other, "metrics.jsonl")
    last = f"step-{len(ours):08d}.jsonl"
    files = ("rollouts/step-00000001.jsonl", f"rollouts/{last}", f"evals/{last}")
    apart = [abs(ours[0][key] - theirs[0][key]) / max(abs(theirs[0][key]), 1.0) for key in ("loss", "grad_norm")]
    return {
        "same files": [(run / file).read_bytes() == (other / file).read_bytes() for file in files],
        "same metrics": all(a.get(key) == b.get(key) for a, b in zip(ours, theirs, strict=True) for key in SHARED),
        "apart": max(apart),
        "turns": max(row["turns/mean"] for row in ours),
        "unscorable": sum(bool(row["unscorable"]) for row in rows(run, files[2])),
        "evaluated turns": max(row["turns"] for row in rows(run, files[2])),
        "weights": [json.loads((place / "run.json").read_text())["summary"]["weights"] for place in (run, other)],
    }


def main() -> None:
    torch.set_num_threads(1)
    exec(QUICK)
    folder = Path(sys.argv[1])
    odd = [f"environment.name={folder}/odd.py:Odd", "steps=1", *FURTHER]
    runs: dict[str, tuple[str, list[str]]] = {
        "guess": ("guess", ["steps=2", "environment.turns=4"]),
        "calculator": ("calculator", ["steps=1", "environment.turns=3"]),
        "odd": ("", [*odd, "algorithm.dynamic_sampling=refill"]),
    }
    with meeting(torch.device("cpu"), 60, Stop()) as ranks:
        if ranks.leads:
            (folder / "odd.py").write_text(ODD)
        ranks.exchange("written")
        found: dict[str, Any] = {}
        for name, (recipe, more) in runs.items():
            for team, kind in ((ranks, "two"), (ranks, "again"), (ALONE, "one")):
                if (ranks.leads or team is ranks) and (kind != "again" or name == "guess"):
                    assert trained(team, settings(folder, f"{name}-{kind}", recipe, *more)) == ""
            if ranks.leads:
                found[name] = compared(folder / f"{name}-two", folder / f"{name}-one")
        if ranks.leads:
            found["again"] = compared(folder / "guess-two", folder / "guess-again")
        for name, arguments in {"broken": "{breaks: rank 1}", "absent": "{absent: 1}"}.items():
            said = trained(ranks, settings(folder, name, "", *odd, f"environment.arguments={arguments}"))
            if ranks.leads and name == "broken":  # of a run that ends by an error, followers hear no more
                ranks.tell(End())
            found[name] = ranks.exchange(said)
        if ranks.leads:
            json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
