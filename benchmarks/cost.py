"""What a token costs against model size: SlimRL, its peers and the machine's limit, in a table, a JSON file and a picture.

Two costs, both per sampled token: of sampling alone, and of a whole training step (GRPO without a KL term). 4 prompts of 48
tokens x 8, 64 new tokens each, none of which stops early; random weights.

Each size is written down as soon as it has been measured, and is left out of the next run unless it is named by --again. With
nothing left to measure, the table and the picture are made anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import rollouts
import step
from common import (
    HERE,
    TRL_MODES,
    Message,
    add_fresh,
    add_trl_modes,
    parse,
    parser,
    say,
    table,
    without_lists,
)
from limits import SHAPES

PARTS = {"sampling": "Sampling", "step": "A whole training step"}
TAKES_PART = {"sampling": ("ours", "compiled", "hf", "vllm"), "step": ("ours", "trl")}
FAMILIES = {
    "ours": ("SlimRL", "#0b7a5b"),
    "compiled": ("SlimRL, compiled", "#6cbfa4"),
    "hf": ("transformers' generate", "#d98200"),
    "vllm": ("vLLM", "#3b6fd4"),
    "trl": ("TRL", "#c8372d"),
    "limit": ("limit of the machine", "#777777"),
}
"""Name in the picture, and colour."""
HEADERS = ("parameters", "cost of", "engine", "us per token (lowest to highest)", "limit", "share of the limit")


def options() -> argparse.Namespace:
    result = parser(__doc__.partition(":")[0], engines=("ours", "compiled", "hf", "vllm", "trl"))
    result.set_defaults(repeats=3, engines=["ours", "hf", "vllm", "trl"])
    add_trl_modes(result)
    add_fresh(result)
    sizes = ["0.9M", "2.4M", "20M", "90M", "135M", "0.5B"]
    result.add_argument("--shapes", nargs="*", choices=SHAPES, default=sizes, help="sizes to measure; none: only draw")
    result.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    result.add_argument("--again", nargs="+", choices=SHAPES, default=[], help="sizes to measure though they are there")
    result.add_argument(
        "--trl-rows", nargs="+", type=int, default=[32], help="rows of TRL's micro-batch; the best counts"
    )
    result.add_argument(
        "--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="further settings for our step"
    )
    result.add_argument("--new-tokens", type=int, default=64)
    args = parse(result)
    args.out = args.out or HERE / "results" / "cost-per-token.json"
    return args


def main() -> None:
    args = options()
    known: Message = (
        json.loads(args.out.read_text()) if args.out.exists() else {"benchmark": "cost-per-token", "sizes": {}}
    )
    sizes = known["sizes"]
    for shape in (name for name in SHAPES if name in {*args.shapes, *args.again}):
        for part in args.parts:
            engines = [engine for engine in args.engines if engine in TAKES_PART[part]]
            if not engines:
                continue
            if part in sizes.get(shape, {}) and shape not in args.again:
                say(f"{shape}, {part}: there already")
                continue
            found = {"parameters": SHAPES[shape].parameters, part: measure(args, shape, part, engines)}
            sizes[shape] = sizes.get(shape, {}) | found
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(table(HEADERS, lines(sizes)))
    draw(sizes, args.out.with_suffix(".png"))


def measure(args: argparse.Namespace, shape: str, part: str, engines: Sequence[str]) -> Message:
    """The engines at one size, in turns: costs in microseconds per sampled token, by engine."""
    cell = argparse.Namespace(**vars(args) | {"engines": list(engines), "logprobs": False, "model": None})
    with tempfile.TemporaryDirectory(prefix="slimrl-benchmark-") as folder:
        if part == "step":
            work = step.Workload(shape, 4, 48, 8, args.new_tokens, 0.0)
            found = step.measure(cell, f"{shape}, {part}", work, Path(folder))
        else:
            found = rollouts.measure(
                cell, f"{shape}, {part}", rollouts.Workload(shape, 4, 48, 8, args.new_tokens), Path(folder)
            )
    runs = {name: own for name, own in found["runs"].items() if name != "sampler_gap"}
    costs = {}
    for name, own in runs.items():
        family, mode = name.split(", ")[:2]
        costs[name] = {
            "family": family,
            "dtype": TRL_MODES.get(mode, mode),
            "microseconds": [1e6 * run["seconds"] / run["tokens"] for run in own],
            "limit": median(1e6 * run["limit"] / run["tokens"] for run in own) if own else 0.0,
        }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "options": {key: vars(args)[key] for key in ("threads", "allocator", "fresh", "trl_rows", "set", "new_tokens")},
        **{key: found[key] for key in ("machine", "versions", "notes")},
        "costs": costs,
        "runs": without_lists(runs),
    }


def lines(sizes: Message) -> list[list[object]]:
    """Rows of the table."""
    result: list[list[object]] = []
    for size in sizes.values():
        for part in PARTS:
            for name, cost in size.get(part, {"costs": {}})["costs"].items():
                row: list[object] = [f"{size['parameters'] / 1e6:.1f}M", part, name]
                if own := cost["microseconds"]:
                    row += [f"{median(own):.0f} ({min(own):.0f} to {max(own):.0f})", f"{cost['limit']:.0f}"]
                    row.append(f"{100 * cost['limit'] / median(own):.0f} %")
                else:
                    row.append(size[part]["versions"][name])
                result.append(row)
    return result


def curves(sizes: Message, part: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(parameters, microseconds) by family and precision, the smallest size first; of several ways, the fastest."""
    result: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for size in sorted(sizes.values(), key=lambda s: s["parameters"]):
        best: dict[tuple[str, str], float] = {}
        for cost in size.get(part, {"costs": {}})["costs"].values():
            if not cost["microseconds"]:
                continue
            for family, value in ((cost["family"], median(cost["microseconds"])), ("limit", cost["limit"])):
                key = family, cost["dtype"]
                best[key] = min(value, best.get(key, value))
        for key, value in best.items():
            result.setdefault(key, []).append((size["parameters"], value))
    return result


def draw(sizes: Message, path: Path) -> None:
    """The picture: both costs against model size, bfloat16 in full lines and float32 in broken ones."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    handles: dict[str, dict[str, Any]] = {family: {} for family in FAMILIES}
    for axis, (part, title) in zip(axes, PARTS.items(), strict=True):
        found = curves(sizes, part)
        for family, (label, colour) in FAMILIES.items():
            for dtype in ("float32", "bfloat16"):
                if not (curve := found.get((family, dtype))):
                    continue
                narrow, limit = dtype == "bfloat16", family == "limit"
                (handle,) = axis.plot(
                    *zip(*curve, strict=True),
                    color=colour,
                    linestyle="-" if narrow else (0, (4, 2)),
                    linewidth=1.2 if limit else 1.8,
                    marker="" if limit else "o",
                    markersize=5,
                    zorder=3 if family == "ours" else 2,
                    markerfacecolor=colour if narrow else "white",
                )
                handles[family][f"{label}, {dtype}"] = handle
        axis.set(xscale="log", yscale="log", title=title, xlabel="parameters")
        axis.set_xticks([size["parameters"] for size in sizes.values()], list(sizes), fontsize=8)
        axis.minorticks_off()
        axis.grid(which="major", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("microseconds per sampled token")
    named = {label: handle for own in handles.values() for label, handle in own.items()}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)
    say(f"drawn: {path.name}")


if __name__ == "__main__":
    main()
