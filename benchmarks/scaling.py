"""What a sampled token costs with SlimRL, against rows, model size, length and group size; and the prefill of a group.

Nothing stops early, so every token is a useful one. Each section changes one thing; the cells of a section take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common import Message, Worker, finish, middle, parser, say, spread
from limits import SHAPES, Machine, ask_machine, describe_machine, random_prompts, rollout_limit, write_model

HEADERS = (
    "section", "model", "prompts", "samples", "prompt tokens", "new tokens", "seconds (lowest to highest)",
    "us per token", "against the first", "share of the limit",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    section: str
    model: str
    prompts: int
    samples: int
    prompt_length: int
    new_tokens: int


def options() -> argparse.Namespace:
    result = parser(__doc__.partition(";")[0], engines=("ours",))
    result.set_defaults(repeats=3)
    sections = ("rows", "size", "length", "group", "prefill")
    result.add_argument("--sections", nargs="+", choices=sections, default=list(sections))
    result.add_argument("--model", choices=SHAPES, default="2.4M", help="in every section but size")
    result.add_argument("--models", nargs="+", choices=SHAPES, default=["0.9M", "2.4M", "20M", "90M"], help="size")
    result.add_argument("--rows", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512])
    result.add_argument("--lengths", nargs="+", type=int, default=[32, 64, 128, 256, 512], help="new tokens")
    result.add_argument("--groups", nargs="+", type=int, default=[1, 4, 8, 16, 32, 64], help="samples; rows stay 256")
    return result.parse_args()


def cells(args: argparse.Namespace) -> list[Cell]:
    """Every cell, section by section."""
    result = []
    if "rows" in args.sections:
        result += [Cell("rows", args.model, max(1, n // 8), min(n, 8), 48, 64) for n in args.rows]
    if "size" in args.sections:
        result += [Cell("size", model, 4, 8, 48, 32) for model in args.models]
    if "length" in args.sections:
        result += [Cell("length", args.model, 8, 8, 48, n) for n in args.lengths]
    if "group" in args.sections:
        result += [Cell("group", args.model, 256 // n, n, 256, 32) for n in args.groups]
    if "prefill" in args.sections:  # one new token: the prompt and a draw, no decode step
        result += [Cell("prefill", args.model, 1, n, 512, 1) for n in (1, 16)]
    return result


def main() -> None:
    args = options()
    plan = cells(args)
    table: list[list[object]] = []
    versions: Message = {}
    machines: Message = {}
    runs: Message = {}
    for section in dict.fromkeys(cell.section for cell in plan):
        chosen = [cell for cell in plan if cell.section == section]
        with tempfile.TemporaryDirectory(prefix="slimrl-benchmark-") as folder:
            results, machine, info = measure(args, chosen, Path(folder))
        versions |= info
        machines[section] = asdict(machine)
        runs[section] = [{"cell": asdict(c), "runs": r} for c, r in zip(chosen, results, strict=True)]
        table += [line(c, own, results[0]) for c, own in zip(chosen, results, strict=True)]
    named = {"name": next(iter(machines.values()))["name"], **machines}
    notes = [f"{section}: {describe_machine(Machine(**m))}" for section, m in machines.items()]
    finish(args, HEADERS, table, notes, versions=versions, machine=named, runs=runs)


def measure(
    args: argparse.Namespace, chosen: Sequence[Cell], folder: Path
) -> tuple[list[list[Message]], Machine, Message]:
    """The runs of each cell of one section, in turns."""
    models = list(dict.fromkeys(cell.model for cell in chosen))
    rows = max(cell.prompts * cell.samples for cell in chosen)
    machine = ask_machine(args, SHAPES[models[-1]], rows)
    workers = {}
    for model in models:
        job = {
            "model": str(write_model(SHAPES[model], folder / model)),
            "device": args.device,
            "stop": False,
            "eos": 2,
            "logprobs": True,
        }
        workers[model] = Worker(args, "engines.py", "ours", job)
    results: list[list[Message]] = [[] for _ in chosen]
    for number in range(args.repeats + 1):
        for cell, own in zip(chosen, results, strict=True):
            say(f"run {number} of {args.repeats}: {cell}")
            prompts = random_prompts(cell.prompts, cell.prompt_length)
            run = workers[cell.model].run(
                number=number, prompts=prompts, samples=cell.samples, max_new_tokens=cell.new_tokens
            )
            if run is None:
                raise SystemExit(f"{cell}: {workers[cell.model].problem}")
            if number:
                limit = rollout_limit(
                    SHAPES[cell.model],
                    [cell.prompt_length] * cell.prompts,
                    run["lengths"],
                    machine,
                    2 if args.device == "cuda" else 4,
                )
                run["per_token"] = 1e6 * run["seconds"] / run["tokens"]
                run["share_of_limit"] = limit.seconds / run["seconds"]
                own.append(run)
    for worker in workers.values():
        worker.close()
    return results, machine, {f"ours, {model}": worker.info["versions"] for model, worker in workers.items()}


def line(cell: Cell, own: list[Message], first: list[Message]) -> list[object]:
    """One row of the table; `prefill` compares seconds, the rest microseconds per token."""
    key = "seconds" if cell.section == "prefill" else "per_token"
    return [
        *asdict(cell).values(),
        spread(own, "seconds", 3),
        f"{middle(own, 'per_token'):.1f}",
        f"{middle(own, key) / middle(first, key):.2f} x",
        f"{100 * middle(own, 'share_of_limit'):.0f} %",
    ]


if __name__ == "__main__":
    main()
