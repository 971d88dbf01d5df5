"""Copying a study to object storage (setting `upload`): its runs copy themselves when they end, its reports when it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slimrl.config.places import address_below, address_problem, is_address
from slimrl.errors import DiskError, SettingsError
from slimrl.runs.remote import STUDY, Remote, RemoteError, copy_files, copy_run
from slimrl.study.runs import planned_runs
from slimrl.study.spec import Expanded

REPORTS = ("report.html", "report.md", "results.csv", "results.json")


def upload_of(expanded: Expanded) -> str:
    """The address of a study's folder; empty where it is not copied."""
    upload = expanded.arm(expanded.reference).config.upload
    return address_below(upload, expanded.name) if upload else ""


def demand_folder(output: str) -> None:
    """Raises SettingsError for an output that is no folder of this machine."""
    if is_address(output):
        known = "" if address_problem(output) else f"={output}"
        raise SettingsError(f"output is a folder of this machine; set upload{known}, and the study is copied there")


def claim(expanded: Expanded, folder: Path) -> None:
    """Copy the declaration, before the first run. Raises SettingsError where that fails, or another study is there."""
    if not (address := upload_of(expanded)):
        return
    try:
        found = Remote.open(address).read(STUDY)
        if found is None:
            copy_files(folder, [STUDY], address)
        elif found != (folder / STUDY).read_bytes():
            raise SettingsError(f"{address} holds another study; choose another --name or upload=...")
    except RemoteError as error:
        raise SettingsError(
            f"upload: {error}; check the address, the network and the credentials in the environment"
        ) from None


def upload_study(expanded: Expanded, folder: Path, say: Callable[[str], object]) -> None:
    """Copy the reports, and the runs that could not copy themselves. Raises DiskError, which says how to do it again."""
    if not (address := upload_of(expanded)):
        return
    try:
        for run in planned_runs(expanded, folder):
            if run.ended:
                copy_run(run.folder, f"{address}/runs/{run.name}", between=lambda *_: None)
        copy_files(folder, REPORTS, address)
    except (RemoteError, SettingsError) as error:
        raise DiskError(f"{error}; the study lies whole in {folder}, and the same command copies the rest") from None
    say(f"copied to {address}")
