"""The command `slimrl` as a process."""

from slimrl.cli import main
from slimrl.machine.interpreter import as_process


def run() -> None:
    """`slimrl.cli.main`, and a quick end of the process."""
    as_process(main)


if __name__ == "__main__":
    run()
