"""A run of a study: `slimrl train --resume --quiet FILE`, in a process that ends with the one that started it."""

import os
import sys
import threading

from slimrl.cli import main as slimrl
from slimrl.machine.interpreter import as_process
from slimrl.machine.processes import die_with_the_parent


def main() -> None:
    """Run with the settings file, the only argument; standard input is a pipe that the starting process holds open."""
    die_with_the_parent()
    threading.Thread(target=_watch, daemon=True).start()
    sys.argv = ["slimrl", "train", "--resume", "--quiet", *sys.argv[1:]]
    as_process(slimrl)


def _watch() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock a thread would still hold when the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
