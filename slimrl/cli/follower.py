"""A rank of a run that does not lead it, started by the one that does: `python -m slimrl.cli.follower cpu|cuda SECONDS`."""

import os
import sys
import threading

from slimrl.machine.interpreter import as_process
from slimrl.machine.processes import die_with_the_parent


def main() -> None:
    """Join the ranks that the environment names and follow; standard input is a pipe that the leader holds open."""
    die_with_the_parent()
    threading.Thread(target=_watch, daemon=True).start()
    from slimrl.cli.output import silence_libraries
    from slimrl.machine.signals import Stop

    silence_libraries()
    import torch

    from slimrl.machine.ranks import joined
    from slimrl.parallel.follow import follow
    from slimrl.parallel.lookout import looking_out

    device, deadline = sys.argv[1:]
    stop = Stop()
    with stop.on_signals(), joined(torch.device(device)) as ranks, looking_out(ranks, float(deadline)):
        stop.defer()
        follow(ranks, stop)


def _watch() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock a thread would still hold when the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    as_process(main)
