"""Sealed folders: tensors and other files with a manifest of their sizes and hashes, which is written last.

A safetensors file is a length, a JSON header and the tensors' bytes. It is written here tensor by tensor, in one pass for
writing and hashing and without a second copy of the weights in memory, and read with the library.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import torch
from safetensors import safe_open
from torch import Tensor

from slimrl.machine.tensors import Tensors, outline_of
from slimrl.runs.files import HashedFile, Written, hashed, write_bytes

MANIFEST = "manifest.json"
FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)}
"""The system's words for a full disk and for an exceeded quota."""
BLOCK = 1 << 24
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL",
}  # fmt: skip
"""Names of the safetensors format."""


def write_tensors(path: Path, tensors: Tensors) -> Written:
    """Write a safetensors file of tensors on any device, copying them to the host one at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in outline_of(tensors).items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors
    with hashed(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in tensors.items():
            _write_tensor(file, tensor)
            del tensor  # makes room for the next one
    return file.written


def _write_tensor(file: HashedFile, tensor: Tensor) -> None:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    for start in range(0, len(raw), BLOCK):
        file.write(raw[start : start + BLOCK].data)


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of tensors' bytes, names and types: the same for tensors that are equal to the last bit."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().data)
        del tensor  # makes room for the next one
    return found.hexdigest()


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each of which is read when it is asked for, and in memory as long as it is used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="pt") as file:
            self._names = dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        self._names[name]
        with safe_open(self._path, framework="pt") as file:  # an open file would keep all that was read
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def adopt(path: Path) -> None:
    """Bring a file that a library wrote to the disk, and give it the permissions of its folder."""
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors leaves a file that only its owner may read
    sync(path)


def adopt_hashed(path: Path) -> Written:
    """`adopt`, and the file's entry in a manifest."""
    adopt(path)
    return Written(path.stat().st_size, _sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def full_disk_as_oserror(path: Path) -> Iterator[None]:
    """Raise OSError for a full disk, also where tokenizers and safetensors raise errors of their own kinds."""
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
    """`sync` for a folder and all folders in it."""
    for inner in (*folder.rglob("*"), folder):
        if inner.is_dir():
            sync(inner)


def sync(path: Path) -> None:
    """Bring a file to the disk, or the names of a folder's files after some were made or renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path, files: Mapping[str, Written]) -> None:
    """Write the manifest of files that are on the disk. Names are relative to the folder, with / between folders."""
    table = {name: {"bytes": written.size, "sha256": written.sha256} for name, written in sorted(files.items())}
    write_bytes(folder / MANIFEST, (json.dumps({"files": table, "sha256": _own(table)}, indent=1) + "\n").encode())
    sync_folders(folder)


def _is_within(folder: Path, name: str) -> bool:
    """True if a relative name stays in its folder: neither .. nor a link leads out of it."""
    parts = PurePosixPath(name).parts
    if not parts or "/".join(parts) != name or ".." in parts:  # an absolute name begins with a part "/"
        return False
    return not any((folder / Path(*parts[: depth + 1])).is_symlink() for depth in range(len(parts)))


def _own(table: object) -> str:
    """The manifest's digest of its own table, which may be damaged too."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def damage(folder: Path) -> str:
    """The first damage of a sealed folder, in words that name the file; empty if every byte is as it was written."""
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
        if not _is_within(folder, name) or not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    for name, (_, sha256) in expected.items():
        try:
            if _sha256(folder / name) != sha256:
                return f"{name} has another sha256 than when it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return ""
