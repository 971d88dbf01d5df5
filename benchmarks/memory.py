"""Peak memory, and time, of one update: SlimRL against TRL at the same micro-batch.

The shape of Qwen2.5-0.5B, 2 groups of 8 rows, each of 256 prompt and 256 completion tokens that are given, so that nothing
is sampled. GRPO with a reference model (`--kl-coef 0`: without) and AdamW, whose state is there from the second update on.
With `--lora` both train an adapter beside all linear layers, and the reference is the model without it.

Every line is a process of its own; they run one after another, never side by side, since two may not fit. Peak is the
kernel's high-water mark of resident memory (VmHWM), on a GPU the peak of what torch has allocated there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import (
    GIB,
    TRL_MODES,
    Message,
    Worker,
    add_trl_modes,
    alternate,
    finish,
    middle,
    parse,
    parser,
    say,
    spread,
)
from limits import (
    SHAPES,
    ask_machine,
    describe,
    describe_machines,
    machine_record,
    prompt_text,
    random_prompts,
    update_limit,
    write_model,
)

HEADERS = (
    "trainer", "rows", "libraries GiB", "loaded GiB", "peak GiB", "peak less libraries GiB", "times ours",
    "seconds (lowest to highest)", "ours is faster by",
    "share of the limit",
)  # fmt: skip


def options() -> argparse.Namespace:
    result = parser(__doc__.partition("\n")[0], engines=("ours", "trl", "trl-checkpoint"))
    result.set_defaults(repeats=2)
    add_trl_modes(result)
    result.add_argument("--rows", nargs="+", type=int, default=[4], help="rows of a micro-batch")
    result.add_argument(
        "--variants",
        nargs="+",
        default=[],
        metavar="SECTION.KEY=VALUE[,...]",
        help="further lines of ours, with these settings",
    )
    result.add_argument("--kl-coef", type=float, default=0.04, help="0: no reference model, for either")
    result.add_argument(
        "--lora", type=int, default=0, metavar="RANK", help="both train an adapter of this rank, alpha 32"
    )
    result.add_argument("--shape", choices=SHAPES, default="0.5B")
    result.add_argument("--groups", type=int, default=2)
    result.add_argument("--samples", type=int, default=8, help="rows of a group")
    result.add_argument("--prompt-length", type=int, default=256)
    result.add_argument("--new-tokens", type=int, default=256)
    args = parse(result)
    if any(args.groups * args.samples % rows for rows in args.rows):
        result.error(f"--rows must divide the {args.groups * args.samples} rows of an update")
    return args


def main() -> None:
    args = options()
    shape = SHAPES[args.shape]
    prompts = random_prompts(args.groups, args.prompt_length)
    given = [{"text": prompt_text(ids), "ids": ids, "answer": ""} for ids in prompts]
    job: Message = {
        "workload": "update",
        "device": args.device,
        "problems": args.groups,
        "samples": args.samples,
        "max_new_tokens": args.new_tokens,
        "learning_rate": 1e-9,
        "kl_coef": args.kl_coef,
        "lora": args.lora,
        "settings": [],
        "prompts": given * (args.repeats + 1),
    }
    modes = [TRL_MODES[mode] for mode in args.trl_modes if args.engines != ["ours"]]
    rows = min(args.rows) * (args.prompt_length + args.new_tokens)
    machines = ask_machine(args, shape, rows, [*args.dtypes, *modes])
    lengths = [[args.new_tokens] * args.samples] * args.groups
    limits = {
        dtype: update_limit(
            shape,
            [args.prompt_length] * args.groups,
            lengths,
            machine,
            reference=bool(args.kl_coef),
            adapter=bool(args.lora),
        )
        for dtype, machine in machines.items()
    }

    table: list[list[object]] = []
    versions: Message = {}
    runs: Message = {}
    with tempfile.TemporaryDirectory(prefix="slimrl-benchmark-") as folder:
        job["model"] = str(write_model(shape, Path(folder)))
        for rows in args.rows:
            baselines: dict[str, list[Message]] = {}
            for name, role, changes in lineup(args, rows):
                worker = Worker(args, "trainers.py", role, job | changes, name=name)
                (own,) = alternate([worker], args.repeats)
                worker.close()
                dtype = changes["dtype"]
                if role == "ours":
                    baselines.setdefault(dtype, own)
                table.append(line(worker, rows, own, baselines.get(dtype, []), limits[dtype].seconds))
                versions[name] = worker.versions
                runs[f"{name}, {rows} rows"] = own
    notes = [describe_machines(machines)]
    notes += [describe(f"update, {dtype}", shape, limits[dtype], machine) for dtype, machine in machines.items()]
    finish(args, HEADERS, table, notes, versions=versions, machine=machine_record(machines), runs=runs)


def lineup(args: argparse.Namespace, rows: int) -> list[tuple[str, str, Message]]:
    """Name, role and part of the job of every line at this micro-batch."""
    result: list[tuple[str, str, Message]] = []
    # ours counts packed tokens: a shared prompt once, and a completion's last token is not fed
    tokens = [f"optimizer.microbatch_tokens={args.prompt_length + rows * (args.new_tokens - 1)}"]
    for dtype in args.dtypes if "ours" in args.engines else ():
        result.append((f"ours, {dtype}", "ours", {"dtype": dtype, "settings": tokens}))
        for variant in args.variants:
            settings = {"dtype": dtype, "settings": [*tokens, *variant.split(",")]}
            result.append((f"ours, {dtype}, {variant}", "ours", settings))
    for mode in args.trl_modes:
        how = {"mode": mode, "dtype": TRL_MODES[mode], "rows": rows}
        if "trl" in args.engines:
            result.append((f"trl, {mode}", "trl", how | {"checkpoint": False}))
        if "trl-checkpoint" in args.engines:
            result.append((f"trl, {mode}, gradient checkpointing", "trl", how | {"checkpoint": True}))
    say(f"{rows} rows in a micro-batch: {', '.join(name for name, _, _ in result)}")
    return result


def line(worker: Worker, rows: int, own: list[Message], baseline: list[Message], limit: float) -> list[object]:
    """One row of the table."""
    if not own:
        return [worker.name, rows, worker.problem]
    for run in own:
        libraries = 0 if "gpu_peak" in run["memory"] else run["imported"]["resident"]
        run["libraries"] = libraries
        run["loaded"] = run["ready"].get("gpu_peak", run["ready"]["resident"])
        run["peak"] = run["memory"].get("gpu_peak", run["memory"]["peak"])
        run["net"] = run["peak"] - libraries
        run["share_of_limit"] = limit / run["seconds"]
    memory_ratio = time_ratio = ""
    if baseline and own is not baseline:
        memory_ratio = f"{own[-1]['net'] / baseline[-1]['net']:.2f}"
        time_ratio = f"{middle(own, 'seconds') / middle(baseline, 'seconds'):.2f} x"
    return [
        worker.name,
        rows,
        *(f"{own[-1][key] / GIB:.2f}" for key in ("libraries", "loaded", "peak", "net")),
        memory_ratio,
        spread(own, "seconds"),
        time_ratio,
        f"{100 * middle(own, 'share_of_limit'):.0f} %",
    ]


if __name__ == "__main__":
    main()
