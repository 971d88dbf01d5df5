"""The workers of rollouts.py and scaling.py: each loads one model and answers `{"number": n}` with one timed run.

A job holds `model` (folder), `device`, `dtype`, `prompts` [P][ids], `samples`, `max_new_tokens`, `stop` (whether stop ids
are honoured), `eos` (the stop ids), `logprobs` (whether peers return them too). A run answers with `seconds` and `lengths`
[P][samples] in tokens, the stop token included. A request may carry other `prompts`, `samples` or `max_new_tokens`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from common import Channel, Message, worker_main
from limits import Shape, measure_machine

Lengths = list[list[int]]
PAD = 0
"""The padding id of every model here."""


def timed(job: Message, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds on the clock, with nothing of a GPU's work left over on either side."""
    import torch

    cuda = job["device"] == "cuda"
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def answer(job: Message, seconds: float, lengths: Lengths) -> Message:
    """What a run reports."""
    import torch

    result: Message = {"seconds": seconds, "lengths": lengths, "tokens": sum(map(sum, lengths))}
    if job["device"] == "cuda":
        result["gpu_memory"] = torch.cuda.max_memory_allocated()
    return result


def load_transformers(job: Message) -> Any:
    """The model as transformers loads it, with its fastest attention that needs nothing further installed."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa")
    model.generation_config = GenerationConfig()  # generate falls back on the model's own, say a repetition penalty
    return model.to(job["device"]).eval()


def full_support(cell: Message, stops: list[int] | int | None) -> Any:
    """transformers' settings for plain sampling at temperature 1."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=cell["max_new_tokens"],
        num_return_sequences=cell["samples"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=PAD,
        eos_token_id=stops,
    )


def ours(job: Message, channel: Channel) -> None:
    """SlimRL's engine. It returns log-probabilities always; the uniforms that decide its draws are made in the run."""
    from dataclasses import replace

    from slimrl.config.sections import ModelConfig
    from slimrl.model.loading import load_policy
    from slimrl.randomness import uniforms
    from slimrl.rollout import Request
    from slimrl.rollout.engine import RolloutEngine

    policy = load_policy(ModelConfig(path=job["model"], device=job["device"], dtype=job["dtype"]))
    sampler = policy if job["stop"] else replace(policy, stop_ids=())
    engines: dict[int, RolloutEngine] = {}
    completions: list[Any] = []

    def run(message: Message) -> Message:
        if message.get("check"):
            return sampler_gap(policy, completions[: message["check"]], job)
        cell = job | message
        prompts, samples, positions = cell["prompts"], cell["samples"], cell["max_new_tokens"]
        rows = len(prompts) * samples
        if rows not in engines:
            engines[rows] = RolloutEngine(sampler, slots=rows, compiled=job.get("compiled", False))
        engine = engines[rows]

        def generate() -> list[Any]:
            requests = [
                Request(
                    tuple(prompt),
                    uniforms(0, "train", message["number"], str(i), samples=samples, positions=positions),
                )
                for i, prompt in enumerate(prompts)
            ]
            return engine.generate(requests, max_new_tokens=positions, temperature=1.0)

        seconds, completions[:] = timed(job, generate)
        return answer(job, seconds, [[len(c.token_ids) for c in group] for group in completions])

    channel.serve(run)


def compiled(job: Message, channel: Channel) -> None:
    """SlimRL's engine with rollout.compile=true; what is compiled at first falls into the run that is thrown away."""
    ours(job | {"compiled": True}, channel)


def sampler_gap(policy: Any, completions: list[Any], job: Message) -> Message:
    """How far the sampler's log-probabilities are from the trainer's, in nats, as a run of `slimrl train` logs it."""
    from slimrl.config.files import load_config
    from slimrl.config.schema import TrainConfig
    from slimrl.learner.forward import Microbatcher
    from slimrl.learner.learner import Learner
    from slimrl.records import Group, Plan, Problem, Rollout

    settings = ["algorithm.kl_coef=0", "optimizer.learning_rate=1e-12"]
    settings += [f"model.{key}={job[key]}" for key in ("device", "dtype")]
    config = load_config(TrainConfig, [], [*settings, f"rollout.max_new_tokens={job['max_new_tokens']}"])
    problem = Problem("benchmark", "", "0")
    groups = tuple(
        Group(tuple(Rollout(problem, c, "", False, {}, float(i % 2)) for i, c in enumerate(group)), 0)
        for group in completions
    )
    plan = Plan(slots=1, microbatch_tokens=16384, recompute=False)
    metrics = Learner(policy, config, Microbatcher(config, plan), reward_weights={}).update(groups, 0).metrics
    return {name: metrics[f"sampling/sampling_logp_difference/{name}"] for name in ("mean", "max")}


def hf(job: Message, channel: Channel) -> None:
    """transformers' generate: one static batch of all rows, no log-probabilities asked for."""
    import torch

    model = load_transformers(job)
    stops = job["eos"] if job["stop"] else None
    # without a stop id here, no stopping rule is run at all
    model.generation_config.eos_token_id = model.config.eos_token_id = stops

    def run(message: Message) -> Message:
        torch.manual_seed(message["number"])
        cell = job | message
        prompts = cell["prompts"]
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts], device=job["device"])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=job["device"])
        settings = full_support(cell, stops)

        def generate() -> torch.Tensor:
            with torch.inference_mode():
                return model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].cpu()

        seconds, out = timed(job, generate)
        rows = [next((i for i, t in enumerate(row, 1) if t in (stops or ())), len(row)) for row in out.tolist()]
        return answer(job, seconds, grouped(rows, cell["samples"]))

    channel.serve(run)


def continuous(job: Message, channel: Channel) -> None:
    """transformers' own continuous batching (`generate_batch`)."""
    import torch
    from transformers import ContinuousBatchingConfig

    model = load_transformers(job)

    def run(message: Message) -> Message:
        torch.manual_seed(message["number"])
        cell = job | message
        rows = len(cell["prompts"]) * cell["samples"]
        settings = full_support(cell, job["eos"] if job["stop"] else -1)
        batching: dict[str, Any] = {"return_logprobs": job["logprobs"], "max_memory_percent": 0.5}
        if job["device"] == "cpu":
            # left alone it takes over half of the machine's memory, and touches all of it in every call
            longest = max(map(len, cell["prompts"])) + cell["max_new_tokens"]
            blocks = rows * (math.ceil(longest / 256) + 1)
            batching |= {"page_size": 256, "num_blocks": blocks, "max_batch_tokens": max(1024, rows)}

        def generate() -> list[Any]:
            config = ContinuousBatchingConfig(**batching)
            out = model.generate_batch(
                cell["prompts"], generation_config=settings, continuous_batching_config=config, progress_bar=False
            )
            return list(out.values())

        seconds, out = timed(job, generate)
        failed = next((o.error for o in out if o.error), None)
        if failed or len(out) != rows:
            raise RuntimeError(failed or f"{len(out)} of {rows} completions came back")
        return answer(job, seconds, grouped([len(o.generated_tokens) for o in out], cell["samples"]))

    channel.serve(run)


def vllm(job: Message, channel: Channel) -> None:
    """vLLM, offline, with its defaults; the memory of prompts seen in earlier runs is cleared, as new weights would."""
    from vllm import LLM, SamplingParams

    rows = len(job["prompts"]) * job["samples"]
    engine = LLM(
        job["model"],
        skip_tokenizer_init=True,
        dtype=job["dtype"],
        max_model_len=max(map(len, job["prompts"])) + job["max_new_tokens"],
        max_num_seqs=rows,
        max_num_batched_tokens=16384,
        gpu_memory_utilization=0.5,
    )

    def run(message: Message) -> Message:
        cell = job | message
        stopping = {"stop_token_ids": job["eos"]} if job["stop"] else {"ignore_eos": True}
        settings = SamplingParams(
            n=cell["samples"],
            max_tokens=cell["max_new_tokens"],
            temperature=1.0,
            detokenize=False,
            logprobs=0 if job["logprobs"] else None,
            **stopping,
        )
        engine.reset_prefix_cache()
        prompts = [{"prompt_token_ids": prompt} for prompt in cell["prompts"]]
        seconds, out = timed(job, lambda: engine.generate(prompts, settings, use_tqdm=False))
        return answer(job, seconds, [[len(c.token_ids) for c in request.outputs] for request in out])

    channel.serve(run)


def machine(job: Message, channel: Channel) -> None:
    """Not an engine: measures what torch reaches in this environment."""
    channel.serve(
        lambda message: measure_machine(Shape(**message["shape"]), message["rows"], job["device"], message["dtypes"])
    )


def grouped(values: list[int], size: int) -> Lengths:
    """A flat list cut into groups."""
    return [values[i : i + size] for i in range(0, len(values), size)]


if __name__ == "__main__":
    worker_main({f.__name__: f for f in (ours, compiled, hf, continuous, vllm, machine)})
