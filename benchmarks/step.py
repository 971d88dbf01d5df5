"""A whole training step, sampling and update: SlimRL against TRL, same model, prompts, group size and lengths.

natural  the built-in model on the built-in task: GRPO as `slimrl train` runs it, 32 problems x 8, at most 64 new tokens
fixed    2.4M parameters, 16 prompts of 48 tokens x 8, 128 new tokens each, a reward decided by the tokens
smollm2  as natural, with the model of --model, 16 problems x 8, without a KL term
0.5B     as fixed, the shape of Qwen2.5-0.5B, 4 prompts of 64 tokens x 8, 128 new tokens each, without a KL term

The learning rate is next to nothing, so that the policy, and with it the work, is the same in every step.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import (
    TRL_MODES,
    Message,
    Worker,
    add_fresh,
    add_trl_modes,
    alternate,
    every_workload,
    middle,
    parse,
    parser,
    say,
    spread,
)
from limits import (
    SHAPES,
    Limit,
    ask_machine,
    describe,
    describe_machines,
    machine_record,
    prompt_text,
    random_prompts,
    rollout_limit,
    shape_of,
    update_limit,
    write_model,
)

LEARNING_RATE = 1e-9


@dataclass(frozen=True)
class Workload:
    shape: str
    problems: int
    prompt_length: int
    samples: int
    new_tokens: int
    kl_coef: float

    @property
    def natural(self) -> bool:
        """The built-in task: a trained model, prompts of the lengths that they have, stop ids honoured."""
        return self.shape not in SHAPES


WORKLOADS = {
    "natural": Workload("built-in", 32, 0, 8, 64, 0.04),
    "fixed": Workload("2.4M", 16, 48, 8, 128, 0.04),
    "smollm2": Workload("--model", 16, 0, 8, 64, 0.0),
    "0.5B": Workload("0.5B", 4, 64, 8, 128, 0.0),
}
SIZES = ("problems", "samples", "new_tokens", "kl_coef", "shape")
"""Of a workload; options set them."""


def options() -> argparse.Namespace:
    result = parser(__doc__.partition("\n")[0], engines=("ours", "trl", "trl-vllm"))
    result.set_defaults(engines=["ours", "trl"])
    add_trl_modes(result)
    add_fresh(result)
    result.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["natural", "fixed"])
    result.add_argument("--model", type=Path, help="folder of the model of smollm2")
    result.add_argument(
        "--trl-rows", nargs="+", type=int, default=[64], help="rows of TRL's micro-batch; each is a line of its own"
    )
    result.add_argument("--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="further settings for ours")
    for name in ("--problems", "--samples", "--new-tokens"):
        result.add_argument(name, type=int, help="instead of the workload's own")
    result.add_argument("--kl-coef", type=float, help="instead of the workload's own; 0: no reference model")
    result.add_argument("--shape", choices=SHAPES, help="instead of the workload's own; not at natural lengths")
    args = parse(result)
    if "smollm2" in args.workloads and not args.model:
        result.error("the workload smollm2 needs --model FOLDER")
    return args


def own_names(args: argparse.Namespace) -> list[str]:
    """Those of ours, which the others are compared with."""
    return [f"ours, {dtype}" for dtype in args.dtypes] if "ours" in args.engines else []


def main() -> None:
    args = options()
    headers = [
        *("workload", "trainer", "seconds (lowest to highest)", "sampling s", "update s"),
        *("tokens", "tokens/s", "mean reward"),
        *(f"{name} is faster by" for name in own_names(args)),
        "share of the limit",
    ]
    every_workload(args, WORKLOADS, SIZES, measure, headers)


def lineup(args: argparse.Namespace, job: Message) -> list[Worker]:
    """Every trainer in every arithmetic, started."""
    workers = []
    for engine in args.engines:
        if engine == "ours":
            for dtype, name in zip(args.dtypes, own_names(args), strict=True):
                workers.append(Worker(args, "trainers.py", "ours", job | {"dtype": dtype}, name=name))
            continue
        for mode in args.trl_modes:
            for rows in args.trl_rows:
                rows = divisor(job["problems"] * job["samples"], rows)
                own = {"mode": mode, "dtype": TRL_MODES[mode], "rows": rows}
                workers.append(Worker(args, "trainers.py", engine, job | own, name=f"{engine}, {mode}, {rows} rows"))
    return workers


def measure(args: argparse.Namespace, name: str, workload: Workload, folder: Path) -> Message:
    """Both trainers on one workload."""
    say(f"{name}: {workload}")
    job = make_job(args, name, workload, folder)
    shape = shape_of(Path(job["model"]))
    trl = [TRL_MODES[mode] for mode in args.trl_modes if args.engines != ["ours"]]
    machines = ask_machine(args, shape, workload.problems * workload.samples, [*args.dtypes, *trl])

    workers = lineup(args, job)
    results = alternate(workers, args.repeats, fresh=args.fresh)
    for worker in workers:
        worker.close()

    def limits(run: Message, dtype: str) -> tuple[Limit, Limit]:
        """Of sampling and of the update, for the prompts of that step and the lengths that were drawn."""
        first = run["number"] * workload.problems
        prompts = [len(p["ids"]) for p in job["prompts"][first : first + workload.problems]]
        if run.get("prompts", prompts) != prompts:
            raise SystemExit("the trainers were given other prompts, so their times cannot be compared")
        sampling = rollout_limit(shape, prompts, run["lengths"], machines[dtype])
        reference = bool(workload.kl_coef)
        return sampling, update_limit(shape, prompts, run["lengths"], machines[dtype], reference=reference)

    notes = [describe_machines(machines)]
    for worker, own in zip(workers, results, strict=True):
        dtype = worker.job["dtype"]
        for run in own:
            run["limit"] = sum(limit.seconds for limit in limits(run, dtype))
            run["tokens"] = sum(map(sum, run["lengths"]))
            run["tokens_per_second"] = run["tokens"] / run["seconds"]
            run["update"] = run["seconds"] - run["rollout"]
            run["share_of_limit"] = run["limit"] / run["seconds"]
        if worker.name in own_names(args) and own:
            notes += remarks(name, worker, own)
            for part, limit in zip(("sampling", "update"), limits(own[0], dtype), strict=True):
                notes.append(describe(f"{name}, {dtype}, {part}", shape, limit, machines[dtype]))
    runs = {worker.name: own for worker, own in zip(workers, results, strict=True)}
    return {
        "rows": [line(name, worker, runs, own_names(args)) for worker in workers],
        "notes": notes,
        "versions": {w.name: w.versions for w in workers},
        "machine": machine_record(machines),
        "runs": runs,
    }


def remarks(name: str, worker: Worker, own: Sequence[Message]) -> list[str]:
    """Of one of ours: its sampler against its trainer, and its checker against TRL's."""
    gap, tokens = middle(own, "sampler_gap"), own[0]["microbatch_tokens"]
    found = [
        f"{name}, {worker.name}: mean |sampler - trainer| {gap:.1e} nats; micro-batches of at most {tokens} tokens."
    ]
    if worker.job["workload"] == "natural":
        wrong = sum(run["disagreements"] for run in own)
        found.append(f"{name}, {worker.name}: TRL's short checker disagrees with ours on {wrong} of our completions.")
    return found


def make_job(args: argparse.Namespace, name: str, workload: Workload, folder: Path) -> Message:
    """What both trainers are told; the folder then holds the model, unless it has a folder of its own."""
    job: Message = {
        "workload": "natural" if workload.natural else "fixed",
        "model": str(args.model if name == "smollm2" else folder),
        "device": args.device,
        "problems": workload.problems,
        "samples": workload.samples,
        "max_new_tokens": workload.new_tokens,
        "learning_rate": LEARNING_RATE,
        "kl_coef": workload.kl_coef,
        "settings": args.set,
        "checkpoint": False,
    }
    steps = args.repeats + 1
    if workload.natural:
        from slimrl.model.loading import resolve

        if workload.shape == "built-in":
            shutil.copytree(resolve("builtin"), folder, dirs_exist_ok=True)
        exporter = Worker(args, "trainers.py", "export", job)
        exported = exporter.run(steps=steps)
        exporter.close()
        if exported is None:
            raise SystemExit(f"the built-in task cannot be exported: {exporter.problem}")
        return job | exported
    write_model(SHAPES[workload.shape], folder)
    prompts = random_prompts(steps * workload.problems, workload.prompt_length)
    return job | {"prompts": [{"text": prompt_text(ids), "ids": ids, "answer": ""} for ids in prompts]}


def divisor(total: int, wanted: int) -> int:
    """The largest number up to `wanted` that divides `total`."""
    return next(rows for rows in range(min(wanted, total), 0, -1) if total % rows == 0)


def line(name: str, worker: Worker, runs: dict[str, list[Message]], ours: Sequence[str]) -> list[object]:
    """One row of the table."""
    own = runs[worker.name]
    if not own:
        return [name, worker.name, worker.problem]

    def ratio(name: str) -> str:
        """Per token, since trainers that draw other tokens stop elsewhere."""
        if worker.name == name or not runs.get(name):
            return ""
        return f"{middle(runs[name], 'tokens_per_second') / middle(own, 'tokens_per_second'):.2f} x"

    return [
        name,
        worker.name,
        spread(own, "seconds"),
        f"{middle(own, 'rollout'):.2f}",
        f"{middle(own, 'update'):.2f}",
        f"{middle(own, 'tokens'):.0f}",
        f"{middle(own, 'tokens_per_second'):.0f}",
        f"{middle(own, 'reward'):.3f}",
        *map(ratio, ours),
        f"{100 * middle(own, 'share_of_limit'):.0f} %",
    ]


if __name__ == "__main__":
    main()
