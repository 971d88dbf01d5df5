"""A rank of a run that does not lead it, started by the one that does: `python -m slimrl.cli.follower cpu|cuda`."""

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

    stop = Stop()
    with stop.on_signals(), joined(torch.device(sys.argv[1])) as ranks:
        stop.defer()
        follow_quietly(ranks, stop)


def follow_quietly(ranks, stop) -> None:  # type: ignore[no-untyped-def]
    from slimrl.errors import SlimError
    from slimrl.parallel.follow import follow

    try:
        follow(ranks, stop)
    except SlimError as error:  # the leader says it
        sys.exit(error.exit_code)


def _watch() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock a thread would still hold when the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    as_process(main)
