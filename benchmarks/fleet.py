"""The runs of `studies/quick.yaml` on a cluster of which a node dies, or a job is requeued: do they end as on this machine?

    python fleet.py ray --out results/fleet-ray.json                       # three nodes of Ray, made here, one of them killed
    python fleet.py slurm --partition debug --out results/fleet-slurm.json   # a SLURM that is there, one job of it requeued

The study runs here first, then on the cluster, each in a folder of its own. Every run's weights, optimizer and metrics, without
times, are compared; a run that was done twice would have trained more steps than it has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUICK = Path(__file__).parent.parent / "studies" / "quick.yaml"
BEGUN = 3
"""Runs that have taken a step when the node is killed, or a job requeued."""


def study(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "slimrl", "study", "run", str(QUICK), "--output", str(folder), *more]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def runs_of(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("quick/*/run.json"))


def content(run: Path) -> object:
    """What a run found, without times and memory."""
    summary = json.loads((run / "run.json").read_text())["summary"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
    return summary["weights"], summary["optimizer"], summary["after"], metrics


def on_ray(folder: Path) -> tuple[subprocess.Popen[bytes], Callable[[], str]]:
    """The study on three nodes of one core each, and what kills one of them."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill() -> str:
        cluster.remove_node(nodes[-1], allow_graceful=False)
        return "a node of three killed"

    return study(folder, "--on", f"ray:{cluster.address},cpus=1"), kill


def on_slurm(folder: Path, partition: str) -> tuple[subprocess.Popen[bytes], Callable[[], str]]:
    """The study as jobs, and what requeues one that runs."""

    def requeue() -> str:
        listed = subprocess.run(
            ["squeue", "--noheader", "--states=RUNNING", "--format=%i"], capture_output=True, text=True, check=True
        )
        job = listed.stdout.split()[0]
        subprocess.run(["scontrol", "requeue", job], check=True)
        return "a running job requeued"

    return study(folder, "--on", f"slurm:{partition},cpus=1"), requeue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cluster", choices=("ray", "slurm"))
    parser.add_argument("--partition", default="", help="of SLURM")
    parser.add_argument("--folder", type=Path, help="on storage of all nodes; by default a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slimrl-fleet-", dir=args.folder) as name:
        here, there = Path(name) / "here", Path(name) / "there"
        here.mkdir()
        there.mkdir()
        if study(here).wait() != 0:
            sys.exit((here / "log.txt").read_text())
        process, disturb = on_ray(there) if args.cluster == "ray" else on_slurm(there, args.partition)
        while process.poll() is None and sum((run / "metrics.jsonl").is_file() for run in runs_of(there)) < BEGUN:
            time.sleep(0.2)
        disturbance = disturb()
        code = process.wait()
        expected = {run.name: content(run) for run in runs_of(here)}
        found: dict[str, Any] = {
            "cluster": args.cluster,
            "disturbance": disturbance,
            "exit code": code,
            "runs": len(runs_of(there)),
            "runs equal to those of this machine": sum(content(run) == expected[run.name] for run in runs_of(there)),
            "runs that were resumed": sum("resuming" in log.read_text() for log in there.glob("quick/logs/*")),
        }
        print((there / "log.txt").read_text()[-3000:], file=sys.stderr)
    print(json.dumps(found, indent=2))
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")
    equal = found["runs equal to those of this machine"]
    sys.exit(0 if code == 0 and equal == found["runs"] == len(expected) else 1)


if __name__ == "__main__":
    main()
