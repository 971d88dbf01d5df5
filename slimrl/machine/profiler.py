"""Time of a step by part. A profiler that is off costs nothing; one that is on waits for the GPU at every change of part."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from slimrl.machine.limits import Limits, synchronize

PARTS = ("prefill", "decode", "sampling", "rewards", "reference", "forward", "backward", "optimizer", "rest")


class Profiler:
    """Seconds by part, off without a device. Each moment counts once: a part within a part pauses the outer one."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops = 0.0
        """Floating-point operations of the model in all parts."""
        self.decode_bytes = 0.0
        """Bytes of weights, keys and values that decode steps read, each once a step."""
        self._part, self._since = "rest", time.perf_counter()

    @property
    def on(self) -> bool:
        return self.device is not None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within the context as `name`, one of PARTS."""
        if self.device is None:
            yield
            return
        outer = self._part
        self._change(name)
        try:
            yield
        finally:
            self._change(outer)

    def count(self, *, flops: float, decode_bytes: float = 0.0) -> None:
        """Add to the work done."""
        if self.on:
            self.flops += flops
            self.decode_bytes += decode_bytes

    def start(self) -> None:
        """Reset all counts."""
        self._change("rest")
        self.seconds.clear()
        self.flops = self.decode_bytes = 0.0

    def lap(self, tokens: int, limits: Limits) -> dict[str, float]:
        """Metrics of the time since `start`, in which `tokens` tokens were sampled."""
        self._change("rest")
        total = sum(self.seconds.values())
        metrics = {f"profile/{name}": self.seconds[name] / total for name in PARTS}
        decoding = self.seconds["decode"] + self.seconds["sampling"]
        metrics |= {
            "profile/seconds": total,
            "profile/tokens_per_second": tokens / total,
            "profile/flops_utilisation": self.flops / total / limits.flops,
        }
        if decoding:
            metrics["profile/decode_bandwidth_utilisation"] = self.decode_bytes / decoding / limits.bandwidth
        return metrics

    def _change(self, name: str) -> None:
        if self.device is not None:
            synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._part, self._since = name, now


def mean_profile(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the steps' profiles, weighted by their seconds; empty if no step has one."""
    rows = [row for row in history if "profile/seconds" in row]
    total = sum(row["profile/seconds"] for row in rows)
    keys = [key for key in (rows[0] if rows else {}) if key.startswith("profile/") and key != "profile/seconds"]
    weighted = {key: sum(row.get(key, 0.0) * row["profile/seconds"] for row in rows) for key in keys}
    return {key.removeprefix("profile/"): value / total for key, value in weighted.items()}


OFF = Profiler()  # the default of functions that are not profiled
