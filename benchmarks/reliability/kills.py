"""`kill -9` at random moments of a run: does it end as if nothing had happened, to the last bit?

One run is undisturbed. Each trial is a run of the same settings in a folder of its own that is killed, some of them inside the
writing of a checkpoint, some twice, and then resumed to its end. Weights, optimizer, metrics, rollouts and held-out completions
are compared.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runs import STEPS, alive, command, content, descendants, report, start, status, wait_for_steps


@dataclass(frozen=True)
class Trial:
    """Where the kills of a run come."""

    name: str
    steps: tuple[int, ...]
    """Taken by a process when its kill comes; -1: inside the writing of a checkpoint."""
    checkpoint: int
    """Which checkpoint, counted from the start of the process."""
    delay: float
    """Seconds after that moment."""


@dataclass(frozen=True)
class Outcome:
    kills: int
    inside: int
    """Kills that left a checkpoint half written."""
    equal: bool
    left: int
    """Processes that outlived a kill."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--twice", type=int, default=10, help="of these, killed twice")
    parser.add_argument("--inside", type=int, default=15, help="of these, killed inside the writing of a checkpoint")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slimrl-kills-") as name:
        output = Path(name)
        undisturbed(output)
        expected = content(output / "undisturbed")
        trials = plan(args, random.Random(args.seed))
        with ThreadPoolExecutor(args.jobs) as pool:
            outcomes = list(pool.map(lambda trial: attempt(output, trial, expected), trials))
    found: dict[str, object] = {
        "runs": len(outcomes),
        "kills that hit": sum(outcome.kills for outcome in outcomes),
        "runs killed twice": sum(outcome.kills > 1 for outcome in outcomes),
        "kills inside the writing of a checkpoint": sum(outcome.inside for outcome in outcomes),
        "runs equal to the undisturbed one": sum(outcome.equal for outcome in outcomes),
        "processes left behind": sum(outcome.left for outcome in outcomes),
    }
    report(found, args.out)
    whole = all(outcome.equal and outcome.kills and not outcome.left for outcome in outcomes)
    whole = (
        whole and sum(o.inside for o in outcomes) >= args.inside and sum(o.kills > 1 for o in outcomes) == args.twice
    )
    sys.exit(0 if whole else 1)


def undisturbed(output: Path) -> None:
    """The run to compare with."""
    if start(command(output, "undisturbed"), output / "log.txt").wait() != 0:
        sys.exit((output / "log.txt").read_text())


def plan(args: argparse.Namespace, draws: random.Random) -> list[Trial]:
    """Moments over the whole run, from where it has its folder: by steps, since seconds depend on what else the machine does."""
    trials = []
    for index in range(args.trials):
        inside = index < args.inside
        twice = index >= args.trials - args.twice
        most = STEPS // 2 if twice else STEPS
        steps = tuple(-1 if inside else draws.randrange(most) for _ in range(1 + twice))
        delay = draws.uniform(0.0, 0.02 if inside else 0.5)
        trials.append(Trial(f"run-{index}", steps, draws.randrange(1, 6), delay))
    return trials


def attempt(output: Path, trial: Trial, expected: object) -> Outcome:
    """Kill, resume, compare."""
    folder, log = output / trial.name, output / f"{trial.name}.txt"
    kills = inside = left = 0
    for steps in trial.steps:
        process = start(command(output, trial.name), log)
        if steps < 0:
            wait_for_writing(folder, process, trial.checkpoint)
        else:
            wait_for_steps(folder, process, steps)
        time.sleep(trial.delay)
        if process.poll() is not None:
            break
        others = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        inside += any((folder / "checkpoints").glob(".writing-*"))
        time.sleep(1.0)
        left += sum(map(alive, others))
    for _ in range(3):
        if status(folder) == "finished":
            break
        start(command(output, trial.name), log).wait()
    equal = status(folder) == "finished" and content(folder) == expected
    if not equal:
        print(f"{trial} is not equal: {status(folder)}; {log.read_text()[-500:]}", file=sys.stderr)
    return Outcome(kills, inside, equal, left)


def wait_for_writing(folder: Path, process: subprocess.Popen[bytes], count: int) -> None:
    """Until the n-th checkpoint of this process is being written."""
    seen: set[str] = set()
    while process.poll() is None:
        seen |= {path.name for path in (folder / "checkpoints").glob(".writing-*")}
        if len(seen) >= count and any((folder / "checkpoints").glob(".writing-*")):
            return
        time.sleep(0.0005)


if __name__ == "__main__":
    main()
