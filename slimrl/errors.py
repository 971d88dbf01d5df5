"""Errors that a user can act on: one sentence each, shown without a traceback.

The exit codes are those of the command line: 2 usage or settings, 3 data or checkpoint invalid, 4 diverged, 74 the disk is full
or cannot be written (75 and 130, for a run that was told to stop, are in machine/signals.py).
"""

import errno
import inspect
import traceback
from itertools import dropwhile, islice, takewhile
from pathlib import Path

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""The errno of an OSError for a disk that takes no more."""


class SlimError(Exception):
    """A mistake or a misfortune outside our code; `str(error)` is the sentence that the user reads."""

    exit_code = 1


class SettingsError(SlimError, ValueError):
    """The settings, or the model and the settings together, cannot work."""

    exit_code = 2


class DataError(SlimError, ValueError):
    """A file, a row or a checkpoint is not what it should be; the sentence names file:line where there is one."""

    exit_code = 3


class DiskError(SlimError):
    """A file of a run cannot be written, as on a full disk; nothing on it is lost, and the run can continue later."""

    exit_code = 74


class StoppedError(SlimError):
    """A run that a Python program began was told to stop, by SIGTERM or because its time was over; it can be resumed."""

    exit_code = 75


class DivergedError(SlimError):
    """Training produced a number that is not finite; the weights were not touched by it."""

    exit_code = 4


class NonFiniteError(DivergedError):
    """One update produced a number that is not finite: it is dropped, and training may go on."""


class SpoiledWeightsError(NonFiniteError):
    """A weight is not finite after an update was applied: the weights must be thrown away."""


def raised(error: BaseException) -> str:
    """The words `raised TypeError: why (file.py:12 in function)` on an error in the user's code."""
    where = places(error)
    return f"raised {type(error).__name__}: {reason(error)}{f' ({where})' if where else ''}"


def reason(error: BaseException) -> str:
    """The first line of an error's own words."""
    return (str(error).strip().splitlines() or [""])[0][:160]


def places(error: BaseException) -> str:
    """The two innermost places that this package has called, innermost first: `file.py:12 in function, other.py:3 in other`."""
    own, importing = str(Path(__file__).parent), "<frozen "
    inwards = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(importing)]
    outwards = dropwhile(lambda frame: frame.filename.startswith(own), reversed(inwards))
    called = takewhile(lambda frame: not frame.filename.startswith(own), outwards)
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in islice(called, 2))


def defined(function: object) -> str:
    """The place of a function of Python's in the user's code, as in `file.py:12`; empty where it has none."""
    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)  # type: ignore[arg-type]
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else ""
