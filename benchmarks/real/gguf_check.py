"""A model as GGUF against itself in transformers: prompts as llama.cpp reads them, and greedy answers, on built-in problems.

    python benchmarks/real/gguf_check.py builtin
    python benchmarks/real/gguf_check.py ./SmolLM2-135M-Instruct --kind q8_0 --json out.json

Needs the packages gguf and llama-cpp-python. Answers that differ are shown with transformers' margin, in nats, between the two
tokens at which they part: rounding decides below a few hundredths.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from llama_cpp import Llama
from transformers import AutoModelForCausalLM

from slimrl.config.files import load_config
from slimrl.config.schema import RootConfig
from slimrl.export.gguf import KINDS, write_gguf
from slimrl.model.loading import resolve
from slimrl.preflight.prompting import prepare_model
from slimrl.tasks import load_task


def greedy(model: Any, ids: list[int], stops: set[int], most: int) -> list[int]:
    """The most probable tokens after a prompt, by transformers."""
    out = model.generate(
        torch.tensor([ids]),
        max_new_tokens=most,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=[*stops],
    )
    return [*out[0, len(ids) :].tolist()]


def greedy_cpp(model: Llama, ids: list[int], stops: set[int], most: int) -> list[int]:
    """The same by llama.cpp."""
    found: list[int] = []
    model.reset()
    for token in model.generate(ids, temp=0.0, top_k=1, top_p=1.0, min_p=0.0, repeat_penalty=1.0):
        found.append(token)
        if token in stops or len(found) == most:
            break
    return found


def margin(model: Any, ids: list[int], ours: list[int], theirs: list[int]) -> float:
    """Nats between the first two tokens that differ, by transformers."""
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    with torch.no_grad():
        last = model(torch.tensor([[*ids, *ours[:at]]])).logits[0, -1].log_softmax(-1)
    return float(last[ours[at]] - last[theirs[at]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model, or builtin")
    parser.add_argument("--kind", choices=KINDS, default="f16")
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(RootConfig, [], [f"model.path={chosen.model}", "model.dtype=float32"])
    policy, prompter, instruction = prepare_model(config)
    stops = set(policy.stop_ids)
    task = load_task(config.task, instruction=instruction, seed=config.seed, encode=lambda *_: None, answers=False)
    prompts = [task.messages(problem) for problem in task.test[: chosen.problems]]
    texts = [prompter.text(messages) for messages in prompts]
    ids = [list(prompter.ids(messages)) for messages in prompts]
    model = AutoModelForCausalLM.from_pretrained(resolve(chosen.model), dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        path = write_gguf(Path(resolve(chosen.model)), Path(folder) / "model.gguf", chosen.kind)
        written = time.perf_counter() - began
        other = Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False, seed=0)
        read = [other.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
        rows = []
        for prompt in ids:
            ours, theirs = (f(m, prompt, stops, chosen.tokens) for f, m in ((greedy, model), (greedy_cpp, other)))
            rows.append(0.0 if ours == theirs else margin(model, prompt, ours, theirs))
    found = {
        "model": chosen.model, "kind": chosen.kind, "problems": len(ids), "prompts_alike": sum(map(list.__eq__, read, ids)),
        "answers_alike": rows.count(0.0), "margins": [row for row in rows if row], "seconds_to_write": round(written, 1),
    }  # fmt: skip
    print(" ".join(f"{key}={value}" for key, value in found.items()), file=sys.stderr)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
