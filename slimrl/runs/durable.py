"""Files that are whole or not there: hashed as they are written, on the disk before anything names them.

A safetensors file is a length, a JSON header and the tensors' bytes, so it is written tensor by tensor here: no second copy
of the weights in memory, and one pass for writing and hashing. It is read with the library.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor

MANIFEST = "manifest.json"
FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)}
"""The words for a disk that is full, and for a quota that is used up."""
BLOCK = 1 << 24
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL",
}  # fmt: skip
"""As the safetensors format names them."""


@dataclass(frozen=True)
class Written:
    """What a manifest says of a file."""

    size: int
    sha256: str


class _Hashed:
    """A file that counts and hashes what goes into it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self._size = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    @property
    def written(self) -> Written:
        return Written(self._size, self._digest.hexdigest())


def write_bytes(path: Path, data: bytes) -> Written:
    """The file, on the disk when this returns."""
    with _hashed(path) as file:
        file.write(data)
    return file.written


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """A safetensors file of tensors on any device, each copied to the host by itself."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors
    with _hashed(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
            for start in range(0, len(raw), BLOCK):
                file.write(raw[start : start + BLOCK].data)
    return file.written


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors' bytes, names and types: the same for tensors that are equal to the last bit."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return found.hexdigest()


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, one at a time."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (it is no mapping)
            yield name, file.get_tensor(name)


def files_within(folder: Path) -> list[Path]:
    """The files of a folder and of the folders in it: tokenizers put named chat templates into one of their own."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def readable(path: Path) -> None:
    """Give a file the permissions of one that is made in its folder, as the umask has them: safetensors writes through a
    temporary file that only its owner may read.
    """
    path.chmod(path.parent.stat().st_mode & 0o666)


def written_by_others(path: Path) -> Written:
    """What a library wrote: hashed, readable by whom its folder is, and put on the disk."""
    readable(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _reread(path)


def _reread(path: Path) -> Written:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return Written(size, digest.hexdigest())


@contextmanager
def _hashed(path: Path) -> Iterator[_Hashed]:
    with path.open("wb") as file:
        yield _Hashed(file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def full_disk_as_oserror(path: Path) -> Iterator[None]:
    """tokenizers and safetensors say with errors of their own kinds that the disk is full."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        for code, words in FULL.items():
            if words in str(error):
                raise OSError(code, words, str(path)) from error
        raise


def sync_folders(folder: Path) -> None:
    """As `sync_folder`, for a folder and all folders in it."""
    for inner in folder.rglob("*"):
        if inner.is_dir():
            sync_folder(inner)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Names that were made or changed in a folder are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path, files: Mapping[str, Written]) -> None:
    """Write the manifest, last of all: what it names is on the disk already. Names are relative, with / between folders."""
    table = {name: {"bytes": written.size, "sha256": written.sha256} for name, written in sorted(files.items())}
    write_bytes(folder / MANIFEST, (json.dumps({"files": table, "sha256": _own(table)}, indent=1) + "\n").encode())
    sync_folders(folder)


def _lies_within(folder: Path, name: str) -> bool:
    """Whether a relative name stays in its folder: no .. and no link leads out of it."""
    parts = PurePosixPath(name).parts
    if not parts or "/".join(parts) != name or ".." in parts:  # an absolute name begins with a part "/"
        return False
    return not any((folder / Path(*parts[: depth + 1])).is_symlink() for depth in range(len(parts)))


def _own(table: object) -> str:
    """The manifest's own digest: a bit of it may flip too."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def damage(folder: Path) -> str:
    """Why a sealed folder must not be used, naming the file; empty where every byte is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        table = manifest["files"]
        if _own(table) != manifest["sha256"]:
            raise ValueError
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in table.items()}
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        missing = isinstance(error, FileNotFoundError)
        return f"{MANIFEST} is {'missing' if missing else 'damaged'}"
    for name, (size, _) in expected.items():  # sizes first: they cost nothing
        path = folder / name
        if not _lies_within(folder, name) or not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    for name, (_, sha256) in expected.items():
        try:
            if _reread(folder / name).sha256 != sha256:
                return f"{name} has another sha256 than when it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return ""
