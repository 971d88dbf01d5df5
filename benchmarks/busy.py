"""Training beside other processes: seconds of `slimrl train` on an idle machine and with busy processes beside it.

    python benchmarks/busy.py [--busy 2] [--repeats 3] [--before CHECKOUT]

One run at a time, the kinds in turns. `--before` names another checkout of SlimRL, whose idle time is measured in turns with
this one's. The weights of all runs are compared, since neither waiting nor other processes may change them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from common import middle, say, spread, table, versions

HERE = Path(__file__).parent
RUN = (
    "model.dtype=float32",
    "steps=8",
    "evaluation.problems=20",
    "evaluation.harder_problems=0",
    "evaluation.greedy=false",
    "log.model=false",
)


def train(checkout: Path, busy: int) -> dict[str, float | str]:
    """Seconds of training of a fresh process, with `busy` processes that never wait."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "slimrl",
                "train",
                *RUN,
                f"output={folder}",
                "name=run",
                "--quiet",
                "--json",
            ]
            environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    summary = json.loads(done.stdout)
    return {"seconds": summary["seconds"], "weights": summary["weights"]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--busy", type=int, default=2, help="busy processes (default: 2)")
    options.add_argument("--repeats", type=int, default=3, help="runs of each kind (default: 3)")
    options.add_argument("--before", type=Path, help="another checkout, to compare the idle time with")
    options.add_argument("--out", type=Path, default=HERE / "results" / "busy.json")
    args = options.parse_args()
    kinds = {"idle": (HERE.parent, 0), f"{args.busy} busy": (HERE.parent, args.busy)}
    if args.before:
        kinds["idle, before"] = (args.before.resolve(), 0)
    runs: dict[str, list[dict[str, float | str]]] = {kind: [] for kind in kinds}
    for number in range(args.repeats):
        for kind, (checkout, busy) in kinds.items():
            runs[kind].append(train(checkout, busy))
            say(f"run {number + 1} of {args.repeats}, {kind}: {runs[kind][-1]['seconds']:.1f} s")
    ours = {run["weights"] for kind in kinds if kind != "idle, before" for run in runs[kind]}
    idle = middle(runs["idle"], "seconds")
    rows = [[kind, spread(found, "seconds"), f"{middle(found, 'seconds') / idle:.2f}"] for kind, found in runs.items()]
    print(table(["machine", "seconds of training, median (lowest to highest)", "of idle"], rows))
    print(f"weights: {'the same bits in all runs' if len(ours) == 1 else f'{len(ours)} different'}")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": versions(),
        "settings": RUN,
        "runs": runs,
        "same_weights": len(ours) == 1,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
