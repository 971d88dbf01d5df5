"""What the work costs at least: operations and bytes of a model of known shape, and what the machine can do.

No limit here is of our making: it counts each prompt once for its whole group, reads the weights once per decode step and
each row's keys and values once, and lets arithmetic and memory overlap perfectly. A limit is that of a precision: its
products, and its bytes per weight.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import Message, Worker

ITEMSIZE = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """A Qwen2, or a Llama without biases."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    kind: Literal["qwen2", "llama"] = "qwen2"
    tied: bool = True
    """The embedding is the output layer too."""

    @property
    def body(self) -> int:
        """Parameters of the layers and the last norm."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * queries + 2 * self.hidden * keys
        attention += queries + 2 * keys if self.kind == "qwen2" else 0
        return self.layers * (attention + 3 * self.hidden * self.intermediate + 2 * self.hidden) + self.hidden

    @property
    def head(self) -> int:
        """Parameters of the output layer."""
        return self.vocab * self.hidden

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with."""
        return self.body + self.head

    @property
    def parameters(self) -> int:
        return self.multiplied + (0 if self.tied else self.head)

    def cache_bytes(self, itemsize: int) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize

    def attention_flops(self, keys: float) -> float:
        """Of one query against so many keys, over all layers."""
        return 4.0 * self.layers * self.heads * self.head_dim * keys

    def config(self) -> dict[str, Any]:
        """Arguments of transformers' Qwen2Config or LlamaConfig."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **({"head_dim": self.head_dim} if self.kind == "llama" else {}),
        }


SHAPES = {
    "tiny": Shape(256, 64, 128, 2, 2, 1, 32),
    "tiny-llama": Shape(256, 96, 128, 2, 3, 1, 32, "llama"),
    "0.9M": Shape(616, 128, 384, 4, 4, 2, 32),
    "2.4M": Shape(2048, 192, 512, 5, 6, 2, 32),
    "20M": Shape(8192, 384, 1024, 10, 6, 2, 64),
    "90M": Shape(32768, 640, 1728, 16, 10, 2, 64),
    "135M": Shape(49152, 576, 1536, 30, 9, 3, 64, "llama"),
    "0.5B": Shape(151936, 896, 4864, 24, 14, 2, 64),
}
"""0.9M is the built-in model's shape, 135M that of SmolLM2-135M, 0.5B that of Qwen2.5-0.5B; the tiny ones are for a quick
look at the scripts."""
LETTERS = "".join(map(chr, range(33, 127)))
"""What the tokenizer of a random model knows: id 4 is the first. Prompts are made of these, completions of any id."""


def shape_of(folder: Path) -> Shape:
    """The shape of a saved model; exits where it is neither a Qwen2 nor a Llama without biases."""
    config = json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    if kind not in ("qwen2", "llama") or config.get("attention_bias") or config.get("mlp_bias"):
        raise SystemExit(
            f"the work of {folder.name} cannot be counted: it is neither a Qwen2 nor a Llama without biases"
        )
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Shape(
        config["vocab_size"],
        hidden,
        config["intermediate_size"],
        config["num_hidden_layers"],
        heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        kind=kind,
        tied=config.get("tie_word_embeddings", False),
    )


def write_model(shape: Shape, folder: Path) -> Path:
    """A folder with random float32 weights and a tokenizer of single letters, for every engine to load."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    settings = shape.config()
    qwen2 = shape.kind == "qwen2"
    model = Qwen2ForCausalLM(Qwen2Config(**settings)) if qwen2 else LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(folder)
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate([*special, *LETTERS])},
        merges=[],
        **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True)),
    ).save_pretrained(folder)
    return folder


def random_prompts(count: int, length: int) -> list[list[int]]:
    """Token ids that the tokenizer can write, [count][length]."""
    return np.random.default_rng(0).integers(4, 4 + len(LETTERS), size=(count, length)).tolist()


def prompt_text(ids: Sequence[int]) -> str:
    """The text that the tokenizer of a random model turns into these ids."""
    return "".join(LETTERS[i - 4] for i in ids)


@dataclass(frozen=True)
class Machine:
    """What torch reaches here in one precision."""

    name: str
    dtype: str
    gemm: float
    """GFLOP/s of a large matrix product."""
    gemm_rows: float
    """GFLOP/s of a product of the workload's row count with the layers' own matrices, one after another."""
    read: float
    """GB/s of reading a large array."""
    rows: int

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Limit:
    """The least that a piece of work costs on a machine, in seconds."""

    seconds: float
    arithmetic: float
    """Seconds for the operations alone."""
    memory: float
    """Seconds for the bytes alone."""
    flops: float
    bytes: float
    steps: int = 0
    """Decode steps; 0 for an update."""
    step_flops: float = 0.0
    """Of one decode step, on average; likewise `step_bytes`."""
    step_bytes: float = 0.0


def rollout_limit(shape: Shape, prompts: Sequence[int], lengths: Sequence[Sequence[int]], machine: Machine) -> Limit:
    """Of sampling completions of `lengths` [P][G] tokens after prompts of so many tokens [P], all rows at once."""
    prompt = np.repeat(np.array(prompts, dtype=np.float64), [len(group) for group in lengths])
    length = np.concatenate([np.array(group) for group in lengths])
    weights = shape.multiplied * machine.itemsize
    first = 2.0 * shape.body * sum(prompts) + 2.0 * shape.head * len(prompts)
    first += sum(shape.attention_flops(p / 2) * p for p in prompts)
    flops, read = [first], [float(weights)]
    for step in range(1, int(length.max())):
        context = prompt[length > step] + step
        flops.append(2.0 * shape.multiplied * len(context) + shape.attention_flops(float(context.sum())))
        read.append(weights + shape.cache_bytes(machine.itemsize) * float(context.sum()))
    arithmetic, memory = np.array(flops) / (machine.gemm * 1e9), np.array(read) / (machine.read * 1e9)
    seconds = float(np.maximum(arithmetic, memory).sum())
    steps = len(flops) - 1
    means = (sum(flops[1:]) / steps, sum(read[1:]) / steps) if steps else (0.0, 0.0)
    return Limit(seconds, float(arithmetic.sum()), float(memory.sum()), sum(flops), sum(read), steps, *means)


def update_limit(
    shape: Shape,
    prompts: Sequence[int],
    lengths: Sequence[Sequence[int]],
    machine: Machine,
    *,
    reference: bool,
    adapter: bool = False,
) -> Limit:
    """Of one forward, one backward (two forwards' worth) and, with a reference, one more forward; AdamW's traffic. Beside an
    adapter, weights have no gradient and are not updated, and the adapter's own arithmetic and traffic are left out.
    """
    products = attention = 0.0
    for prompt, group in zip(prompts, lengths, strict=True):
        products += 2.0 * shape.body * (prompt + sum(group)) + 2.0 * shape.head * sum(group)
        attention += shape.attention_flops(prompt / 2) * prompt
        attention += sum(shape.attention_flops(prompt + n / 2) * n for n in group)
    flops = (products + attention) * (4 if reference else 3) - (products if adapter else 0.0)
    # float32 weight and two moments read and written, the gradient read; in bfloat16 the float32 weight is the optimizer's
    # own, the gradient is half as wide, and the model's weight is written besides
    each = 6 * 4 + (4 if machine.itemsize == 4 else 2 * machine.itemsize)
    read = 0.0 if adapter else float(each * shape.parameters)
    arithmetic, memory = flops / (machine.gemm * 1e9), read / (machine.read * 1e9)
    return Limit(arithmetic + memory, arithmetic, memory, flops, read)


def describe(name: str, shape: Shape, limit: Limit, machine: Machine) -> str:
    """One line with the arithmetic and the bytes of a workload beside what the machine can do."""
    text = (
        f"{name}: {shape.parameters / 1e6:.1f}M parameters, {limit.flops / 1e9:.0f} GFLOP, {limit.bytes / 1e9:.2f} GB; "
    )
    if limit.steps:
        text += (
            f"a decode step takes {1e3 * limit.step_flops / (machine.gemm * 1e9):.2f} ms for its operations "
            f"({1e3 * limit.step_flops / (machine.gemm_rows * 1e9):.2f} ms at the speed of {machine.rows} rows) and "
            f"{1e3 * limit.step_bytes / (machine.read * 1e9):.2f} ms for its bytes; "
        )
    return text + f"limit {limit.seconds:.3f} s."


def describe_machines(machines: Mapping[str, Machine]) -> str:
    """What was measured of the machine, in one line."""
    first = next(iter(machines.values()))
    products = "; ".join(
        f"{dtype}: large matrix product {m.gemm:.0f} GFLOP/s, product of {m.rows} rows {m.gemm_rows:.0f} GFLOP/s"
        for dtype, m in machines.items()
    )
    return f"Machine: {first.name}; reading {first.read:.1f} GB/s; {products}."


def machine_record(machines: Mapping[str, Machine]) -> Message:
    """The same for the JSON file."""
    return {"name": next(iter(machines.values())).name, **{dtype: asdict(m) for dtype, m in machines.items()}}


def ask_machine(args: argparse.Namespace, shape: Shape, rows: int, dtypes: Sequence[str]) -> dict[str, Machine]:
    """What `measure_machine` finds in a worker of its own, by precision."""
    meter = Worker(args, "engines.py", "machine", {"device": args.device})
    measured = meter.run(shape=asdict(shape), rows=rows, dtypes=list(dict.fromkeys(dtypes)))
    meter.close()
    if measured is None:
        raise SystemExit(f"the machine cannot be measured: {meter.problem}")
    return {dtype: Machine(**fields) for dtype, fields in measured.items()}


def measure_machine(shape: Shape, rows: int, device: str, dtypes: Sequence[str]) -> Message:
    """The fields of a Machine by precision, each the best of several tries; runs in a worker, with the engines' environment."""
    import torch
    from torch.nn.functional import linear

    def best(work: Any, tries: int) -> float:
        seconds = []
        for _ in range(tries):
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    def products(dtype: str) -> tuple[float, float]:
        """GFLOP/s of a large product, and of `rows` rows with the layers' matrices."""
        kind = {"device": device, "dtype": getattr(torch, dtype)}
        size = 8192 if device == "cuda" else 2048
        square = torch.randn(size, size, **kind)
        fastest = min(best(lambda: square @ square, 8), best(lambda: linear(square, square), 8))
        # as many matrices as the model has layers, so that small models may stay in the cache here as they do there
        matrices = [torch.randn(shape.intermediate, shape.hidden, **kind) for _ in range(3 * shape.layers)]
        inputs = torch.randn(rows, shape.hidden, **kind)
        flops = 2.0 * rows * shape.hidden * shape.intermediate * len(matrices)
        return 2.0 * size**3 / fastest / 1e9, flops / best(
            lambda: [linear(inputs, matrix) for matrix in matrices], 10
        ) / 1e9

    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    with torch.inference_mode():
        array = torch.ones((4 if device == "cuda" else 1) * 2**26, device=device)
        read = array.numel() * 4 / best(array.sum, 10) / 1e9
        return {dtype: asdict(Machine(name, dtype, *products(dtype), read, rows)) for dtype in dtypes}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"
