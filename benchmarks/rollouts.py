"""Sampling: SlimRL's engine, transformers' generate, its continuous batching, and vLLM, on the same prompts.

fixed    2.4M parameters, 32 prompts of 48 tokens x 8 samples, 128 new tokens each
natural  the built-in model on the built-in task, 32 problems x 8, at most 64 new tokens, stop ids honoured
smollm2  the same with the model of --model, 16 problems x 8
large    the shape of Qwen2.5-0.5B, 2 prompts of 64 tokens x 8, 64 new tokens each
decode   the shape of Qwen2.5-0.5B, 8 prompts of 64 tokens x 8, 64 new tokens each
gpu      the shape of Qwen2.5-0.5B, 32 prompts of 128 tokens x 8, 512 new tokens each

Weights are random but for `natural` and `smollm2`. Every peer is spared the log-probabilities that ours returns (see
--logprobs).
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import Message, Worker, add_fresh, alternate, every_workload, middle, parse, parser, say, spread
from limits import (
    SHAPES,
    Limit,
    ask_machine,
    describe,
    describe_machines,
    machine_record,
    random_prompts,
    rollout_limit,
    shape_of,
    write_model,
)

ENGINES = ("ours", "compiled", "hf", "continuous", "vllm")
OURS = ("ours", "compiled")


@dataclass(frozen=True)
class Workload:
    shape: str
    prompts: int
    prompt_length: int
    samples: int
    new_tokens: int

    @property
    def natural(self) -> bool:
        """The built-in task: a trained model, prompts of the lengths that they have, stop ids honoured."""
        return self.shape not in SHAPES


WORKLOADS = {
    "fixed": Workload("2.4M", 32, 48, 8, 128),
    "natural": Workload("built-in", 32, 0, 8, 64),
    "smollm2": Workload("--model", 16, 0, 8, 64),
    "large": Workload("0.5B", 2, 64, 8, 64),
    "decode": Workload("0.5B", 8, 64, 8, 64),
    "gpu": Workload("0.5B", 32, 128, 8, 512),
}


def options() -> argparse.Namespace:
    result = parser(__doc__.partition("\n")[0], engines=ENGINES)
    add_fresh(result)
    result.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, help="default: fixed, natural and large on a CPU; gpu on a GPU"
    )
    result.add_argument("--model", type=Path, help="folder of the model of smollm2")
    result.add_argument("--logprobs", action="store_true", help="ask vLLM and continuous batching for them as well")
    for name in ("prompts", "prompt-length", "samples", "new-tokens"):
        result.add_argument(f"--{name}", type=int, help="instead of the workload's own")
    result.add_argument("--shape", choices=SHAPES, help="instead of the workload's own; not at natural lengths")
    args = parse(result)
    args.workloads = args.workloads or (["gpu"] if args.device == "cuda" else ["fixed", "natural", "large"])
    if "smollm2" in args.workloads and not args.model:
        result.error("the workload smollm2 needs --model FOLDER")
    return args


def own_names(args: argparse.Namespace) -> list[str]:
    """Those of ours that the others are compared with."""
    return [f"{engine}, {dtype}" for engine in args.engines if engine in OURS for dtype in args.dtypes]


def main() -> None:
    args = options()
    headers = [
        *("workload", "engine", "seconds (lowest to highest)", "tokens", "tokens/s", "ms per step"),
        *(f"{name} is faster by" for name in own_names(args)),
        "share of the limit",
    ]
    every_workload(args, WORKLOADS, ("prompts", "prompt_length", "samples", "new_tokens", "shape"), measure, headers)


def measure(args: argparse.Namespace, name: str, workload: Workload, folder: Path) -> Message:
    """All engines on one workload."""
    say(f"{name}: {workload}")
    job = natural_job(workload, folder, args.model) if workload.natural else fixed_job(workload, folder)
    job |= {"device": args.device, "logprobs": args.logprobs}
    shape = shape_of(Path(job["model"]))
    machines = ask_machine(args, shape, len(job["prompts"]) * workload.samples, args.dtypes)

    workers = [
        Worker(args, "engines.py", engine, job | {"dtype": dtype}, name=f"{engine}, {dtype}")
        for engine in args.engines
        for dtype in args.dtypes
    ]
    runs = dict(zip((w.name for w in workers), alternate(workers, args.repeats, fresh=args.fresh), strict=True))
    gaps = {} if args.fresh else sampler_gaps(workers)
    for worker in workers:
        worker.close()

    prompts = [len(p) for p in job["prompts"]]

    def limit(run: Message, dtype: str) -> Limit:
        return rollout_limit(shape, prompts, run["lengths"], machines[dtype])

    notes = [describe_machines(machines)]
    for worker in workers:
        for run in runs[worker.name]:
            least = limit(run, worker.job["dtype"])
            run["tokens_per_second"] = run["tokens"] / run["seconds"]
            run["ms_per_step"] = 1e3 * run["seconds"] / (least.steps + 1)
            run["limit"] = least.seconds
            run["share_of_limit"] = least.seconds / run["seconds"]
        if worker.name.startswith("ours") and runs[worker.name]:
            dtype = worker.job["dtype"]
            notes.append(describe(f"{name}, {dtype}", shape, limit(runs[worker.name][0], dtype), machines[dtype]))
    for own, gap in gaps.items():
        texts = [f"exp({kind} |sampler - trainer|) = 1 + {math.expm1(gap[kind]):.2e}" for kind in ("mean", "max")]
        notes.append(f"{name}, {own}: {', '.join(texts)} over the tokens of two groups.")
    return {
        "rows": [line(name, worker, runs, own_names(args)) for worker in workers],
        "notes": notes,
        "versions": {w.name: w.versions for w in workers},
        "machine": machine_record(machines),
        "runs": {**runs, "sampler_gap": gaps},
    }


def sampler_gaps(workers: Sequence[Worker]) -> dict[str, Message]:
    """How far each of ours is from its trainer; each ends then, since the optimizer of one takes the memory of several."""
    found = {}
    for worker in workers:
        if not worker.name.startswith("ours"):
            worker.close()
    for worker in workers:
        if worker.name.startswith("ours") and (gap := worker.run(check=2)):
            found[worker.name] = gap
        worker.close()
    return found


def fixed_job(workload: Workload, folder: Path) -> Message:
    """Random weights, random prompts, no stop id."""
    shape = SHAPES[workload.shape]
    return {
        "model": str(write_model(shape, folder)),
        "prompts": random_prompts(workload.prompts, workload.prompt_length),
        "samples": workload.samples,
        "max_new_tokens": workload.new_tokens,
        "stop": False,
        "eos": [shape.config()["eos_token_id"]],
    }


def natural_job(workload: Workload, folder: Path, model: Path | None) -> Message:
    """The prompts of the first step of `slimrl train` with this model, or with a copy of the built-in one for peers to load."""
    from itertools import islice

    from slimrl.config.files import load_config
    from slimrl.config.schema import TrainConfig
    from slimrl.model.loading import resolve
    from slimrl.preflight.setup import prepare_training

    if workload.shape == "built-in" or model is None:
        model = Path(shutil.copytree(resolve("builtin"), folder, dirs_exist_ok=True))
    overrides = [f"model.path={model}", "model.device=cpu", "model.dtype=float32"]
    overrides += [f"rollout.problems={workload.prompts}", f"rollout.max_new_tokens={workload.new_tokens}"]
    setup = prepare_training(load_config(TrainConfig, [], overrides)).setup
    problems = islice(setup.training_problems(step=0, count=workload.prompts), workload.prompts)
    return {
        "model": str(model),
        "prompts": [list(setup.prompt_ids(problem)) for problem in problems],
        "samples": workload.samples,
        "max_new_tokens": workload.new_tokens,
        "stop": True,
        "eos": list(setup.policy.stop_ids),
    }


def line(name: str, worker: Worker, runs: dict[str, list[Message]], ours: Sequence[str]) -> list[object]:
    """One row of the table."""
    own = runs[worker.name]
    if not own:
        return [name, worker.name, worker.problem]

    def ratio(name: str) -> str:
        """Per token, since engines that draw other tokens stop elsewhere."""
        if worker.name == name or not runs.get(name):
            return ""
        return f"{middle(runs[name], 'tokens_per_second') / middle(own, 'tokens_per_second'):.2f} x"

    return [
        name,
        worker.name,
        spread(own, "seconds"),
        f"{middle(own, 'tokens'):.0f}",
        f"{middle(own, 'tokens_per_second'):.0f}",
        f"{middle(own, 'ms_per_step'):.2f}",
        *map(ratio, ours),
        f"{100 * middle(own, 'share_of_limit'):.0f} %",
    ]


if __name__ == "__main__":
    main()
