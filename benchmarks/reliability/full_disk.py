"""A disk that is full at a hundred random places: is a checkpoint lost, does the run end, does it end as ever?

One process, or rank 0 of `--devices`, which alone writes. At the bytes of checkpoints and records that random draws name, writing
fails with ENOSPC after half of the block, once; then there is room again. Runs go on until all places were met.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import sys
import tempfile
from pathlib import Path

from runs import EVERYTHING, content, report
from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.machine.signals import Stop
from slimrl.parallel.team import team
from slimrl.runs.checkpoints import newest
from slimrl.runs.files import HashedFile
from slimrl.train import train

LARGEST = 14_000_000
"""Bytes until the next refusal, at most: about a checkpoint."""


class Disk:
    """Refuses a write now and then; notes which checkpoint was safe when it did."""

    def __init__(self, draws: random.Random, folder: Path) -> None:
        self.draws, self.folder, self.room = draws, folder, draws.randrange(LARGEST)
        self.refused = self.lost = self.safe = 0
        self.write = HashedFile.write

    def take(self, file: HashedFile, data: bytes | memoryview) -> None:
        self.room -= len(data)
        if self.room >= 0:
            self.write(file, data)
            return
        self.room = self.draws.randrange(LARGEST)
        self.refused += 1
        self.write(file, data[: len(data) // 2])
        found = newest(self.folder / "checkpoints")[0]
        self.lost += (found.step if found else 0) < self.safe
        self.safe = found.step if found else 0
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--places", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    draws, refused, lost, runs, equal = random.Random(args.seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="slimrl-disk-") as name:
        output = Path(name)
        run(output, "undisturbed", args.devices)
        expected = content(output / "undisturbed")
        own = HashedFile.write
        while refused < args.places:
            disk = Disk(draws, output / f"run-{runs}")
            HashedFile.write = lambda file, data, disk=disk: disk.take(file, data)
            try:
                run(output, f"run-{runs}", args.devices)
            finally:
                HashedFile.write = own
            equal += content(output / f"run-{runs}") == expected
            refused, lost, runs = refused + disk.refused, lost + disk.lost, runs + 1
    found: dict[str, object] = {
        "processes of a run": args.devices,
        "places at which the disk was full": refused,
        "checkpoints lost": lost,
        "runs": runs,
        "runs equal to the undisturbed one": equal,
    }
    report(found, args.out)
    sys.exit(0 if not lost and equal == runs else 1)


def run(output: Path, name: str, devices: int) -> None:
    """With a divided optimizer, so that a checkpoint holds what each of several ranks has."""
    divided = ("optimizer.sharded=true", f"devices={devices}") if devices > 1 else ()
    settings = (*EVERYTHING, *divided, "checkpoint.every=1", f"output={output}", f"name={name}")
    config, stop = load_config(TrainConfig, [], settings), Stop()
    with team(config, stop) as ranks:
        assert ranks.size == devices
        train(config, Display(quiet=True), stop=stop)


if __name__ == "__main__":
    main()
