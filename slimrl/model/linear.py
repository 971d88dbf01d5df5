"""A linear layer that is quick for the few rows of a decode step on a CPU.

There the weights come from memory at every step, and reading them is the limit. For 3 to some 100 rows the library
behind torch stays far below it (two Sapphire Rapids cores that read 30 GB/s, float32, 16 rows, 896 x 4,864: 8 GB/s, and
13 if the product is turned round to W x^T), so `few_rows.cpp` is compiled for the machine, and reads them at 24.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

FEWEST_ROWS = 3
"""One or two rows torch multiplies at the speed of memory."""
MOST_VECTORS = 6
"""Vectors of rows up to which reading weights is most of the work; with more the library's blocking is as good."""
LEAST_WEIGHTS = 100_000
"""Smaller matrices stay in the cache either way."""
SOURCE = Path(__file__).with_name("few_rows.cpp")
TURNED_ROWS = range(8, 49)
"""Rows for which W x^T is quicker than x W^T in torch, where nothing can be compiled."""


class FewRowsLinear(nn.Linear):
    """`nn.Linear` in all but the way in which few rows are multiplied where no gradient is wanted."""

    most_rows: int
    """Rows up to which `few_rows` multiplies; 0 where it cannot be compiled."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        quick = FEWEST_ROWS <= rows <= self.most_rows
        turned = not self.most_rows and TURNED_ROWS.start <= rows < TURNED_ROWS.stop
        if torch.is_grad_enabled() or not (quick or turned):
            return super().forward(input)
        x = input.reshape(rows, self.in_features)
        if quick:
            out: Tensor = few_rows(self.weight, x, self.bias)
        else:
            out = torch.mm(self.weight, x.t()).t().contiguous()
            if self.bias is not None:
                out += self.bias
        return out.view(*input.shape[:-1], self.out_features)


def speed_up_linear(model: nn.Module) -> None:
    """Let a float32 model on a CPU use it; weights, names and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= LEAST_WEIGHTS and _plain(module.weight):
            module.__class__ = FewRowsLinear
            module.most_rows = MOST_VECTORS * lanes()  # type: ignore[assignment]


def _plain(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


@torch.library.custom_op("slimrl::few_rows", mutates_args=())
def few_rows(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """weight [outputs, inputs], x [rows, inputs], bias [outputs], all float32 on the CPU -> x W^T + b [rows, outputs]."""
    library = _library()
    assert library is not None
    weight, x = weight.contiguous(), x.contiguous()
    (rows, inputs), outputs = x.shape, len(weight)
    y = torch.empty(rows, outputs)
    scratch = torch.empty(-(-rows // lanes()) * lanes() * inputs)
    library.few_rows(
        weight.data_ptr(), x.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr(), scratch.data_ptr(),
        outputs, inputs, rows, torch.get_num_threads(),
    )  # fmt: skip
    return y


@few_rows.register_fake
def _(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return x.new_empty(x.shape[0], weight.shape[0])


def lanes() -> int:
    """Rows that one vector of the compiled product holds; 0 where it cannot be compiled. The first call takes a second."""
    library = _library()
    return ctypes.c_int.in_dll(library, "lanes").value if library else 0


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled source; None without a compiler that takes it (g++, or what CXX names), or without AVX2."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="slimrl-") as folder:
        target = Path(folder) / "few_rows.so"
        options = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        try:
            subprocess.run([compiler, *options, "-o", target, SOURCE], check=True, capture_output=True, timeout=60)
            library = ctypes.CDLL(str(target))
        except (OSError, subprocess.SubprocessError):
            return None
    library.few_rows.argtypes = [*[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 2, *[ctypes.c_int] * 2]
    library.few_rows.restype = None
    return library
