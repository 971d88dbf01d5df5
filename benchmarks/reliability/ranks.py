"""`kill -9` of a rank or of torchrun, SIGTERM to torchrun, and ranks that hang, at random moments of a run on two processes, and
`kill -9` of a rank while the optimizer's state is written to a checkpoint.

One run is undisturbed. Each trial is a run of the same settings in a folder of its own. One of its processes is killed, or
stopped by SIGSTOP, which must be noticed within the deadline; the others have to end by themselves. The same command then resumes
the run. Weights, optimizer, metrics, rollouts and held-out completions are compared.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runs import alive, command, content, descendants, report, start, status, wait_for_steps

STEPS = 12
DEADLINE = 10
"""Seconds without a sign of life after which a rank counts as hanging."""
ENDED_WITHIN = 60
"""Seconds after a kill, or after the deadline of a hang, after which a process counts as left behind."""
START_SECONDS = 120
"""The deadline of a rank that hangs before it has started."""
SIZES = (f"steps={STEPS}", "evaluation.every=4", f"device_deadline={DEADLINE}")
DIVIDED = {"ddp": ("parallel=ddp",), "fsdp": ("parallel=fsdp",), "sharded": ("optimizer.sharded=true",)}
"""Settings by what ranks divide: rows alone, layers and optimizer, or the optimizer."""
STATE_BYTES = 6_000_000
"""Of the optimizer's state in a checkpoint, about: two moments of 0.87 million weights in float32."""


@dataclass(frozen=True)
class Trial:
    """One process of one run, and the moment at which it is hit."""

    name: str
    victim: str
    """`leader` or `follower` of `devices=2`, `rank` of torchrun, or `torchrun`."""
    signal: str
    """KILL, TERM, or STOP, which makes it hang."""
    steps: int
    """Taken when the signal comes; -1: before the first."""
    delay: float
    """Seconds after that moment."""
    draw: int
    """Chooses among the ranks of torchrun."""
    written: int = 0
    """The signal comes after so many steps while a checkpoint is written, with so many bytes of the optimizer's state; 0: at any
    moment.
    """

    @property
    def by_torchrun(self) -> bool:
        return self.victim in {"rank", "torchrun"}


@dataclass(frozen=True)
class Outcome:
    what: str
    """Signal and victim."""
    hit: bool
    """The process was still there."""
    seconds: float
    """From the signal to the end of the others."""
    equal: bool
    left: int
    """Processes that outlived the others."""
    resumed: bool
    """A checkpoint or a beginning was found, and the run was ended by the same command."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=20, help="kills of a rank")
    parser.add_argument("--torchrun", type=int, default=10, help="kills of torchrun")
    parser.add_argument("--stops", type=int, default=4, help="SIGTERM to torchrun")
    parser.add_argument("--hangs", type=int, default=6, help="ranks that hang, in turn follower and leader")
    parser.add_argument("--writes", type=int, default=0, help="kills of a rank while a checkpoint is written")
    parser.add_argument("--divided", default="ddp", choices=DIVIDED)
    parser.add_argument("--every", type=int, default=3, help="steps between two checkpoints")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slimrl-ranks-") as name:
        output = Path(name)
        settings = (*SIZES, *DIVIDED[args.divided], f"checkpoint.every={args.every}")
        if start(arguments(output, "undisturbed", settings, by_torchrun=False), output / "log.txt").wait() != 0:
            sys.exit((output / "log.txt").read_text())
        expected = content(output / "undisturbed")
        with ThreadPoolExecutor(args.jobs) as pool:
            outcomes = list(pool.map(lambda trial: attempt(output, trial, settings, expected), plan(args)))
    found: dict[str, object] = {f"hit: {what}": n for what, n in Counter(o.what for o in outcomes if o.hit).items()}
    hangs = [o.seconds for o in outcomes if o.what.startswith("STOP")]
    found |= {
        "divided": args.divided,
        "checkpoint.every": args.every,
        "device_deadline": DEADLINE,
        "seconds from a hang to the end of all processes": [round(seconds, 1) for seconds in hangs],
        "runs": len(outcomes),
        "runs that the same command ended": sum(o.resumed for o in outcomes),
        "runs equal to the undisturbed one": sum(o.equal for o in outcomes),
        "processes left behind": sum(o.left for o in outcomes),
    }
    report(found, args.out)
    sys.exit(0 if all(o.hit and o.resumed and o.equal and not o.left for o in outcomes) else 1)


def arguments(output: Path, name: str, settings: Sequence[str], by_torchrun: bool) -> list[str]:
    """The run on two processes, started by SlimRL or by torchrun."""
    if not by_torchrun:
        return command(output, name, *settings, "devices=2")
    python, _, _, *rest = command(output, name, *settings)
    return [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "slimrl", *rest]


def plan(args: argparse.Namespace) -> list[Trial]:
    draws = random.Random(args.seed)
    ranks = [("leader", "follower", "rank")[i % 3] for i in range(args.ranks)]
    victims = [
        *(("KILL", rank) for rank in ranks),
        *[("KILL", "torchrun")] * args.torchrun,
        *[("TERM", "torchrun")] * args.stops,
    ]
    victims += [("STOP", ("follower", "leader")[i % 2]) for i in range(args.hangs)]
    # a quarter before the first step: while processes start, models load and the first evaluation is made. A leader that hangs
    # while it starts is not ended by the others, which end themselves; it ends when it goes on.
    writes = [
        Trial(
            f"writing-{i}",
            ("leader", "follower")[i % 2],
            "KILL",
            1 + draws.randrange(STEPS - 2),
            0.0,
            0,
            written=1 + draws.randrange(STATE_BYTES),
        )
        for i in range(args.writes)
    ]
    return writes + [
        Trial(
            f"{victim}-{i}",
            victim,
            signal,
            draws.randrange(STEPS - 1) if i % 4 or (signal, victim) == ("STOP", "leader") else -1,
            draws.uniform(0, 0.5),
            draws.getrandbits(8),
        )
        for i, (signal, victim) in enumerate(victims)
    ]


def attempt(output: Path, trial: Trial, settings: Sequence[str], expected: object) -> Outcome:
    """Hit one process, wait for the end of the others, resume, compare."""
    folder, log = output / trial.name, output / f"{trial.name}.txt"
    again = arguments(output, trial.name, settings, trial.by_torchrun)
    process = start(again, log)
    if trial.steps < 0:
        time.sleep(10 * trial.delay)
    else:
        wait_for_steps(folder, process, trial.steps)
        time.sleep(trial.delay)
    hit = victim_of(trial, process.pid) if process.poll() is None else None
    others = descendants(process.pid) | {process.pid}
    if trial.written:
        wait_for_checkpoint(folder, process, trial.written)
    if hit is not None:
        with suppress(ProcessLookupError):
            os.kill(hit, signal.Signals[f"SIG{trial.signal}"])
        if trial.written and trial.victim == "leader" and not [*folder.glob("checkpoints/.writing-*")]:
            print(f"{trial}: the checkpoint was whole before the signal came", file=sys.stderr)
    begun = time.monotonic()
    until = begun + ENDED_WITHIN + (START_SECONDS if trial.steps < 0 else DEADLINE)
    while time.monotonic() < until and any(map(alive, others)):
        process.poll()
        time.sleep(0.1)
    seconds, left = time.monotonic() - begun, {pid for pid in others if alive(pid)}
    for pid in left:
        subprocess.run(["kill", "-KILL", str(pid)], check=False)
    process.wait()
    code = start(again, log).wait()
    resumed = code == 0 and status(folder) == "finished"
    equal = resumed and content(folder) == expected
    if left or not equal or hit is None:
        print(f"{trial}: hit {hit}, left {len(left)}, {status(folder)}; {log.read_text()[-2000:]}", file=sys.stderr)
    return Outcome(
        f"{trial.signal} {trial.victim}{' in a checkpoint' if trial.written else ''}",
        hit is not None,
        seconds,
        equal,
        len(left),
        resumed,
    )


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[bytes], written: int) -> None:
    """Until so many bytes of the optimizer's state are in a checkpoint that is being written, or the process has ended."""
    while process.poll() is None:
        for file in folder.glob("checkpoints/.writing-*/optimizer.safetensors"):
            with suppress(OSError):  # it has got its name meanwhile
                if file.stat().st_size >= written:
                    return
        time.sleep(0.0002)


def victim_of(trial: Trial, launcher: int) -> int | None:
    """The process to hit, waited for until it has been started."""
    if trial.victim in {"leader", "torchrun"}:
        return launcher
    until = time.monotonic() + 30
    while time.monotonic() < until and alive(launcher):
        children = sorted(descendants(launcher))
        ranks = [pid for pid in children if is_rank(pid, trial.by_torchrun)]
        if ranks:
            return ranks[trial.draw % len(ranks)]
        time.sleep(0.01)
    return None


def is_rank(pid: int, by_torchrun: bool) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"train" in words and b"slimrl" in words if by_torchrun else b"slimrl.cli.follower" in words


if __name__ == "__main__":
    main()
