"""One run on 1, 2 and 4 ranks, with `parallel=ddp` and `fsdp`, all weights and an adapter: does it find the same?

    python equal_ranks.py --out results/ranks-equal.json

`recipes/dapo.yaml` on the built-in model in float32: eight steps of two updates, with refilled groups. Tokens and held-out
accuracy are compared with those of one process, and losses and norms of gradients by their largest differences over all steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DAPO = Path(__file__).parent.parent / "recipes" / "dapo.yaml"
SETTINGS = (
    "steps=8", "optimizer.minibatches=2", "rollout.problems=16", "model.dtype=float32", "evaluation.problems=200",
    "evaluation.harder_problems=0",
)  # fmt: skip
RUNS: Mapping[str, Sequence[tuple[int, str]]] = {
    "all weights": [(1, "ddp"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")],
    "adapter of rank 8": [(1, "ddp"), (2, "ddp"), (4, "ddp")],
}


def train(output: Path, ranks: int, *settings: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and steps of a run, by torchrun where there are several ranks, which may be more than cores."""
    name = "-".join([str(ranks), *settings]).replace("=", "-")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *torchrun, "-m", "slimrl", "train", str(DAPO), *SETTINGS, *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, f"output={output}", f"name={name}", "--quiet"], env=environment, check=True)
    steps = [json.loads(line) for line in (output / name / "metrics.jsonl").read_text().splitlines()]
    return json.loads((output / name / "run.json").read_text())["summary"], steps


def compare(first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """The largest difference of a metric over all steps, and as a share of its size; that of the first step alone."""
    pairs = [(a[key], b[key]) for a, b in zip(first, other, strict=True)]
    shares = [abs(a - b) / abs(a) for a, b in pairs]
    return {"absolute": max(abs(a - b) for a, b in pairs), "relative": max(shares), "relative, first step": shares[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="slimrl-equal-") as output:
        for what, runs in RUNS.items():
            own = ("model.lora.rank=8",) if what != "all weights" else ()
            alone: list[dict[str, Any]] = []
            for ranks, parallel in runs:
                summary, steps = train(Path(output), ranks, f"parallel={parallel}", *own)
                alone = alone or steps
                after = summary["after"]
                found.append(
                    {
                        "trained": what,
                        "ranks": ranks,
                        "parallel": parallel,
                        "tokens": summary["tokens_generated"],
                        "sampled": after["accuracy"],
                        "greedy": after["greedy"],
                        "surplus groups": sum(step["sampling/surplus_groups"] for step in steps),
                        "mean size of a loss": sum(abs(step["loss"]) for step in steps) / len(steps),
                        "loss": compare(alone, steps, "loss"),
                        "grad_norm": compare(alone, steps, "grad_norm"),
                    }
                )
                print(json.dumps(found[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")
    same = {(run["trained"], run["tokens"], run["sampled"], run["greedy"]) for run in found}
    sys.exit(0 if len(same) == len(RUNS) else 1)


if __name__ == "__main__":
    main()
