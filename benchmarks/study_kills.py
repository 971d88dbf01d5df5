"""A study that is killed again and again: does the same command finish it, to the last bit, with no run done twice?

One study is run undisturbed. The same is run in another folder, where `kill -9` hits the driver or one of its runs at random
moments, and the same command is given again after each. Then every run of the two is compared: weights, every metric but
times, every held-out completion.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = """
question: Does a study survive?
seeds: 5
settings:
  steps: 6
  model: {dtype: float32}
  optimizer: {minibatches: 2}
  evaluation: {problems: 50, harder_problems: 0}
arms:
  no_kl: algorithm.kl_coef=0
  dynamic_sampling: algorithm.dynamic_sampling=refill
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seconds", type=float, nargs=2, default=(3.0, 14.0), help="between which a kill comes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="slimrl-kills-") as name:
        folder = Path(name)
        file = folder / "study.yaml"
        file.write_text(STUDY)
        finish(file, folder / "undisturbed")
        killed = {"driver": 0, "run": 0}
        ended: dict[str, int] = {}
        orphans = 0
        driver: subprocess.Popen[bytes] | None = None
        while sum(killed.values()) < args.kills and finished(folder / "killed") < finished(folder / "undisturbed"):
            if driver is None or driver.poll() is not None:
                driver = subprocess.Popen(command(file, folder / "killed"))
            time.sleep(moments.uniform(*args.seconds))
            note_ended(folder / "killed", ended)
            runs = children(driver.pid)
            if driver.poll() is not None or not runs:
                continue
            if killed["driver"] <= killed["run"]:
                os.kill(driver.pid, signal.SIGKILL)
                driver.wait()
                time.sleep(2)
                killed["driver"] += 1
                orphans += sum(alive(pid) for pid in runs)
            else:  # the driver goes on, and does that run again
                os.kill(moments.choice(runs), signal.SIGKILL)
                killed["run"] += 1
        if driver is not None:
            driver.wait()
        finish(file, folder / "killed")
        same, total = compare(*(folder / name / "study" / "runs" for name in ("undisturbed", "killed")))
        repeated = sum(stamp(folder / "killed" / "study" / "runs" / run) != at for run, at in ended.items())
    found = {
        "kills of the driver": killed["driver"],
        "kills of a run": killed["run"],
        "runs": total,
        "equal to the undisturbed study": same,
        "finished runs done again": repeated,
        "processes left behind": orphans,
    }
    print("| what | count |\n|---|---|")
    for what, count in found.items():
        print(f"| {what} | {count} |")
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")
    enough = sum(killed.values()) == args.kills
    sys.exit(0 if enough and same == total and not repeated and not orphans else 1)


def command(file: Path, output: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "slimrl",
        "study",
        "run",
        str(file),
        "--output",
        str(output),
        "--slots",
        "2",
        "--quiet",
    ]


def finish(file: Path, output: Path) -> None:
    subprocess.run(command(file, output), check=True)


def note_ended(output: Path, ended: dict[str, int]) -> None:
    """Remember when each run that is finished was."""
    for run in (output / "study" / "runs").glob("*"):
        if status(run) in ("finished", "diverged"):
            ended.setdefault(run.name, stamp(run))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def status(run: Path) -> str:
    try:
        return str(json.loads((run / "run.json").read_text())["status"])
    except (OSError, ValueError):
        return ""


def finished(output: Path) -> int:
    """Runs that are results."""
    return sum(status(run) == "finished" for run in (output / "study" / "runs").glob("*"))


def stamp(run: Path) -> int:
    return (run / "run.json").stat().st_mtime_ns


def compare(first: Path, second: Path) -> tuple[int, int]:
    """Runs that are equal in the folders of runs of two studies, and runs in all."""
    ours, theirs = (sorted(path.iterdir()) for path in (first, second))
    if [run.name for run in ours] != [run.name for run in theirs]:
        return 0, len(ours)
    return sum(content(a) == content(b) for a, b in zip(ours, theirs, strict=True)), len(ours)


def content(run: Path) -> object:
    """Everything that a run found, without times and memory."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (
        json.loads((run / "run.json").read_text())["summary"]["weights"],
        [{key: value for key, value in row.items() if not key.startswith("time/")} for row in metrics],
        [path.read_text() for path in sorted((run / "evals").iterdir())],
    )


if __name__ == "__main__":
    main()
