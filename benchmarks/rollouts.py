"""Sampling: SlimRL's engine, transformers' generate, its continuous batching, and vLLM, on the same prompts.

fixed    2.4M parameters, 32 prompts of 48 tokens x 8 samples, 128 new tokens each
natural  the built-in model on the built-in task, 32 problems x 8, at most 64 new tokens, stop ids honoured
large    the shape of Qwen2.5-0.5B, 2 prompts of 64 tokens x 8, 64 new tokens each
gpu      the shape of Qwen2.5-0.5B, 32 prompts of 128 tokens x 8, 512 new tokens each

Weights are random but for `natural`. Every peer is spared the log-probabilities that ours returns (see --logprobs).
"""

from __future__ import annotations

import argparse
import math
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
    random_prompts,
    rollout_limit,
    shape_of,
    write_model,
)

ENGINES = ("ours", "compiled", "hf", "continuous", "vllm")
HEADERS = (
    "workload", "engine", "seconds (lowest to highest)", "tokens", "tokens/s", "ms per step",
    "ours is faster by", "compiled is faster by",
    "share of the limit",
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    shape: str
    prompts: int
    prompt_length: int
    samples: int
    new_tokens: int


WORKLOADS = {
    "fixed": Workload("2.4M", 32, 48, 8, 128),
    "natural": Workload("built-in", 32, 0, 8, 64),
    "large": Workload("0.5B", 2, 64, 8, 64),
    "gpu": Workload("0.5B", 32, 128, 8, 512),
}
"""Prompts of `natural` have the lengths that they have."""


def options() -> argparse.Namespace:
    result = parser(__doc__.partition("\n")[0], engines=ENGINES)
    result.add_argument("--workloads", nargs="+", choices=WORKLOADS, help="default: all on the CPU; gpu on a GPU")
    result.add_argument("--logprobs", action="store_true", help="ask vLLM and continuous batching for them as well")
    for name in ("prompts", "prompt-length", "samples", "new-tokens"):
        result.add_argument(f"--{name}", type=int, help="instead of the workload's own")
    result.add_argument("--shape", choices=SHAPES, help="instead of the workload's own; not for natural")
    args = result.parse_args()
    args.workloads = args.workloads or (["gpu"] if args.device == "cuda" else ["fixed", "natural", "large"])
    return args


def main() -> None:
    every_workload(
        options(), WORKLOADS, ("prompts", "prompt_length", "samples", "new_tokens", "shape"), measure, HEADERS
    )


def measure(args: argparse.Namespace, name: str, workload: Workload, folder: Path) -> Message:
    """All engines on one workload."""
    say(f"{name}: {workload}")
    job = natural_job(workload, folder) if name == "natural" else fixed_job(workload, folder)
    job |= {"device": args.device, "logprobs": args.logprobs}
    shape = shape_of(Path(job["model"]))
    total = len(job["prompts"]) * workload.samples
    machine = ask_machine(args, shape, total)

    workers = [Worker(args, "engines.py", engine, job) for engine in args.engines]
    runs = dict(zip(args.engines, alternate(workers, args.repeats), strict=True))
    checks = [w.run(check=2) for w in workers if w.name == "ours"]
    for worker in workers:
        worker.close()

    prompts = [len(p) for p in job["prompts"]]
    itemsize = 2 if args.device == "cuda" else 4

    def limit(run: Message) -> Limit:
        return rollout_limit(shape, prompts, run["lengths"], machine, itemsize)

    for run in (run for own in runs.values() for run in own):
        run["tokens_per_second"] = run["tokens"] / run["seconds"]
        run["ms_per_step"] = 1e3 * run["seconds"] / (limit(run).steps + 1)
        run["share_of_limit"] = limit(run).seconds / run["seconds"]
    notes = []
    if runs.get("ours"):
        notes.append(describe(name, shape, limit(runs["ours"][0]), machine))
    notes.append(describe_machine(machine))
    for gap in checks:
        if gap:
            texts = [f"exp({kind} |sampler - trainer|) = 1 + {math.expm1(gap[kind]):.2e}" for kind in ("mean", "max")]
            notes.append(f"{name}, ours: {', '.join(texts)} over the tokens of two groups.")
    return {
        "rows": [line(name, worker, runs) for worker in workers],
        "notes": notes,
        "versions": {w.name: w.info.get("versions", w.problem) for w in workers},
        "machine": asdict(machine),
        "runs": {**runs, "sampler_gap": checks},
    }


def fixed_job(workload: Workload, folder: Path) -> Message:
    """Random weights, random prompts, no stop id."""
    shape = SHAPES[workload.shape]
    return {
        "model": str(write_model(shape, folder)),
        "prompts": random_prompts(workload.prompts, workload.prompt_length),
        "samples": workload.samples,
        "max_new_tokens": workload.new_tokens,
        "stop": False,
        "eos": shape.config()["eos_token_id"],
    }


def natural_job(workload: Workload, folder: Path) -> Message:
    """The prompts of the first step of `slimrl train`, and a copy of the built-in model that peers can load."""
    from itertools import islice

    from slimrl.config.files import load_config
    from slimrl.config.schema import TrainConfig
    from slimrl.model.loading import resolve
    from slimrl.preflight.setup import prepare_training

    overrides = [f"rollout.problems={workload.prompts}", f"rollout.max_new_tokens={workload.new_tokens}"]
    setup = prepare_training(load_config(TrainConfig, [], [*overrides, "model.device=cpu"])).setup
    shutil.copytree(resolve("builtin"), folder, dirs_exist_ok=True)
    problems = islice(setup.training_problems(step=0, count=workload.prompts), workload.prompts)
    (stop,) = setup.policy.stop_ids
    return {
        "model": str(folder),
        "prompts": [list(setup.prompt_ids(problem)) for problem in problems],
        "samples": workload.samples,
        "max_new_tokens": workload.new_tokens,
        "stop": True,
        "eos": stop,
    }


def line(name: str, worker: Worker, runs: dict[str, list[Message]]) -> list[object]:
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
        ratio("ours"),
        ratio("compiled"),
        f"{100 * middle(own, 'share_of_limit'):.0f} %",
    ]


if __name__ == "__main__":
    main()
