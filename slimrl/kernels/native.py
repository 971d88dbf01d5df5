"""The compiled code of this room: built once for the processor that it runs on, and called through ctypes.

The sources are compiled with g++ (or what CXX names), in some seconds, and kept in the user's cache folder. Without a
compiler that takes them, or AVX2, `lanes` is 0 and torch's own operations are used. Every kernel exists for float32, and
for bfloat16 where the processor multiplies it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Argument = Tensor | int | float | ctypes.Structure | ctypes.Array[Any] | None
FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / f"{name}.cpp" for name in ("decode", "layers", "optimizer", "packed", "stack", "vocabulary"))
HEADERS = (FOLDER / "products.h", FOLDER / "vectors.h")
OPTIONS = ("-std=c++17", "-O3", "-march=native", "--param=avoid-fma-max-bits=0", "-fopenmp", "-shared", "-fPIC")
"""The parameter lets every loop multiply and add in one instruction. For some processors the compiler would do so in some
loops only, and a row's last bits would depend on how many rows there are."""


def lanes() -> int:
    """float32 numbers in one vector of the compiled code; 0 where there is none."""
    return _number("lanes")


def has_kernels(dtype: torch.dtype) -> bool:
    """True where the compiled code takes tensors of this type."""
    return lanes() > 0 and (dtype == torch.float32 or (dtype == torch.bfloat16 and bool(_number("has_bfloat16"))))


_paused = False


@contextmanager
def paused() -> Iterator[None]:
    """Within the block `takes` is False, so that every operation is one of torch's."""
    global _paused
    before, _paused = _paused, True
    try:
        yield
    finally:
        _paused = before


def takes(*tensors: Tensor) -> bool:
    """True where the compiled code takes these tensors: all on the CPU and of one type that it knows."""
    if _paused or torch.compiler.is_compiling():
        return False
    first = tensors[0].dtype
    return all(t.device.type == "cpu" and t.dtype == first for t in tensors) and has_kernels(first)


@cache
def has_matrix_unit() -> bool:
    """True on a processor with tiles for bfloat16 products (AMX), which torch's library uses and the kernels do not."""
    return " amx_bf16 " in f"{_processor()} "


def call(kernel: str, dtype: torch.dtype, *arguments: Argument) -> None:
    """Run a kernel for a type of tensors; tensors are handed over as addresses, and threads follow as the last argument.

    Tensors must be contiguous where the kernel does not get their strides.
    """
    _kernel(kernel, dtype)(*map(_argument, arguments), torch.get_num_threads())


def address(tensor: Tensor | None) -> int | None:
    """The address of the numbers of a contiguous tensor; None for none."""
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


def problem() -> str:
    """Why nothing is compiled where it could be, in a few words; empty elsewhere."""
    library = _library()
    possible = os.name == "posix" and platform.machine() == "x86_64"
    return library if possible and isinstance(library, str) else ""


def _number(name: str) -> int:
    library = _library()
    return 0 if isinstance(library, str) else ctypes.c_int.in_dll(library, name).value


def _argument(value: Argument) -> object:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    if isinstance(value, ctypes.Structure | ctypes.Array):
        return ctypes.byref(value)
    return None if value is None else ctypes.c_int64(value)


@cache
def _kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    library = _library()
    assert not isinstance(library, str)
    function = getattr(library, f"{name}_{str(dtype).removeprefix('torch.')}")
    function.restype = None
    found: Callable[..., None] = function
    return found


@cache
def _library() -> ctypes.CDLL | str:
    """The compiled code, or why there is none."""
    if os.name != "posix":
        return "it is made for Linux"
    command = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(command[0]) is None:
        return f"there is no {command[0]}"
    key = hashlib.sha256()
    for source in (*HEADERS, *SOURCES):
        key.update(source.read_bytes())
    for part in (*command, *OPTIONS, platform.platform(), _processor()):
        key.update(part.encode())
    name = f"kernels-{key.hexdigest()[:16]}.so"
    try:
        return _load(command, _own_folder() / name)
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no home, or nothing can be written or loaded there
        try:
            with tempfile.TemporaryDirectory() as folder:
                return _load(command, Path(folder) / name)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{command[0]} does not compile it ({type(error).__name__})"


def _own_folder() -> Path:
    """The folder of compiled code; raises PermissionError where other users could have written to it."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimrl"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(folder)
    return folder


def _load(command: Sequence[str], target: Path) -> ctypes.CDLL:
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as place:
            made = Path(place) / target.name
            subprocess.run([*command, *OPTIONS, "-o", made, *SOURCES], check=True, capture_output=True, timeout=120)
            made.replace(target)  # in one piece, for processes that start at the same time
    return ctypes.CDLL(str(target))


def _processor() -> str:
    """The features by which -march=native compiles, so that a home shared by machines holds one library for each kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), "")
