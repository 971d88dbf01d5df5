"""How often does a draw depend on what else is decoded? The same completions with other numbers of slots.

    python benchmarks/slots.py MODEL [--dtype float32 bfloat16] [--slots 16 3 1] [--completions 64] [--tokens 64]

Other numbers of rows take other kernels, whose results differ in their last bits. The table has the completions that differ,
and how many tokens were drawn up to the first difference of each: from there on the texts themselves differ.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path

from common import say, table, versions

HERE = Path(__file__).parent
SAMPLES = 4


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", help="folder or Hub name")
    options.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    options.add_argument(
        "--slots", nargs="+", type=int, default=[16, 3, 1], help="the first is what others are held to"
    )
    options.add_argument("--completions", type=int, default=64)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--out", type=Path, default=HERE / "results" / "slots.json")
    args = options.parse_args()

    from slimrl.config.sections import ModelConfig
    from slimrl.config.task import TaskConfig
    from slimrl.model.loading import load_policy
    from slimrl.model.prompts import make_prompter
    from slimrl.randomness import uniforms
    from slimrl.rollout import Request
    from slimrl.rollout.engine import RolloutEngine
    from slimrl.tasks import load_task

    task = load_task(TaskConfig(), instruction="Reason step by step.", seed=0)
    found, rows = [], []
    for dtype in args.dtype:
        policy = load_policy(ModelConfig(path=args.model, dtype=dtype))
        prompter = make_prompter(policy.tokenizer, "auto")
        requests = [
            Request(
                prompter.ids(task.messages(problem)),
                uniforms(0, "train", 0, problem.id, samples=SAMPLES, positions=args.tokens),
            )
            for problem in (task.train[i] for i in range(-(-args.completions // SAMPLES)))
        ]
        drawn = {}
        for slots in args.slots:
            say(f"{dtype}, {slots} slots")
            groups = RolloutEngine(policy, slots=slots).generate(requests, max_new_tokens=args.tokens)
            drawn[slots] = [completion.token_ids for group in groups for completion in group]
        first = args.slots[0]
        for slots in args.slots[1:]:
            pairs = list(zip(drawn[first], drawn[slots], strict=True))
            differ = sum(a != b for a, b in pairs)
            tokens = sum(agreeing(a, b) for a, b in pairs) + differ
            found.append(
                {"dtype": dtype, "slots": [first, slots], "differ": differ, "completions": len(pairs), "tokens": tokens}
            )
            rate = f"1 in {tokens // differ:,}" if differ else f"none in {tokens:,}"
            rows.append([dtype, f"{first} and {slots}", f"{differ} of {len(pairs)}", rate])
    print(table(["type", "slots", "completions that differ", "draws that differ"], rows))
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "versions": versions(),
        "model": Path(args.model).name,
        "results": found,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def agreeing(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Tokens before the first difference."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


if __name__ == "__main__":
    main()
