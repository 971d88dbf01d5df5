"""Runs on object storage, through fsspec: a run that has ended is copied there, and fetched from there to be read.

A run is there once its run.json is: that is written last, and what is there is never written again. Credentials are fsspec's own
business, which finds them in the environment. This module does not know when a run is copied, nor what its copy is read for.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from slimrl.config.places import address_problem, is_address
from slimrl.errors import DataError, SettingsError, SlimError
from slimrl.runs.files import files_within, write_bytes
from slimrl.runs.lock import alone_in
from slimrl.runs.reader import ENDED, read_status
from slimrl.text import counted, without_secrets

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SUMMARIES = ("run.json", "config.yaml", "metrics.jsonl", "evals/*.json")
"""Files of a run that a list of runs is made of, as patterns in which `*` stands for `/` too."""
RECORDS = (*SUMMARIES, "evals/*", "events.jsonl", "rejected.jsonl")
"""Those of a report."""
PAGE = (*RECORDS, "rollouts/*")
"""Those of a run's page."""
WHOLE = ("*",)
RUN = "run.json"
STUDY, STUDY_PAGE = "declared.json", "report.html"
"""Files of a study's own, which may change there."""
AT_ONCE = 16
"""Files that are copied side by side, and after which a copy can be stopped."""
Info = Mapping[str, Any]
"""A file as its storage describes it: its size, and under some key the time at which it was written."""
Say = Callable[[str], object]


def silent(_: str) -> None:
    """Show nothing."""


class RemoteError(SlimError):
    """A place on object storage cannot be reached, read or written; the sentence has the reason and no advice."""

    exit_code = DataError.exit_code


@dataclass(frozen=True)
class Remote:
    """A folder on object storage. Every method raises RemoteError for whatever goes wrong there."""

    address: str
    fs: AbstractFileSystem
    root: str
    """The path of the folder as the file system spells it."""

    @classmethod
    def open(cls, address: str) -> Self:
        """Raises SettingsError for an address that cannot be one, or a package that is not installed."""
        if problem := address_problem(address):
            raise SettingsError(problem)
        import fsspec
        from fsspec.registry import known_implementations

        protocol = address.partition("://")[0]
        if protocol not in known_implementations:
            raise SettingsError(f"{address}: fsspec knows no {protocol}://; give an address such as s3://bucket/runs")
        own = {"auto_mkdir": True} if protocol in ("file", "local") else {}
        try:
            fs, root = fsspec.url_to_fs(address, **own)
        except ImportError as error:
            package = known_implementations[protocol]["class"].partition(".")[0]
            name = {"s3fs": "'slimrl[s3]'", "fsspec": ""}.get(package, package)
            way = f"pip install {name}" if name else str(error)
            raise SettingsError(f"{address} needs a package that is not installed; {way}") from None
        except Exception as error:
            raise _failure(address, "reached", error) from None
        fs.invalidate_cache()
        return cls(address.rstrip("/"), fs, root.rstrip("/"))

    def files(self) -> dict[str, Info]:
        """The files in the folder and below it, by their names relative to it; empty where there is none."""
        with self._trying("read"):
            try:
                found = self.fs.find(self.root, detail=True)
            except FileNotFoundError:  # of a bucket; without one nothing can be written either
                return {}
        names = {path.removeprefix(f"{self.root}/"): info for path, info in found.items() if path != self.root}
        return {name: info for name, info in names.items() if _stays_within(name)}

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where it is not there."""
        with self._trying("read"):
            try:
                return bytes(self.fs.cat_file(f"{self.root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with self._trying("written"):
            self.fs.pipe_file(f"{self.root}/{name}", data)

    def put(self, folder: Path, names: Sequence[str]) -> None:
        """Copy files of a local folder here."""
        with self._trying("written"):
            self.fs.put([str(folder / name) for name in names], [f"{self.root}/{name}" for name in names])

    def get(self, names: Sequence[str], folder: Path) -> None:
        """Copy files from here into a local folder."""
        with self._trying("read"):
            self.fs.get([f"{self.root}/{name}" for name in names], [str(folder / name) for name in names])

    def try_out(self) -> None:
        """Write a file of a few bytes and remove it, where that is allowed."""
        name = f".slimrl-{uuid.uuid4().hex[:12]}"
        self.write(name, b"slimrl\n")
        with contextlib.suppress(Exception):  # whoever may only write leaves it
            self.fs.rm_file(f"{self.root}/{name}")

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each storage raises errors of its own kinds
            raise _failure(self.address, what, error) from None


def _failure(address: str, what: str, error: Exception) -> RemoteError:
    text = without_secrets(str(error))
    reason = text if " " in text else ": ".join(part for part in (type(error).__name__, text) if part)
    return RemoteError(f"{address} cannot be {what} ({reason})")


def _stays_within(name: str) -> bool:
    """True for the name of a file that lies in its folder also where `..` leads up."""
    return "\0" not in name and ".." not in (path := PurePosixPath(name)).parts and str(path) == name


def demand_place(address: str, run: Path | None = None) -> None:
    """Raises SettingsError where nothing can be copied to an address, or not this run, since it holds something else."""
    remote = Remote.open(address)
    try:
        if run is None or not _is_there(run, remote):
            if run is not None:
                _demand_free(run, remote)
            remote.try_out()
    except RemoteError as error:
        raise SettingsError(
            f"upload: {error}; check the address, the network and the credentials in the environment"
        ) from None


def copy_run(run: Path, address: str, between: Callable[[int, int], None]) -> int:
    """Copy a run that has ended to an address; returns the number of files, 0 where it was there already.

    `between` is told every few files how many of them are there, of how many. Raises RemoteError, and SettingsError where
    something else is there; what was copied until then is no run, and is copied again.
    """
    remote = Remote.open(address)
    if _is_there(run, remote):
        return 0
    _demand_free(run, remote)
    names = [name for name in _own_files(run) if name != RUN]
    total = len(names) + 1
    for number, some in enumerate(_in_parts(names)):
        between(number * AT_ONCE, total)
        remote.put(run, some)
    _demand_whole(run, remote, names)
    between(len(names), total)
    remote.put(run, [RUN])
    return total


def copy_files(folder: Path, names: Iterable[str], address: str) -> None:
    """Copy files of a folder to an address, in place of older ones, as far as they exist. Raises RemoteError."""
    remote = Remote.open(address)
    for some in _in_parts([name for name in names if (folder / name).is_file()]):
        remote.put(folder, some)


def _is_there(run: Path, remote: Remote) -> bool:
    """True if the run was copied there as it is; raises SettingsError where another one is there."""
    found = remote.read(RUN)
    if found is None:
        return False
    if (run / RUN).is_file() and (run / RUN).read_bytes() == found:
        return True
    raise SettingsError(
        f"{remote.address} holds another run already, and a run is never overwritten; choose another name=... or upload=..."
    )


def _demand_free(run: Path, remote: Remote) -> None:
    """Raises SettingsError for files that would lie between those of the run."""
    others = [name for name in remote.files() if name not in {*_own_files(run)} and not name.startswith(".slimrl-")]
    if others:
        raise SettingsError(
            f"{remote.address} holds files that are not of this run ({others[0]} for one); remove them, or choose another "
            "name=... or upload=..."
        )


def _demand_whole(run: Path, remote: Remote, names: Sequence[str]) -> None:
    there = remote.files()
    for name in names:
        if (size := there.get(name, {}).get("size")) != (run / name).stat().st_size:
            raise RemoteError(
                f"{remote.address} cannot be written ({name} has {size or 'no'} bytes after it was copied)"
            )


def _own_files(run: Path) -> list[str]:
    """The files of a run that are copied. Checkpoints are, once the run is finished: then only the best one is left; a page that
    was made before the run ended is not.
    """
    files = {file.relative_to(run).as_posix(): file for file in files_within(run) if not file.is_symlink()}
    ended = (run / RUN).stat().st_mtime if RUN in files else 0.0
    left_out = {"lock"} if read_status(run) == "finished" else {"lock", "checkpoints"}
    return [
        name
        for name, file in files.items()
        if name.partition("/")[0] not in left_out
        and not any(part.startswith(".") for part in name.split("/"))
        and not (name == "report.html" and file.stat().st_mtime < ended)
    ]


def _in_parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[first : first + AT_ONCE] for first in range(0, len(names), AT_ONCE))


def local_runs(place: str, wanted: Sequence[str] = SUMMARIES, say: Say = silent) -> Path:
    """The folder of runs at an address, in the user's cache, with their files that are `wanted`; any other place is its own copy.

    Only runs that are there as a whole are fetched, and what was fetched before is not fetched again. Raises SettingsError where
    nothing is there, and DataError where it cannot be read.
    """
    if not is_address(place):
        return Path(place)
    with _reading(place) as (remote, files):
        runs = _ended(remote, [name for name in files if PurePosixPath(name).name == RUN])
        own = [STUDY] if STUDY in files else []
        folder = _cached(remote)
        _remove_others(folder, [path.parent for path in folder.rglob(RUN)], runs)
        return _fetch(remote, files, runs, wanted, own, say)


def local_run(place: str, wanted: Sequence[str] = WHOLE, say: Say = silent) -> Path:
    """The folder of one run at an address, as `local_runs`; that of a study with its page. Raises SettingsError where neither is
    there.
    """
    if not is_address(place):
        return Path(place)
    with _reading(place) as (remote, files):
        runs = _ended(remote, [RUN] if RUN in files else [])
        own = [] if runs or STUDY not in files else [name for name in (STUDY, STUDY_PAGE) if name in files]
        if not runs and not own:
            raise SettingsError(
                f"{place} is no run that has ended; slimrl runs with the address above it lists those there"
            )
        _remove_others(_cached(remote), [_cached(remote)] if runs else [], runs)
        return _fetch(remote, files, runs, wanted, own, say)


@contextmanager
def _reading(place: str) -> Iterator[tuple[Remote, Mapping[str, Info]]]:
    """The folder at an address and the files in it."""
    try:
        remote = Remote.open(place)
        files = remote.files()
        if not files:
            raise SettingsError(
                f"{place}: nothing is there; check the address, and that a run has ended and was copied"
            )
        with alone_in(_cache()):  # what another process fetches just now is no remainder of one that was killed
            yield remote, files
    except RemoteError as error:
        raise DataError(f"{error}; check the address, the network and the credentials in the environment") from None


def _ended(remote: Remote, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of run.json, by folder, of the runs that have ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        records = [*pool.map(remote.read, names)]
    found = {}
    for name, data in zip(names, records, strict=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # what no run writes is no run
            if data and json.loads(data)["status"] in ENDED:
                found[str(PurePosixPath(name).parent)] = data
    return found


def _cached(remote: Remote) -> Path:
    """The folder in the user's cache that stands for one on object storage."""
    return _cache() / remote.address.partition("://")[0] / remote.root.strip("/")


def _cache() -> Path:
    """The folder in the user's cache that holds all of these."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimrl"
    # the mode that kernels/native.py demands of it, since compiled code lies there too
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    return cache / "remote"


def _fetch(
    remote: Remote,
    files: Mapping[str, Info],
    runs: Mapping[str, bytes],
    wanted: Sequence[str],
    own: Sequence[str],
    say: Say,
) -> Path:
    """Bring the cached folder to what is there: what is `wanted` of the runs, and files of its `own`."""
    folder = _cached(remote)
    folder.mkdir(parents=True, exist_ok=True)
    found = [name for name in files if _is_wanted(name, runs, wanted) and not (folder / name).is_file()]
    if found:
        size = sum(int(files[name].get("size") or 0) for name in found)
        say(f"fetching {counted(len(found), 'file')} ({size / 1e6:,.1f} MB) of {remote.address}")
    for some in _in_parts([*own, *found]):
        _get(remote, {name: files[name] for name in some}, folder)
    for name, record in runs.items():  # last of all, as it was written there
        if not (target := folder / name / RUN).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(target, record, _modified(files[str(PurePosixPath(name) / RUN)]))
    return folder


def _remove_others(folder: Path, cached: Iterable[Path], runs: Mapping[str, bytes]) -> None:
    """Remove those of the cached runs that are not there any more, or are others now, and what run.json was not reached of."""
    for run in {*cached, *(folder / name for name in runs)}:
        known = (run / RUN).read_bytes() if (run / RUN).is_file() else b""
        if known != runs.get(run.relative_to(folder).as_posix()):
            shutil.rmtree(run, ignore_errors=True)


def _is_wanted(name: str, runs: Mapping[str, bytes], wanted: Sequence[str]) -> bool:
    path = PurePosixPath(name)
    run = next((folder for folder in path.parents if str(folder) in runs), None)
    inside = "" if run is None else str(path.relative_to(run))
    return inside not in ("", RUN) and any(fnmatch.fnmatchcase(inside, pattern) for pattern in wanted)


def _get(remote: Remote, files: Mapping[str, Info], folder: Path) -> None:
    """Fetch files, each as a whole or not at all, with the times at which they were written there."""
    with TemporaryDirectory(prefix=".fetching-", dir=folder) as temporary:
        for name in files:
            (Path(temporary) / name).parent.mkdir(parents=True, exist_ok=True)
        remote.get([*files], Path(temporary))
        for name, info in files.items():
            arrived = Path(temporary) / name
            size, written = arrived.stat().st_size, _modified(info)
            if size != info.get("size", size):
                raise RemoteError(
                    f"{remote.address} cannot be read ({name} arrived with {size} of {info['size']} bytes)"
                )
            os.utime(arrived, (written, written))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            arrived.replace(folder / name)


def _place(path: Path, data: bytes, written: float) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    write_bytes(temporary, data)
    os.utime(temporary, (written, written))
    temporary.replace(path)


def _modified(info: Info) -> float:
    """The time at which a file was written, in seconds since 1970, under the key that its storage has for it; else now."""
    for key in ("LastModified", "last_modified", "mtime", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return time.time()
