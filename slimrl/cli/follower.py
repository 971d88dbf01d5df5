"""A rank of a run that does not lead it, started by the one that does: `python -m slimrl.cli.follower cpu|cuda SECONDS`."""

import sys

from slimrl.machine.interpreter import as_process
from slimrl.machine.processes import die_with_the_parent, end_with_the_input


def main() -> None:
    """Join the ranks that the environment names and follow; standard input is a pipe that the leader holds open."""
    die_with_the_parent()
    end_with_the_input()
    from slimrl.cli.output import silence_libraries
    from slimrl.machine.signals import Stop

    silence_libraries()
    import torch

    from slimrl.parallel.follow import follow
    from slimrl.parallel.lookout import meeting

    device, deadline = sys.argv[1:]
    stop = Stop()
    with stop.on_signals(), meeting(torch.device(device), float(deadline), stop) as ranks:
        stop.defer()
        follow(ranks, stop)


if __name__ == "__main__":
    as_process(main)
