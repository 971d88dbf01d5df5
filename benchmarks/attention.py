"""The attention of a decode step over a prompt that a group shares: the compiled kernel against torch's operations.

Both are what the engine runs: a prompt's keys are read once for all of its rows, with or without kernels. Prints one table of
ratios of medians over alternating calls, and writes every figure to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from slimrl.kernels.native import lanes
from slimrl.model.attention import PackedRows, Prefill
from slimrl.rollout.cache import Cache, DecodeStep, RowLayout, StepShape

WIDTH, DRAWN = 64, 32
"""Numbers of a head, and tokens that every row has drawn."""


def step(
    *, native: bool, rows: int, prompt: int, heads: int, key_heads: int, dtype: torch.dtype
) -> Callable[[], object]:
    """One layer's attention for rows of one prompt."""
    shape = (key_heads, prompt, WIDTH)
    stored = Prefill(PackedRows(None, None), {0: torch.randn(shape).to(dtype)}, {0: torch.randn(shape).to(dtype)})  # type: ignore[arg-type]
    cache = Cache(prompts=1, width=prompt, slots=rows, columns=DRAWN, recorded=not native)
    cache.fill(0, stored, torch.arange(prompt)[None])
    for store in (cache.keys[0], cache.values[0]):
        store.copy_(torch.randn(store.shape))
    table = torch.arange(rows * key_heads).view(rows, key_heads).t()[None]
    seat = torch.arange(key_heads * rows).view(key_heads, rows).t().flatten()
    layout = RowLayout(table, seat, torch.zeros(rows, dtype=torch.long))
    sizes = StepShape(rows=rows, width=prompt, used_columns=DRAWN, unmasked=True)
    ages, lengths = torch.full((rows,), DRAWN - 1), torch.full((rows,), prompt)
    plan = DecodeStep(cache, layout, sizes, time=DRAWN - 1, ages=ages, lengths=lengths)
    query, key, value = (torch.randn(rows, n, 1, WIDTH).to(dtype) for n in (heads, key_heads, key_heads))
    return lambda: plan.attend(0, query, key, value, scaling=WIDTH**-0.5, window=0)


def compare(ways: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each way; they take turns for so long, every other round backwards."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["torch"]) < 5:
        for name in list(ways)[:: 1 if len(times["torch"]) % 2 else -1]:
            started = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 512, 1024, 2048, 4096])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 7], help="query heads of a key head")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=0.5, help="for each pair")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    args = parser.parse_args()
    if not lanes():
        raise SystemExit("there is no compiled kernel to compare: it needs g++ and AVX2")
    torch.set_num_threads(args.threads)
    dtype, lines = getattr(torch, args.dtype), []
    print(f"| query heads a key head | prompt | {' | '.join(f'{n} rows' for n in args.rows)} |")
    print("|---" * (2 + len(args.rows)) + "|")
    with torch.inference_mode():
        for group in args.groups:
            for prompt in args.prompts:
                ratios = []
                for rows in args.rows:
                    torch.manual_seed(0)
                    sizes = {"rows": rows, "prompt": prompt, "heads": 2 * group, "key_heads": 2, "dtype": dtype}
                    ways = {name: step(native=name == "ours", **sizes) for name in ("ours", "torch")}  # type: ignore[arg-type]
                    found = compare(ways, args.seconds)
                    ratios.append(found["torch"] / found["ours"])
                    lines.append({"group": group, "prompt": prompt, "rows": rows} | found)
                print(f"| {group} | {prompt:,} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    record = {"dtype": args.dtype, "threads": args.threads, "versions": versions, "seconds": lines}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
