"""A whole training step, sampling and update: SlimRL against TRL, same model, prompts, group size and lengths.

natural  the built-in model on the built-in task: GRPO as `slimrl train` runs it, 32 problems x 8, at most 64 new tokens
fixed    2.4M parameters, 16 prompts of 48 tokens x 8, 128 new tokens each, a reward decided by the tokens

The learning rate is next to nothing, so that the policy, and with it the work, is the same in every step.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from common import Message, Worker, alternate, every_workload, middle, parser, say, spread
from limits import (
    SHAPES,
    Limit,
    ask_machine,
    describe,
    describe_machine,
    prompt_text,
    random_prompts,
    rollout_limit,
    shape_of,
    update_limit,
    write_model,
)

HEADERS = (
    "workload", "trainer", "seconds (lowest to highest)", "sampling s", "update s", "tokens", "tokens/s", "mean reward",
    "ours is faster by", "share of the limit",
)  # fmt: skip
LEARNING_RATE = 1e-9


@dataclass(frozen=True)
class Workload:
    shape: str
    problems: int
    prompt_length: int
    samples: int
    new_tokens: int


WORKLOADS = {"natural": Workload("built-in", 32, 0, 8, 64), "fixed": Workload("2.4M", 16, 48, 8, 128)}
"""Prompts of `natural` have the lengths that they have."""


def options() -> argparse.Namespace:
    result = parser(__doc__.partition("\n")[0], engines=("ours", "trl"))
    result.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    result.add_argument(
        "--trl-rows", nargs="+", type=int, default=[64], help="rows of TRL's micro-batch; each is a line of its own"
    )
    result.add_argument("--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="further settings for ours")
    for name in ("problems", "samples", "new-tokens"):
        result.add_argument(f"--{name}", type=int, help="instead of the workload's own")
    result.add_argument("--shape", choices=SHAPES, help="instead of the workload's own; not for natural")
    return result.parse_args()


def main() -> None:
    every_workload(options(), WORKLOADS, ("problems", "samples", "new_tokens", "shape"), measure, HEADERS)


def measure(args: argparse.Namespace, name: str, workload: Workload, folder: Path) -> Message:
    """Both trainers on one workload."""
    say(f"{name}: {workload}")
    job = make_job(args, name, workload, folder)
    shape = shape_of(folder)
    total = workload.problems * workload.samples
    machine = ask_machine(args, shape, total)

    workers = []
    for engine in args.engines:
        if engine == "ours":
            workers.append(Worker(args, "trainers.py", "ours", job))
            continue
        for rows in args.trl_rows:
            rows = divisor(total, rows)
            workers.append(Worker(args, "trainers.py", "trl", job | {"rows": rows}, name=f"trl, {rows} rows"))
    results = alternate(workers, args.repeats)
    for worker in workers:
        worker.close()

    itemsize = 2 if args.device == "cuda" else 4

    def limits(run: Message, number: int) -> tuple[Limit, Limit]:
        """Of sampling and of the update, for the prompts of that step and the lengths that were drawn."""
        first = number * workload.problems
        prompts = [len(p["ids"]) for p in job["prompts"][first : first + workload.problems]]
        if run.get("prompts", prompts) != prompts:
            raise SystemExit("the trainers were given other prompts, so their times cannot be compared")
        sampling = rollout_limit(shape, prompts, run["lengths"], machine, itemsize)
        return sampling, update_limit(shape, prompts, run["lengths"], machine, reference=True)

    for run, number in ((run, number) for own in results for number, run in enumerate(own, start=1)):
        run["limit"] = sum(limit.seconds for limit in limits(run, number))
        run["tokens"] = sum(map(sum, run["lengths"]))
        run["tokens_per_second"] = run["tokens"] / run["seconds"]
        run["update"] = run["seconds"] - run["rollout"]
        run["share_of_limit"] = run["limit"] / run["seconds"]
    runs = {worker.name: own for worker, own in zip(workers, results, strict=True)}
    notes = [describe_machine(machine)]
    if runs.get("ours"):
        sampling, learning = limits(runs["ours"][0], 1)
        notes.append(describe(f"{name}, sampling", shape, sampling, machine))
        notes.append(describe(f"{name}, update", shape, learning, machine))
        if name == "natural":
            wrong = sum(run["disagreements"] for run in runs["ours"])
            notes.append(f"{name}: TRL's short checker disagrees with ours on {wrong} of our completions.")
    return {
        "rows": [line(name, worker, runs) for worker in workers],
        "notes": notes,
        "versions": {w.name: w.info.get("versions", w.problem) for w in workers},
        "machine": asdict(machine),
        "runs": runs,
    }


def make_job(args: argparse.Namespace, name: str, workload: Workload, folder: Path) -> Message:
    """What both trainers are told; the folder then holds the model."""
    job: Message = {
        "workload": name,
        "model": str(folder),
        "device": args.device,
        "problems": workload.problems,
        "samples": workload.samples,
        "max_new_tokens": workload.new_tokens,
        "learning_rate": LEARNING_RATE,
        "kl_coef": 0.04,
        "settings": args.set,
        "checkpoint": False,
    }
    steps = args.repeats + 1
    if name == "natural":
        from slimrl.model.loading import resolve

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


def line(name: str, worker: Worker, runs: dict[str, list[Message]]) -> list[object]:
    """One row of the table."""
    own = runs[worker.name]
    if not own:
        return [name, worker.name, worker.problem]
    ratio = ""
    if worker.name != "ours" and runs.get("ours"):
        # per token, since trainers that draw other tokens stop elsewhere
        ratio = f"{middle(runs['ours'], 'tokens_per_second') / middle(own, 'tokens_per_second'):.2f} x"
    return [
        name,
        worker.name,
        spread(own, "seconds"),
        f"{middle(own, 'rollout'):.2f}",
        f"{middle(own, 'update'):.2f}",
        f"{middle(own, 'tokens'):.0f}",
        f"{middle(own, 'tokens_per_second'):.0f}",
        f"{middle(own, 'reward'):.3f}",
        ratio,
        f"{100 * middle(own, 'share_of_limit'):.0f} %",
    ]


if __name__ == "__main__":
    main()
