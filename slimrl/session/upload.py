"""Copying a run to object storage at its end (setting `upload`).

Only a run that has ended is copied. One that was stopped goes on from its own folder: its checkpoints are several times as large
as the model, and after a signal there may be no time for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slimrl.config.places import address_below
from slimrl.errors import DiskError, DivergedError, SettingsError
from slimrl.machine.signals import Stop, Stopped
from slimrl.runs.reader import ENDED, read_status, way_to_resume
from slimrl.runs.remote import RemoteError, copy_run, demand_place
from slimrl.session.listeners import Screen
from slimrl.session.resume import RunLookup
from slimrl.text import counted


@contextmanager
def uploaded(found: RunLookup[Any], screen: Screen, stop: Stop) -> Iterator[None]:
    """Copy the run to its setting `upload` when the block ends, if the run has ended by then.

    The place is tried out before the block: SettingsError where it cannot be written, or holds something else. Raises DiskError
    where the run cannot be copied, and Stopped after a signal; either names the command that copies it.
    """
    if not found.wanted.upload:
        yield
        return
    address = address_below(found.wanted.upload, found.path.name)
    if found.status != "finished":  # a finished one has nothing to lose, and is told where it lies
        demand_place(address, found.path)
    try:
        yield
    except DivergedError:  # which the user is told, whatever becomes of the copy
        try:
            _copy(found, address, screen, stop)
        except DiskError as error:
            screen.say(str(error), "yellow")
        raise
    _copy(found, address, screen, stop)


def _copy(found: RunLookup[Any], address: str, screen: Screen, stop: Stop) -> None:
    path, status = found.path, read_status(found.path)
    if status not in ENDED:
        return
    # a run that diverged is not taken up again
    way = f"; {way_to_resume(path)} copies it" if status == "finished" else ", from which it can be copied by hand"

    def between(done: int, total: int) -> None:
        if not done:
            screen.say(f"copying {counted(total, 'file')} to {address}")
        if stop.is_signalled and stop.asked is not None:
            asked = stop.asked
            raise Stopped(
                asked.cause, asked.exit_code, f" while {path}, which is {status}, was copied to {address}{way}"
            )

    try:
        files = copy_run(path, address, between)
    except (RemoteError, SettingsError) as error:
        raise DiskError(f"{error}; the run is {status} and lies whole in {path}{way}") from None
    screen.say(f"copied to {address}" if files else f"{address} holds the run already")
