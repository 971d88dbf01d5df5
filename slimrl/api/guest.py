"""A call as a guest in a program of the user's: what it changes in the process is as it was when it returns."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from slimrl.errors import StoppedError
from slimrl.machine.signals import INTERRUPTED, Stop, Stopped

QUIET = {"TOKENIZERS_PARALLELISM": "false"}
"""Environment of a library that would warn of worker processes; what the user has set stays."""


@contextmanager
def guest() -> Iterator[Stop]:
    """A block that loads models: libraries are silent, threads are settled, and signals stop it at the next safe point.

    Its end leaves signal handlers, the number of threads, the environment and the libraries' messages as they were, and returns
    memory to the system. Ctrl-C raises KeyboardInterrupt and any other stop StoppedError, both with the sentence that says how
    to resume.
    """
    stop = Stop()
    try:
        with stop.on_free_signals(), _environment():
            # here, since torch takes seconds to import and reads the environment
            from slimrl.machine.limits import return_freed_blocks, settle_freed_blocks
            from slimrl.machine.threads import threads_of_a_call

            with _silent_libraries(), threads_of_a_call():
                try:
                    yield stop
                finally:
                    gc.collect()  # what is left of this call must not make the next one plan with less
                    settle_freed_blocks(given_back=True)
                    return_freed_blocks()
    except Stopped as stopped:
        sentence = str(stopped)
        if stopped.exit_code == INTERRUPTED:
            raise KeyboardInterrupt(sentence) from None
        raise StoppedError(sentence) from None


def import_bars() -> None:
    """Import tqdm before transformers does, without its warning in a notebook that has no ipywidgets: no bar is shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        import tqdm.auto  # type: ignore[import-untyped]  # noqa: F401


@contextmanager
def _environment() -> Iterator[None]:
    from slimrl.machine.determinism import WORKSPACE
    from slimrl.machine.limits import KERNEL_CACHES

    before = {name: os.environ.get(name) for name in (*QUIET, *KERNEL_CACHES, WORKSPACE)}
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, known in before.items():
            if known is None:
                os.environ.pop(name, None)


@contextmanager
def _silent_libraries() -> Iterator[None]:
    import_bars()
    import transformers

    log = transformers.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
