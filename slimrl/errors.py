"""Errors that a user can act on: one sentence each, shown without a traceback.

The exit codes are those of the command line: 2 usage or settings, 3 data or checkpoint invalid, 4 diverged, 74 the disk is full
or cannot be written (75 and 130, for a run that was told to stop, are in machine/signals.py).
"""

import errno

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
