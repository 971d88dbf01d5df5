"""What a sampled token costs with SlimRL, against rows, length and group size; and the prefill of a group.

Nothing stops early, so every token is a useful one. Each section changes one thing; the cells of a section take turns.
Cost against model size, and against peers, is `cost.py`'s.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common import Message, Worker, finish, middle, parse, parser, say, spread
from limits import (
    SHAPES,
    Machine,
    ask_machine,
    describe_machines,
    machine_record,
    random_prompts,
    rollout_limit,
    write_model,
)

HEADERS = (
    "section", "precision", "prompts", "samples", "prompt tokens", "new tokens", "seconds (lowest to highest)",
    "us per token", "against the first", "share of the limit",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    section: str
    dtype: str
    prompts: int
    samples: int
    prompt_length: int
    new_tokens: int


def options() -> argparse.Namespace:
    result = parser(__doc__.partition(";")[0], engines=("ours",))
    result.set_defaults(repeats=3)
    sections = ("rows", "length", "group", "prefill")
    result.add_argument("--sections", nargs="+", choices=sections, default=list(sections))
    result.add_argument("--shape", choices=SHAPES, default="2.4M")
    result.add_argument("--rows", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512])
    result.add_argument("--lengths", nargs="+", type=int, default=[32, 64, 128, 256, 512], help="new tokens")
    result.add_argument("--groups", nargs="+", type=int, default=[1, 4, 8, 16, 32, 64], help="samples; rows stay 256")
    return parse(result)


def cells(args: argparse.Namespace) -> list[Cell]:
    """Every cell, section by section, and precision by precision within a section."""
    result = []
    for section in args.sections:
        for dtype in args.dtypes:
            if section == "rows":
                result += [Cell(section, dtype, max(1, n // 8), min(n, 8), 48, 64) for n in args.rows]
            elif section == "length":
                result += [Cell(section, dtype, 8, 8, 48, n) for n in args.lengths]
            elif section == "group":
                result += [Cell(section, dtype, 256 // n, n, 256, 32) for n in args.groups]
            else:  # prefill; one new token: the prompt and a draw, no decode step
                result += [Cell(section, dtype, 1, n, 512, 1) for n in (1, 16)]
    return result


def main() -> None:
    args = options()
    plan = cells(args)
    table: list[list[object]] = []
    notes: list[str] = []
    versions: Message = {}
    machine: Message = {}
    runs: Message = {}
    with tempfile.TemporaryDirectory(prefix="slimrl-benchmark-") as folder:
        model = write_model(SHAPES[args.shape], Path(folder))
        for section in dict.fromkeys(cell.section for cell in plan):
            chosen = [cell for cell in plan if cell.section == section]
            results, machines, info = measure(args, chosen, model)
            first = {cell.dtype: own for cell, own in reversed(list(zip(chosen, results, strict=True)))}
            versions |= info
            notes.append(f"{section}: {describe_machines(machines)}")
            machine[section] = machine_record(machines)
            runs[section] = [{"cell": asdict(c), "runs": r} for c, r in zip(chosen, results, strict=True)]
            table += [line(c, own, first[c.dtype]) for c, own in zip(chosen, results, strict=True)]
    machine = {"name": next(iter(machine.values()))["name"], **machine}
    finish(args, HEADERS, table, notes, versions=versions, machine=machine, runs=runs)


def measure(
    args: argparse.Namespace, chosen: Sequence[Cell], model: Path
) -> tuple[list[list[Message]], dict[str, Machine], Message]:
    """The runs of each cell of one section, in turns."""
    shape = SHAPES[args.shape]
    machines = ask_machine(args, shape, max(cell.prompts * cell.samples for cell in chosen), args.dtypes)
    job = {"model": str(model), "device": args.device, "stop": False, "eos": [2], "logprobs": True}
    workers = {
        dtype: Worker(args, "engines.py", "ours", job | {"dtype": dtype}, name=f"ours, {dtype}")
        for dtype in args.dtypes
    }
    results: list[list[Message]] = [[] for _ in chosen]
    for number in range(args.repeats + 1):
        for cell, own in zip(chosen, results, strict=True):
            say(f"run {number} of {args.repeats}: {cell}")
            worker = workers[cell.dtype]
            prompts = random_prompts(cell.prompts, cell.prompt_length)
            run = worker.run(number=number, prompts=prompts, samples=cell.samples, max_new_tokens=cell.new_tokens)
            if run is None:
                raise SystemExit(f"{cell}: {worker.problem}")
            if number:
                limit = rollout_limit(shape, [cell.prompt_length] * cell.prompts, run["lengths"], machines[cell.dtype])
                run["per_token"] = 1e6 * run["seconds"] / run["tokens"]
                run["share_of_limit"] = limit.seconds / run["seconds"]
                own.append(run)
    for worker in workers.values():
        worker.close()
    return results, machines, {worker.name: worker.info["versions"] for worker in workers.values()}


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
