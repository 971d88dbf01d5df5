"""The workers of step.py and memory.py: SlimRL and TRL, one training step for each request.

A job holds `workload` (natural, fixed or update), `model` (folder), `device`, `dtype` (of products), `problems`, `samples`,
`max_new_tokens`, `prompts` [steps * problems] of {text, ids, answer}, `learning_rate`, `kl_coef` (0: no reference model), and

    settings    further `section.key=value` (ours)
    mode        arithmetic, one of common.py's TRL_MODES (TRL)
    lora        rank of the adapter that is trained, alpha 32; 0 or absent: all weights
    rows        rows of one micro-batch (TRL)
    checkpoint  gradient checkpointing (TRL)

`natural` runs the built-in task; `fixed` always samples `max_new_tokens` and pays by a function of the tokens; `update`
trains on given completions and samples nothing. A step answers with `seconds`, `rollout`, `lengths` [P][samples],
`reward` (mean), and the process's memory.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from common import Channel, Message, memory_status, worker_main

if TYPE_CHECKING:
    from slimrl.algorithm.groups import Collected
    from slimrl.records import Group, Problem


def hashes_reward(text: str, answer: str) -> float:
    """1 where the only `####` is followed by the gold answer and nothing else: what SlimRL's checker says, in short."""
    _, marker, after = text.partition("####")
    try:
        return float(bool(marker) and "\n" not in after.strip() and Fraction(after.strip()) == Fraction(answer))
    except (ValueError, ZeroDivisionError):
        return 0.0


def token_reward(ids: Sequence[int]) -> float:
    """0 to 1, decided by the tokens alone and different within a group."""
    return sum(ids) % 97 / 96


def given_completion(job: Message, row: int) -> list[int]:
    """The completion of row `row` of the workload `update`: words of a fixed, scrambled order."""
    return [4 + (row * 7919 + i * 104729) % 90 for i in range(job["max_new_tokens"])]


def synchronize(job: Message) -> None:
    """Wait for the GPU, so that the clock sees its work."""
    if job["device"] == "cuda":
        import torch

        torch.cuda.synchronize()


def memory(job: Message) -> Message:
    """Bytes: resident now, the peak so far, and the GPU's peak where there is one."""
    result: Message = {"resident": memory_status("VmRSS"), "peak": memory_status("VmHWM")}
    if job["device"] == "cuda":
        import torch

        result["gpu_peak"] = torch.cuda.max_memory_allocated()
    return result


def ours(job: Message, channel: Channel) -> None:
    """SlimRL, through the functions that `slimrl train` calls."""
    from slimrl.config.files import load_config
    from slimrl.config.schema import TrainConfig
    from slimrl.learner.forward import Microbatcher
    from slimrl.learner.learner import Learner

    imported = memory(job)
    settings = [
        f"model.path={job['model']}",
        f"model.device={job['device']}",
        f"model.dtype={job['dtype']}",
        f"optimizer.learning_rate={job['learning_rate']}",
        f"algorithm.kl_coef={job['kl_coef']}",
        f"model.lora.rank={job.get('lora', 0)}",
        f"output={tempfile.gettempdir()}",
        f"rollout.problems={job['problems']}",
        f"rollout.group_size={job['samples']}",
        f"rollout.max_new_tokens={job['max_new_tokens']}",
        f"rollout.slots={job['problems'] * job['samples']}",
    ]
    config = load_config(TrainConfig, [], [*settings, *job["settings"]])
    collect, policy, plan = {"natural": natural_groups, "fixed": fixed_groups, "update": given_groups}[job["workload"]](
        job, config
    )
    learner = Learner(policy, config, Microbatcher(config, plan), reward_weights={})
    ready = memory(job)

    def run(message: Message) -> Message:
        step = message["number"]
        started = time.perf_counter()
        collected = collect(step)
        rolled = time.perf_counter()
        metrics = learner.update(collected.groups, step).metrics
        synchronize(job)
        done = time.perf_counter()
        rollouts = [rollout for group in collected.groups for rollout in group.rollouts]
        result: Message = {
            "seconds": done - started,
            "rollout": rolled - started,
            "lengths": [[len(r.completion.token_ids) for r in g.rollouts] for g in collected.groups],
            "reward": sum(r.reward for r in rollouts) / len(rollouts),
            "sampler_gap": metrics["sampling/sampling_logp_difference/mean"],
            "microbatch_tokens": plan.microbatch_tokens,
            "imported": imported,
            "ready": ready,
            "memory": memory(job),
        }
        if job["workload"] == "natural":
            result["prompts"] = [len(group.rollouts[0].completion.prompt_ids) for group in collected.groups]
            # TRL is paid by the short checker: both must agree on what ours has sampled
            result["disagreements"] = sum(hashes_reward(r.text, r.problem.answer) != r.reward for r in rollouts)
        return result

    channel.serve(run)


def natural_groups(job: Message, config: Any) -> tuple[Callable[[int], Collected], Any, Any]:
    """The built-in task, sampled and scored as in `slimrl train`."""
    from slimrl.algorithm.groups import collect_groups
    from slimrl.preflight.setup import prepare_training

    training = prepare_training(config)
    setup = training.setup

    def collect(step: int) -> Collected:
        return collect_groups(
            setup.training_problems(step=step, count=job["problems"]),
            partial(training.roll_out, stream="train", step=step),
            count=job["problems"],
        )

    return collect, setup.policy, setup.memory.plan


def planned(job: Message, policy: Any, config: Any) -> Any:
    """The sizes that `slimrl train` would choose in the memory that is free now, but for those that the settings name."""
    from slimrl.preflight.memory import Call, plan_memory

    longest, rows = max(len(prompt["ids"]) for prompt in job["prompts"]), config.rollout.slots
    return plan_memory(policy, config, Call(longest, rows), training=True).plan


def fixed_groups(job: Message, config: Any) -> tuple[Callable[[int], Collected], Any, Any]:
    """Completions of full length: a policy that honours no stop id."""
    from dataclasses import replace

    from slimrl.algorithm.groups import collect_groups
    from slimrl.model.loading import load_policy
    from slimrl.randomness import uniforms
    from slimrl.records import Group, Problem, Rollout
    from slimrl.rollout import Request
    from slimrl.rollout.engine import RolloutEngine

    policy = load_policy(config.model)
    engine = RolloutEngine(replace(policy, stop_ids=()), slots=config.rollout.slots)
    problems = [Problem(str(i), prompt["text"], "0") for i, prompt in enumerate(job["prompts"])]

    def roll_out(asked: Sequence[Problem], *, step: int) -> list[Group]:
        shape = {"samples": job["samples"], "positions": job["max_new_tokens"]}
        requests = [
            Request(tuple(job["prompts"][int(p.id)]["ids"]), uniforms(0, "train", step, p.id, **shape)) for p in asked
        ]
        sampled = engine.generate(requests, max_new_tokens=job["max_new_tokens"], temperature=1.0)
        return [
            Group(
                tuple(
                    Rollout(problem, c, policy.decode(c.token_ids), False, {}, token_reward(c.token_ids)) for c in group
                ),
                step,
            )
            for problem, group in zip(asked, sampled, strict=True)
        ]

    def collect(step: int) -> Collected:
        first = step * job["problems"]
        asked = iter(problems[first : first + job["problems"]])
        return collect_groups(asked, partial(roll_out, step=step), count=job["problems"])

    return collect, policy, planned(job, policy, config)


def given_groups(job: Message, config: Any) -> tuple[Callable[[int], Collected], Any, Any]:
    """The same completions in every step, as if they had just been sampled."""
    from slimrl.algorithm.groups import Collected
    from slimrl.model.loading import load_policy
    from slimrl.records import Completion, Group, Problem, Rollout

    def group(index: int, step: int) -> Group:
        rollouts = []
        prompt = job["prompts"][index]
        for row in range(index * job["samples"], (index + 1) * job["samples"]):
            ids = tuple(given_completion(job, row))
            completion = Completion(tuple(prompt["ids"]), ids, (-1.0,) * len(ids), "length")
            rollouts.append(Rollout(Problem(str(index), "", "0"), completion, "", False, {}, token_reward(ids)))
        return Group(tuple(rollouts), step)

    def collect(step: int) -> Collected:
        groups = tuple(group(index, step) for index in range(job["problems"]))
        return Collected(groups, (), groups, len(groups))

    policy = load_policy(config.model)
    return collect, policy, planned(job, policy, config)


def trl_settings(job: Message, folder: str) -> Any:
    """The algorithm of `slimrl train` in TRL's words, in the arithmetic of the job's mode."""
    from trl import GRPOConfig

    cuda, total = job["device"] == "cuda", job["problems"] * job["samples"]
    fixed = {"min_new_tokens": job["max_new_tokens"]}
    vllm: Message = {}
    if job.get("vllm"):
        fixed = {"min_tokens": job["max_new_tokens"]}
        longest = max(len(prompt["ids"]) for prompt in job["prompts"]) + job["max_new_tokens"]
        # in the trainer's own process; what it would correct for needs log-probabilities that are computed again
        vllm = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": longest}
        vllm |= {"vllm_importance_sampling_correction": False, "vllm_gpu_memory_utilization": 0.5}
    return GRPOConfig(
        output_dir=folder,
        loss_type="grpo",
        beta=job["kl_coef"],
        scale_rewards="group",
        num_generations=job["samples"],
        max_completion_length=job["max_new_tokens"],
        temperature=1.0,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta2=0.99,
        max_grad_norm=1.0,
        per_device_train_batch_size=job["rows"],
        gradient_accumulation_steps=total // job["rows"],
        gradient_checkpointing=job["checkpoint"],
        generation_kwargs=fixed if job["workload"] == "fixed" else None,
        bf16=job["mode"] == "autocast",
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        shuffle_dataset=False,
        max_steps=len(job["prompts"]) // job["problems"],
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **vllm,
    )


def trl(job: Message, channel: Channel) -> None:
    """TRL's GRPOTrainer, its training loop stopped after every step until the next is asked for."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    imported = memory(job)
    prompts = job["prompts"]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if any(tokenizer(p["text"]).input_ids != p["ids"] for p in prompts):
        raise ValueError("its prompts have other token ids than ours")
    last: Message = {}

    def reward(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        if job["workload"] == "natural":
            values = [hashes_reward(text, gold) for text, gold in zip(completions, answer, strict=True)]
        else:
            values = [token_reward(ids) for ids in completion_ids]
        lengths = [len(ids) for ids in completion_ids]
        last["reward"] = sum(values) / len(values)
        last["lengths"] = [lengths[i : i + job["samples"]] for i in range(0, len(lengths), job["samples"])]
        return values

    def given(texts: list[str], trainer: Any) -> dict[str, Any]:
        """Completions that are there already, in place of sampling."""
        del trainer
        ids = [tokenizer(text).input_ids for text in texts]
        return {
            "prompt_ids": ids,
            "completion_ids": [given_completion(job, row) for row in range(len(texts))],
            "logprobs": None,
        }

    class Trainer(GRPOTrainer):
        """With a clock around the sampling."""

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = super()._generate(*args, **kwargs)
            synchronize(job)
            last["rollout"] = time.perf_counter() - started
            return result

    class OnRequest(TrainerCallback):
        """One step for each request."""

        started = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, state
            synchronize(job)
            seconds = time.perf_counter() - self.started
            channel.send({"seconds": seconds, **last, "imported": imported, "ready": ready, "memory": memory(job)})
            if channel.receive() is None:
                control.should_training_stop = True
            self.started = time.perf_counter()

    weights = torch.bfloat16 if job["mode"] == "bfloat16" else torch.float32
    adapter = None
    if rank := job.get("lora"):
        from peft import LoraConfig

        adapter = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        pace = OnRequest()
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=weights, attn_implementation="sdpa"),
            reward_funcs=reward,
            args=trl_settings(job, folder),
            train_dataset=Dataset.from_dict(
                {key: [p[key] for p in prompts] for key in ("text", "answer")}
            ).rename_column("text", "prompt"),
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[pace],
            rollout_func=given if job["workload"] == "update" else None,
        )
        ready = memory(job)
        channel.ready()
        if channel.receive() is not None:
            pace.started = time.perf_counter()
            trainer.train()


def trl_vllm(job: Message, channel: Channel) -> None:
    """TRL with vLLM as its sampler."""
    trl(job | {"vllm": True}, channel)


def export(job: Message, channel: Channel) -> None:
    """Not a trainer: the prompts of the built-in task, step by step, as `slimrl train` would ask them."""
    from slimrl.config.files import load_config
    from slimrl.config.schema import TrainConfig
    from slimrl.preflight.setup import prepare_training

    overrides = [f"model.path={job['model']}", "model.device=cpu", "model.dtype=float32"]
    overrides += [f"rollout.{key}={job[key]}" for key in ("problems", "max_new_tokens")]
    setup = prepare_training(load_config(TrainConfig, [], overrides)).setup

    def run(message: Message) -> Message:
        prompts = []
        for step in range(message["steps"]):
            problems = setup.training_problems(step=step, count=job["problems"])
            for problem in islice(problems, job["problems"]):
                text = setup.prompter.text(setup.task.messages(problem))
                prompts.append({"text": text, "ids": list(setup.prompt_ids(problem)), "answer": problem.answer})
        return {"prompts": prompts}

    channel.serve(run)


if __name__ == "__main__":
    worker_main({"ours": ours, "trl": trl, "trl-vllm": trl_vllm, "export": export})
