"""Rewards that misbehave from the third step on: does the run finish, are the other groups paid as ever, is anybody left behind?

A sleep without end, a loop in C, a regular expression that never ends, exceptions, values that are none, wrong lengths, forks,
10 GB, an exit, 1 GB of output, other seeds, another folder. Each is paid beside the right answer, for one problem in two.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from runs import alive, descendants, report, start, status

STEPS = 6
CODE = """
import os, random, re, subprocess, time

def hostile(kind):
    def function(completions, completion_ids, id, **_):
        index = int(id[0].rpartition("/")[2])
        # behaves before the run (problems 0 to 15, and gold answers, which have no tokens) and in its first two steps
        wrong = index >= 16 and index % 2 == 0 and completion_ids[0]
        found = kind(completions) if wrong else None
        return [0.5] * len(completions) if found is None else found
    return function

def raises(completions):
    raise ValueError("no")

def prints(completions):
    for _ in range(1 << 10):
        os.write(1, b"x" * (1 << 20))

def forks(completions):
    for _ in range(4):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    os.fork()  # and one that comes back as if it were the parent

def reseeds(completions):
    import numpy
    random.seed(0)
    numpy.random.seed(0)

def moves(completions):
    os.chdir("/")
    os.environ.clear()

sleep = hostile(lambda c: time.sleep(3600))
loop = hostile(lambda c: [10 ** 10 ** 9])
regex = hostile(lambda c: re.match("(a+)+$", "a" * 60 + "b"))
exception = hostile(raises)
no_number = hostile(lambda c: [float("nan"), float("inf"), "1", [1.0]])
wrong_length = hostile(lambda c: [1.0])
fork = hostile(forks)
memory = hostile(lambda c: [len(bytearray(10 << 30))])
leave = hostile(lambda c: os._exit(3))
output = hostile(prints)
reseed = hostile(reseeds)
move = hostile(moves)
"""
KINDS = (
    "sleep", "loop", "regex", "exception", "no_number", "wrong_length", "fork", "memory", "leave", "output", "reseed", "move",
)  # fmt: skip
HARMLESS = ("fork", "output", "reseed", "move")
"""They do what they should not and still return a score, which must be paid."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=KINDS)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    rows: dict[str, object] = {}
    whole = True
    with tempfile.TemporaryDirectory(prefix="slimrl-hostile-") as name:
        output = Path(name)
        (output / "bad.py").write_text(CODE)
        for kind in args.only:
            row = attempt(output, kind)
            rows[kind] = row
            paid = row["hostile in all"] if kind in HARMLESS else 0
            fine = row["finished"] and row["hostile paid"] == paid
            fine = fine and not (row["left"] or row["others spoilt"] or row["other scores wrong"])
            whole = whole and bool(fine)
    report({kind: json.dumps(row) for kind, row in rows.items()}, None)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(0 if whole else 1)


def attempt(output: Path, kind: str) -> dict[str, object]:
    """One run with one hostile reward."""
    reward = f"rewards.custom.{output / 'bad.py'}:{kind}"
    settings = (
        f"steps={STEPS}", "rollout.problems=8", "rollout.group_size=4", "rollout.max_new_tokens=32", "evaluation.problems=8",
        "evaluation.harder_problems=0", "evaluation.greedy=false", f"{reward}.low=0", f"{reward}.high=1",
        "rewards.gold_check=report", f"rewards.deadline={60 if kind == 'output' else 1}", "rewards.unscorable_limit=1",
        f"output={output}", f"name={kind}",
    )  # fmt: skip
    log = output / f"{kind}.txt"
    started = time.monotonic()
    process = start([sys.executable, "-m", "slimrl", "train", "--quiet", *settings], log)
    others: set[int] = set()
    while process.poll() is None:
        others |= descendants(process.pid) - {os.getpid()}
        time.sleep(0.02)
    time.sleep(0.5)
    folder = output / kind
    rollouts = [json.loads(line) for file in sorted((folder / "rollouts").glob("*")) for line in file.open()]
    wrong = [row for row in rollouts if (number := int(row["id"].rpartition("/")[2])) >= 16 and number % 2 == 0]
    right = [row for row in rollouts if row not in wrong]
    reasons = sorted({row["unscorable"] for row in wrong if row["unscorable"]})
    return {
        "finished": status(folder) == "finished" and process.returncode == 0,
        "hostile paid": sum(not row["unscorable"] for row in wrong),
        "hostile in all": len(wrong),
        "other scores wrong": sum(row["scores"].get("correct", -1) != float(row["correct"]) for row in rollouts),
        "others spoilt": sum(bool(row["unscorable"]) for row in right),
        "left": sum(map(alive, others)),
        "seconds": round(time.monotonic() - started, 1),
        "printed": log.stat().st_size,
        "reason": reasons[0] if reasons else "",
    }


if __name__ == "__main__":
    main()
