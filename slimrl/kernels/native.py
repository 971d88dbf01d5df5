"""The two parts of a decode step that torch's CPU libraries are slow at, compiled for the processor that they run on.

There a decode step reads much memory for little arithmetic: the weights, for a few rows, and each row's own keys and
values. Two Sapphire Rapids cores that read 30 GB/s, float32: the library behind torch reads the weights of 16 rows at 8
GB/s (896 x 4,864), `few_rows` at 24; the operations of one row's attention take turns over memory where
`decode_attention` is one pass.

`decode.cpp` is compiled once with g++ (or what CXX names), in some seconds, and kept in the user's cache folder. Without
a compiler that takes it, or AVX2, `lanes` is 0 and torch's own operations are used.
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
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("decode.cpp")
OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


def lanes() -> int:
    """float32 numbers in one vector of the compiled code; 0 where there is none."""
    library = _library()
    return 0 if isinstance(library, str) else ctypes.c_int.in_dll(library, "lanes").value


@torch.library.custom_op("slimrl::few_rows", mutates_args=())
def few_rows(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """weight [outputs, inputs], x [rows, inputs], bias [outputs], all float32 on the CPU -> x W^T + b [rows, outputs]."""
    library = _library()
    assert not isinstance(library, str)
    weight, x = weight.contiguous(), x.contiguous()
    bias = None if bias is None else bias.contiguous()
    (rows, inputs), outputs = x.shape, len(weight)
    y = x.new_empty(rows, outputs)
    scratch = x.new_empty(-(-rows // lanes()) * lanes() * inputs)
    library.few_rows(
        weight.data_ptr(), x.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr(), scratch.data_ptr(),
        outputs, inputs, rows, torch.get_num_threads(),
    )  # fmt: skip
    return y


@few_rows.register_fake
def _(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("slimrl::decode_attention", mutates_args=("keys", "values"))
def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    prompt_keys: Tensor,
    prompt_values: Tensor,
    prompt: Tensor,
    lengths: Tensor,
    ages: Tensor,
    time: int,
    window: int,
    scaling: float,
) -> Tensor:
    """One step of n rows: writes key and value [n, K, 1, d] into column time mod C of keys and values [slots, K, C, d], then
    lets each query [n, H, 1, d] see its prompt and the columns of its age and younger -> [n, H, 1, d].

    Row i's prompt is the first lengths[i] places of prompt_keys[prompt[i]] [prompts, K, P, d], and it fed ages[i] tokens
    before; `prompt`, `lengths`, `ages` [n] are long. `window` is a sliding window's width, 0 for none. All floats are
    float32 on the CPU, and d is a multiple of `lanes()`.
    """
    library = _library()
    assert not isinstance(library, str)
    rows, heads, _, width = query.shape
    key_heads, columns = keys.shape[1:3]
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    prompt, lengths, ages = prompt.contiguous(), lengths.contiguous(), ages.contiguous()
    assert keys.shape == values.shape == (len(keys), key_heads, columns, width)
    assert key.shape == value.shape == (rows, key_heads, 1, width)
    assert prompt_keys.shape == prompt_values.shape
    assert all(store.is_contiguous() for store in (keys, values, prompt_keys, prompt_values))
    out = query.new_empty(query.shape)
    tensors = (query, key, value, keys, values, prompt_keys, prompt_values, prompt, lengths, ages, out)
    library.decode_attention(
        *(tensor.data_ptr() for tensor in tensors), rows, key_heads, columns, prompt_keys.shape[2], width, time, window,
        heads // key_heads, scaling, torch.get_num_threads(),
    )  # fmt: skip
    return out


@decode_attention.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


def problem() -> str:
    """Why nothing is compiled where it could be, in a few words; empty elsewhere."""
    library = _library()
    possible = os.name == "posix" and platform.machine() == "x86_64"
    return library if possible and isinstance(library, str) else ""


@cache
def _library() -> ctypes.CDLL | str:
    """The compiled code, or why there is none."""
    if os.name != "posix":
        return "it is made for Linux"
    command = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(command[0]) is None:
        return f"there is no {command[0]}"
    key = hashlib.sha256(SOURCE.read_bytes())
    for part in (*command, *OPTIONS, platform.platform(), _processor()):
        key.update(part.encode())
    name = f"decode-{key.hexdigest()[:16]}.so"
    try:
        library = _load(command, _own_folder() / name)
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no home, or nothing can be written or loaded there
        try:
            with tempfile.TemporaryDirectory() as folder:
                library = _load(command, Path(folder) / name)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{command[0]} does not compile it ({type(error).__name__})"
    pointer, number, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.few_rows.argtypes = [*[pointer] * 5, *[number] * 2, *[small] * 2]
    library.decode_attention.argtypes = [*[pointer] * 11, *[number] * 7, small, ctypes.c_float, small]
    library.few_rows.restype = library.decode_attention.restype = None
    return library


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
            subprocess.run([*command, *OPTIONS, "-o", made, SOURCE], check=True, capture_output=True, timeout=120)
            made.replace(target)  # in one piece, for processes that start at the same time
    return ctypes.CDLL(str(target))


def _processor() -> str:
    """The features by which -march=native compiles, so that a home shared by machines holds one library for each kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), "")
