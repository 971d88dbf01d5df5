"""The gap between sampler and trainer by precision and attention kernel, on a real model: SlimRL's own, and transformers'.

    python precision.py runs/warm/final prompts.jsonl

For transformers, tokens are sampled by `generate`, with its cache, and their log-probabilities computed again by one forward pass
over whole rows, as a trainer does that samples with `generate`; both with the same kernel, one prompt at a time, so without
padding. For SlimRL, both are its own: decode steps, and packed rows. Prompts are those that `prompts.py` wrote.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

CLIP = 0.2


@dataclass(frozen=True)
class Gap:
    """Of sampled tokens."""

    sampler: Tensor
    """[tokens] log-probabilities, nats."""
    trainer: Tensor
    seconds: float

    def cells(self) -> list[str]:
        apart = (self.trainer - self.sampler).abs()
        ratio = (self.trainer - self.sampler).exp()
        outside = ((ratio - 1).abs() > CLIP).float().mean()
        return [
            str(len(apart)),
            f"{apart.mean():.5f}",
            f"{apart.quantile(0.99):.4f}",
            f"{apart.max():.3f}",
            f"{100 * outside:.2f}",
            f"{self.seconds:.0f}",
        ]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--count", type=int, default=32, help="prompts")
    parser.add_argument("--samples", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--kernels", nargs="+", default=["slimrl", "sdpa", "eager"])
    return parser.parse_args()


def of_transformers(args: argparse.Namespace, prompts: Sequence[str], dtype: str, kernel: str) -> Gap:
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, dtype), attn_implementation=kernel
    ).eval()
    torch.manual_seed(0)
    started, pairs = time.perf_counter(), []
    for prompt in prompts:
        batch = tokenizer([prompt] * args.samples, return_tensors="pt", add_special_tokens=False)
        start = batch.input_ids.shape[1]
        with torch.no_grad():
            drawn = model.generate(
                **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
                max_new_tokens=args.max_new_tokens, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            new = drawn.sequences[:, start:]
            sampler = picked(torch.stack(drawn.logits, 1), new)
            trainer = picked(model(drawn.sequences).logits[:, start - 1 : -1], new)
        # up to and with the first token that ends a turn
        ended = (new == tokenizer.eos_token_id).cumsum(1)
        kept = (ended - (new == tokenizer.eos_token_id).long()) == 0
        pairs.append((sampler[kept], trainer[kept]))
    return Gap(*(torch.cat(parts) for parts in zip(*pairs, strict=True)), time.perf_counter() - started)


def picked(logits: Tensor, ids: Tensor) -> Tensor:
    """[N, T, V] logits, [N, T] ids -> [N, T] log-probabilities in float32."""
    return torch.log_softmax(logits.float(), -1).gather(2, ids[..., None])[..., 0]


def of_slimrl(args: argparse.Namespace, prompts: Sequence[str], dtype: str) -> Gap:
    from slimrl.algorithm.batch import make_rows
    from slimrl.config.files import load_config
    from slimrl.config.schema import TrainConfig
    from slimrl.learner.forward import Microbatcher
    from slimrl.model.loading import load_policy
    from slimrl.randomness import uniforms
    from slimrl.records import Group, Plan, Problem, Rollout
    from slimrl.rollout import Request
    from slimrl.rollout.engine import RolloutEngine

    config = load_config(TrainConfig, [], [f"model.path={args.model}", f"model.dtype={dtype}"])
    policy = load_policy(config.model)
    started = time.perf_counter()
    shape = {"samples": args.samples, "positions": args.max_new_tokens}
    asked = [
        Request(tuple(policy.tokenizer(p, add_special_tokens=False).input_ids), uniforms(0, "train", 0, p, **shape))
        for p in prompts
    ]
    drawn = RolloutEngine(policy, slots=128).generate(asked, max_new_tokens=args.max_new_tokens, temperature=1.0)
    problem = Problem("p", "", "")
    groups = [Group(tuple(Rollout(problem, c, "", False, {}, 0.0) for c in group), 0) for group in drawn]
    rows = make_rows(groups, overlong_filtering=False, step=0, pad_id=policy.pad_id)
    microbatcher = Microbatcher(config, Plan(slots=128, microbatch_tokens=4096, recompute=False))
    trainer = microbatcher.logprobs(policy, rows, rows.completion_mask)
    mask = rows.completion_mask
    return Gap(rows.sampler_logprobs[mask], trainer[mask], time.perf_counter() - started)


def lines(args: argparse.Namespace, prompts: Sequence[str]) -> Iterator[list[str]]:
    for dtype in args.dtypes:
        for kernel in args.kernels:
            found = (
                of_slimrl(args, prompts, dtype) if kernel == "slimrl" else of_transformers(args, prompts, dtype, kernel)
            )
            yield [dtype, kernel, *found.cells()]


def main() -> None:
    args = options()
    with args.prompts.open() as file:
        prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in islice(file, 4 * args.count)))[: args.count]
    headers = (
        "precision", "attention", "tokens", "mean difference, nats", "99 % below", "largest", f"ratios outside 1 ± {CLIP}, %",
        "seconds",
    )  # fmt: skip
    for cells in (headers, ["---"] * len(headers)):
        print(f"| {' | '.join(cells)} |")
    for cells in lines(args, prompts):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
