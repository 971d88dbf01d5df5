"""The console of all that is shown while work goes on."""

import os

from rich.console import Console

NOTEBOOK = "JPY_PARENT_PID"
"""Variable of Jupyter's kernels, and of the commands that a cell starts with `!`."""


def on_stderr(*, quiet: bool = False) -> Console:
    """Stderr, as a terminal where it is one; in a notebook, whose cells have no cursor to move, as a file of plain lines."""
    forced = False if NOTEBOOK in os.environ else None
    return Console(stderr=True, quiet=quiet, highlight=False, force_jupyter=forced, force_terminal=forced)
