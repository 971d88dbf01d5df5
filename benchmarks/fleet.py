"""The runs of `studies/quick.yaml` on a cluster of which a node dies, or a job is requeued: do they end as on this machine?

    python fleet.py ray --out results/fleet-ray.json                         # three nodes of Ray, made here, one of them killed
    python fleet.py slurm --partition debug --out results/fleet-slurm.json   # a SLURM that is there, one job of it requeued

The study runs here first, then on the cluster, each in a folder of its own. Once the runs of the cluster have taken half of all
steps, and every node of Ray has one that is under way, the node is killed or the job requeued. The digest of every run's
weights, its metrics without times, and its held-out completions are compared; a step that a run took twice would be a row too
many. SLURM continues the job itself.
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
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from study_kills import compare

QUICK = Path(__file__).parent.parent / "studies" / "quick.yaml"
NODES = 3
"""Of Ray."""


def study(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "slimrl", "study", "run", str(QUICK), "--output", str(folder), *more]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def steps_of(folder: Path) -> dict[str, int]:
    """How many steps each run has taken so far."""
    return {path.parent.name: len(path.read_text().splitlines()) for path in folder.glob("quick/runs/*/metrics.jsonl")}


def in_the_middle(here: Path, there: Path, nodes: int) -> bool:
    """Of all steps half are taken, and so many nodes have a run that has begun and not ended."""
    whole, taken = steps_of(here), steps_of(there)
    running = sum(steps < whole[name] for name, steps in taken.items())
    return sum(taken.values()) >= sum(whole.values()) / 2 and running >= nodes


def on_ray(folder: Path) -> tuple[subprocess.Popen[bytes], Callable[[], str]]:
    """The study on nodes of one core each, and what kills one of them."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES - 1)]

    def kill() -> str:
        cluster.remove_node(nodes[-1], allow_graceful=False)
        return f"a node of {NODES} killed"

    return study(folder, "--on", f"ray:{cluster.address},cpus=1"), kill


def on_slurm(folder: Path, partition: str) -> tuple[subprocess.Popen[bytes], Callable[[], str]]:
    """The study as jobs, and what requeues one that runs."""

    def requeue() -> str:
        command = ["squeue", "--me", "--noheader", "--states=RUNNING", "--format=%i %j"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        own = tuple(f"slimrl-{run}-" for run in steps_of(folder))
        job, name = next(line.split() for line in listed if line.split()[1].startswith(own))
        subprocess.run(["scontrol", "requeue", job], check=True)
        return f"the running job {name} requeued"

    return study(folder, "--on", f"slurm:{partition},cpus=1"), requeue


def slurm_version() -> str:
    return subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]


CLUSTERS: dict[str, Callable[[], str]] = {"ray": partial(version, "ray"), "slurm": slurm_version}
"""What tells the version of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cluster", choices=CLUSTERS)
    parser.add_argument("--partition", default="", help="of SLURM")
    parser.add_argument("--folder", type=Path, help="on storage of all nodes; by default a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slimrl-fleet-") as name:
        folder = args.folder or Path(name)
        here, there = folder / "here", folder / args.cluster
        here.mkdir(parents=True, exist_ok=True)
        there.mkdir()
        if study(here).wait() != 0:
            sys.exit((here / "log.txt").read_text())
        nodes = NODES if args.cluster == "ray" else 1
        process, disturb = on_ray(there) if args.cluster == "ray" else on_slurm(there, args.partition)
        while process.poll() is None and not in_the_middle(here, there, nodes):
            time.sleep(0.2)
        if process.poll() is not None:
            sys.exit(f"the study ended undisturbed\n{(there / 'log.txt').read_text()}")
        disturbance = disturb()
        code = process.wait()
        log = (there / "log.txt").read_text()
        equal, runs = compare(here / "quick" / "runs", there / "quick" / "runs")
        found: dict[str, Any] = {
            "cluster": args.cluster,
            "versions": {"torch": version("torch"), args.cluster: CLUSTERS[args.cluster]()},
            "disturbance": disturbance,
            "exit code": code,
            "runs": runs,
            "runs equal to those of this machine": equal,
            "continued by the study": [
                line.split()[0] for line in log.splitlines() if "was interrupted and goes on" in line
            ],
        }
        print(log, file=sys.stderr)
    print(json.dumps(found, indent=2))
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(0 if code == 0 and equal == runs else 1)


if __name__ == "__main__":
    main()
