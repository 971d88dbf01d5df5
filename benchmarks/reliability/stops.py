"""SIGTERM at random moments of a run: exit code 75, nothing that was done lost, the same end after resuming, nobody left behind.

Rewards of the run's own are called in workers, so that there are processes to leave behind.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runs import STEPS, alive, command, content, descendants, report, start, status, wait_for_steps

REWARD = """
import time

def short(completions, **_):
    time.sleep(0.01)
    return [1 / (1 + len(text)) for text in completions]
"""


@dataclass(frozen=True)
class Outcome:
    phase: str
    """Where the signal came."""
    code: int
    seconds: float
    """From the signal to the end of the process."""
    complete: bool
    """The newest checkpoint is of the last step that was done."""
    equal: bool
    left: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    draws = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="slimrl-stops-") as name:
        output = Path(name)
        (output / "mine.py").write_text(REWARD)
        if start(arguments(output, "undisturbed"), output / "log.txt").wait() != 0:
            sys.exit((output / "log.txt").read_text())
        expected = content(output / "undisturbed")
        # some before there is a run, the others by steps, since seconds depend on what else the machine does; a signal in the
        # last moment, when all is done, would find nothing to stop
        moments = [(draws.randrange(-6, STEPS - 4), draws.uniform(0.0, 0.8)) for _ in range(args.trials)]
        with ThreadPoolExecutor(args.jobs) as pool:
            outcomes = list(pool.map(lambda job: attempt(output, job[0], *job[1], expected), enumerate(moments)))
    seconds = sorted(outcome.seconds for outcome in outcomes)
    phases = [outcome.phase for outcome in outcomes]
    found: dict[str, object] = {
        "signals": len(outcomes),
        **{f"of these {phase}": phases.count(phase) for phase in sorted(set(phases))},
        "exit code 75": sum(outcome.code == 75 for outcome in outcomes),
        "checkpoint of the last step that was done": sum(outcome.complete for outcome in outcomes),
        "resumed to the same end, to the last bit": sum(outcome.equal for outcome in outcomes),
        "processes left behind": sum(outcome.left for outcome in outcomes),
        "seconds from signal to exit, median": round(statistics.median(seconds), 2),
        "seconds from signal to exit, 95 %": round(seconds[int(0.95 * len(seconds))], 2),
    }
    report(found, args.out)
    whole = all(o.code == 75 and o.complete and o.equal and not o.left for o in outcomes)
    sys.exit(0 if whole else 1)


def arguments(output: Path, name: str) -> list[str]:
    reward = f"rewards.custom.{output / 'mine.py'}:short"
    return command(
        output, name, f"{reward}.low=0", f"{reward}.high=1", "rewards.gold_check=report", "rewards.workers=2"
    )


def attempt(output: Path, index: int, steps: int, delay: float, expected: object) -> Outcome:
    """Stop after so many steps and a moment (below 0: while it starts), look, resume, compare."""
    name = f"run-{index}"
    folder, log = output / name, output / f"{name}.txt"
    process = start(arguments(output, name), log)
    if steps < 0:
        time.sleep(0.2 - steps - 1)
    else:
        wait_for_steps(folder, process, steps)
    time.sleep(delay)
    others = descendants(process.pid)
    phase = where(folder)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    code = process.wait()
    seconds = time.monotonic() - told
    time.sleep(0.5)
    left = sum(map(alive, others))
    complete = is_complete(folder)
    start(arguments(output, name), log).wait()
    equal = status(folder) == "finished" and content(folder) == expected
    return Outcome(phase, code, seconds, complete, equal, left)


def where(folder: Path) -> str:
    """As far as its folder tells."""
    if not (folder / "run.json").is_file():
        return "before there is a run"
    if any((folder / "checkpoints").glob(".writing-*")):
        return "inside the writing of a checkpoint"
    steps = len((folder / "metrics.jsonl").read_text().splitlines()) if (folder / "metrics.jsonl").is_file() else 0
    measured = (folder / "evals" / f"step-{steps:08d}.json").is_file()
    return "in an evaluation" if steps % 6 == 0 and not measured else "in a step"


def is_complete(folder: Path) -> bool:
    """Whether a whole checkpoint is there of the last step in metrics.jsonl; nothing to lose is complete too."""
    if not (folder / "run.json").is_file():
        return True
    metrics = folder / "metrics.jsonl"
    steps = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
    state = folder / "checkpoints" / f"step-{steps:08d}" / "state.json"
    return state.is_file() and bool(json.loads(state.read_text())["run"]["step"] == steps)


if __name__ == "__main__":
    main()
