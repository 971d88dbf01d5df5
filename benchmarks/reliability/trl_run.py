"""One run of TRL's GRPOTrainer in a process of its own, as its documentation writes such a script.

    python trl_run.py JOB.json

The job: `output` (folder), `model` (folder), `steps`, `save_steps`, `updates` (num_iterations: optimizer updates for each
sampled batch), `rows` (of the data), `hostile` (name of a function of trl_rewards.py, or empty), `address_space` (bytes, 0:
no limit), `settings` (further fields of GRPOConfig), `problems`, `completions`, `tokens`. Beside JOB.json lie then `began`,
made when training begins, and `ended`, with a digest of the weights when it is over.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]


def main() -> None:
    file = Path(sys.argv[1]).resolve()
    job = json.loads(file.read_text())
    if job["address_space"]:
        resource.setrlimit(resource.RLIMIT_AS, (job["address_space"],) * 2)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_utils import get_last_checkpoint
    from trl import GRPOConfig, GRPOTrainer

    import trl_rewards

    torch.set_num_threads(1)
    output = Path(job["output"])
    functions = [trl_rewards.correct, trl_rewards.tokens]
    if job["hostile"]:
        functions.append(trl_rewards.HOSTILE[job["hostile"]])
    config = GRPOConfig(
        output_dir=str(output),
        max_steps=job["steps"],
        save_strategy="steps",
        save_steps=job["save_steps"],
        logging_steps=1,
        num_iterations=job["updates"],
        per_device_train_batch_size=job["problems"] * job["completions"],
        num_generations=job["completions"],
        max_completion_length=job["tokens"],
        learning_rate=1e-4,
        loss_type="grpo",
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        **job["settings"],
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        reward_funcs=functions,
        args=config,
        train_dataset=dataset(job["rows"]),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )
    (file.parent / "began").touch()
    trainer.train(resume_from_checkpoint=output.exists() and get_last_checkpoint(str(output)) is not None)
    state: dict[str, Any] = {"step": trainer.state.global_step, "weights": digest(trainer.model.state_dict())}
    state["finite"] = all(bool(t.isfinite().all()) for t in trainer.model.state_dict().values())
    (file.parent / "ended").write_text(json.dumps(state))


def dataset(rows: int) -> Any:
    """Problems of the built-in arithmetic task."""
    from datasets import Dataset

    from slimrl.config.task import ArithmeticConfig
    from slimrl.tasks.arithmetic import load

    problems = load(ArithmeticConfig(), seed=0).train[:rows]
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": p.question}], "answer": p.answer} for p in problems]
    )


def digest(tensors: dict[str, Any]) -> str:
    """Of every bit."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        result.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return result.hexdigest()


if __name__ == "__main__":
    main()
