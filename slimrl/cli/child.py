"""A run of a study: `slimrl train --resume --quiet FILE`, in a process that ends with the one that started it."""

import sys

from slimrl.cli import main as slimrl
from slimrl.machine.interpreter import as_process
from slimrl.machine.processes import die_with_the_parent, end_with_the_input


def main() -> None:
    """Run with the settings file, the only argument; standard input is a pipe that the starting process holds open."""
    die_with_the_parent()
    end_with_the_input()
    sys.argv = ["slimrl", "train", "--resume", "--quiet", *sys.argv[1:]]
    as_process(slimrl)


if __name__ == "__main__":
    main()
