"""TRL's GRPOTrainer on the prompts that `prompts.py` wrote, with the settings of a run of `slimrl train`; leaves a model.

Runs in TRL's own environment (benchmarks/README.md). Prints one line of JSON a step (seconds, mean reward, mean length), and at
the end the seconds of this process's steps and the peak of resident memory. The same command continues from the last checkpoint
in OUT. `slimrl eval OUT/final` measures the model like any other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import GIB, memory_status
from trainers import hashes_reward


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of the warm-started model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=16, help="of a step")
    parser.add_argument("--samples", type=int, default=8, help="completions of a problem")
    parser.add_argument("--rows", type=int, default=32, help="of a micro-batch")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="an adapter of this rank, alpha 32")
    parser.add_argument(
        "--dtype",
        choices=("float32", "autocast", "bfloat16"),
        default="autocast",
        help="autocast: TRL's bf16, float32 weights",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=10, metavar="STEPS", help="between checkpoints")
    return parser.parse_args()


def main() -> None:
    args = options()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rows = [json.loads(line) for line in args.prompts.read_text().splitlines()]
    last: dict[str, float] = {}

    def reward(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        values = [hashes_reward(text, gold) for text, gold in zip(completions, answer, strict=True)]
        last["reward"] = sum(values) / len(values)
        last["length"] = sum(map(len, completion_ids)) / len(completion_ids)
        return values

    class Clock(TrainerCallback):
        begun = last_end = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begun = self.last_end = time.perf_counter()

        def on_step_end(self, _args: Any, state: Any, _control: Any, **__: Any) -> None:
            now = time.perf_counter()
            print(json.dumps({"step": state.global_step, "seconds": now - self.last_end, **last}), flush=True)
            self.last_end = now

    clock = Clock()
    adapter = LoraConfig(r=args.lora, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    total = args.problems * args.samples
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            args.model,
            dtype=torch.bfloat16 if args.dtype == "bfloat16" else torch.float32,
            attn_implementation="sdpa",
        ),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(args.out), loss_type="grpo", beta=0.0, scale_rewards="group", num_generations=args.samples,
            max_completion_length=args.max_new_tokens, temperature=1.0, learning_rate=args.learning_rate,
            lr_scheduler_type="constant", optim="adamw_torch_fused", adam_beta2=0.99, max_grad_norm=1.0,
            per_device_train_batch_size=args.rows, gradient_accumulation_steps=total // args.rows,
            gradient_checkpointing=False, bf16=args.dtype == "autocast", use_cpu=not torch.cuda.is_available(),
            shuffle_dataset=False, max_steps=len(rows) // args.problems, logging_strategy="no", report_to="none",
            save_strategy="steps", save_steps=args.save_every, save_total_limit=1, disable_tqdm=True, seed=args.seed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        callbacks=[clock],
        peft_config=adapter if args.lora else None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=any(args.out.glob("checkpoint-*")))
    seconds = clock.last_end - clock.begun
    model = trainer.model.merge_and_unload() if args.lora else trainer.model
    model.save_pretrained(args.out / "final")
    trainer.processing_class.save_pretrained(args.out / "final")
    print(json.dumps({"seconds": seconds, "peak_gib": memory_status("VmHWM") / GIB}))


if __name__ == "__main__":
    main()
