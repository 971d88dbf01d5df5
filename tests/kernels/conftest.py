"""Types and threads with which kernels are tested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from slimrl.kernels.native import has_kernels


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if not has_kernels(request.param):
        pytest.skip("the processor does not multiply bfloat16")
    kind: torch.dtype = request.param
    return kind


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)
