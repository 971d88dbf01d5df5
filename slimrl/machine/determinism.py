"""Sums of a GPU in an order that does not change, so that a run can be repeated and resumed to the last bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS reads it at its first product; torch demands it where sums are kept in order."""


def prepare_products(device: torch.device) -> None:
    """Call this before the first product on a device; a setting of the user's stays."""
    if device.type == "cuda":
        os.environ.setdefault(WORKSPACE, ":4096:8")


@contextmanager
def deterministic_sums(device: torch.device) -> Iterator[None]:
    """Within the block, kernels of a GPU that add to one number from several threads take turns; nothing changes on a CPU.

    It is for backward passes: forward passes of SlimRL have no such kernels. An update of the shape of Qwen2.5-0.5B takes about
    an eighth longer with it on an H200.
    """
    if device.type != "cuda":
        yield
        return
    prepare_products(device)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
