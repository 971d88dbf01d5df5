"""Output of verbs: data on stdout, human text on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from slimrl.errors import SettingsError
from slimrl.machine.interpreter import importing

if TYPE_CHECKING:
    from slimrl.config.schema import RootConfig
    from slimrl.display.run import Display
    from slimrl.display.study import ProgressDisplay


_kept: list[TextIO] = []
"""Standard output, once `keep_output` has taken it from `sys.stdout`."""


def keep_output() -> None:
    """Leave standard output to `out`: what other code prints from here on, and what a process prints that it starts, goes to
    standard error. Without effect where `sys.stdout` is not the one of the process.
    """
    try:
        if _kept or sys.stdout.fileno() != 1:
            return
        own = os.dup(1)
        os.dup2(2, 1)
    except (AttributeError, OSError):  # one of them is closed, or a test has replaced it
        return
    _kept.append(io.TextIOWrapper(io.FileIO(own, "w"), encoding=sys.stdout.encoding, errors=sys.stdout.errors))


def _output() -> TextIO:
    return _kept[0] if _kept else sys.stdout


def out(text: str, *, newline: bool = True) -> None:
    """Print data on stdout. A reader that closes it, as `head` does, ends the command with exit code 0."""
    try:
        click.echo(text, _output(), nl=newline)
    except BrokenPipeError:
        # the interpreter flushes stdout once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), _output().fileno())
        raise click.exceptions.Exit(0) from None


def out_is_terminal() -> bool:
    """True where `out` writes on a terminal."""
    return _output().isatty()


def tell(text: str) -> None:
    """A line of human text."""
    click.echo(text, err=True)


def print_json(data: Any) -> None:
    plain = dataclasses.asdict(data) if dataclasses.is_dataclass(data) and not isinstance(data, type) else data
    # ASCII, since standard output may be a terminal and completions hold anything
    out(json.dumps(plain))


def open_display(config: RootConfig, quiet: bool = False, samples_every: int = 0, samples: int = 0) -> Display:
    """The display of a verb that loads a model; other libraries are silenced, and standard output is kept from them."""
    keep_output()
    silence_libraries()
    from slimrl.api.screen import announce
    from slimrl.display.run import Display

    display = Display(quiet=quiet, samples_every=samples_every, samples=samples)
    announce(config, display)
    return display


def silence_libraries() -> None:
    """Import all that loads a model, and let it write nothing of its own."""
    # read when the libraries are imported
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    with importing():
        import transformers

        import slimrl.preflight.setup  # noqa: F401

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a part for CPUs, which is not used


@contextlib.contextmanager
def stopping(display: Display | ProgressDisplay) -> Iterator[None]:
    """Take the progress bar off the screen, however the work ends."""
    try:
        yield
    finally:
        display.stop()


def writable(path: str) -> Path:
    """The path of --out. Raises SettingsError if it cannot be written, before the work begins."""
    target = Path(path)
    if not target.parent.is_dir():
        raise SettingsError(f"--out {path}: no such folder {target.parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise SettingsError(f"--out {path}: cannot be written; name another file")
    return target
