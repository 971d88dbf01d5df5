"""Runners of decode steps: one by one from Python, or recorded once as CUDA graphs and replayed.

A decode step of a small model is some hundred kernels of a few microseconds each. Started one by one from Python, the
GPU waits most of the time; replayed as a graph, a whole step is one launch, and several run before the host looks at the
result. A graph has fixed shapes and addresses, so a runner also decides how shapes are rounded and if buffers must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

SPARE = 0.125
"""Share of a GPU's memory that is free for torch to take while a step is recorded."""


class Runner:
    """Calls every kernel of a step from Python: right for a CPU, where shapes that fit exactly save work."""

    steps = 1
    """Decode steps between looks from the host."""
    keeps = False
    """True where buffers must stay where they are from one call of the engine to the next."""

    def round_up(self, count: int, unit: int) -> int:  # noqa: ARG002
        """The size, at least `count`, at which something of `count` parts is run; `unit` is the usual distance of sizes."""
        return count

    def run(self, key: Hashable, step: Callable[[], None]) -> None:  # noqa: ARG002
        """Execute `step` once. Equal keys promise equal shapes and addresses."""
        step()

    def clear(self) -> None:
        """Forget what was recorded: addresses have changed."""


class CudaGraphs(Runner):
    """Records a step at the second use of its shapes, then replays it."""

    steps = 8
    keeps = True

    def __init__(self) -> None:
        self.graphs: dict[Hashable, Any] = {}
        self.seen: set[Hashable] = set()
        self.pool: Any = None
        self.stream: torch.cuda.Stream | None = None

    def round_up(self, count: int, unit: int) -> int:
        """Few sizes, so that few graphs are recorded: two units apart from eight units on, powers of two below."""
        if count >= 8 * unit:
            return -(-count // (2 * unit)) * 2 * unit
        return 1 << max(0, count - 1).bit_length()

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        if key in self.graphs:
            self.graphs[key].replay()
        elif key not in self.seen:
            # The first step of a shape also sets up libraries, which must not happen while recording.
            self.seen.add(key)
            step()
        else:
            self.graphs[key] = graph = self._record(step)
            graph.replay()

    def _record(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The step as a graph. Unlike under `torch.cuda.graph`, torch keeps the free memory that it holds, for which the next
        update would have to ask the driver again. It cannot give back any while it records: where little is left, it does before.
        """
        graph, self.stream = torch.cuda.CUDAGraph(), self.stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        if free < SPARE * total:
            torch.cuda.empty_cache()
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool)
            try:
                step()
            finally:
                graph.capture_end()
        self.pool = graph.pool()
        return graph

    def clear(self) -> None:
        self.graphs.clear()
        self.seen.clear()
        self.pool = None


def make_runner(device: torch.device) -> Runner:
    """CUDA graphs on a GPU; plain calls elsewhere."""
    return CudaGraphs() if device.type == "cuda" else Runner()
