"""Peak memory of full-vocabulary divergences with their backward pass, above what goes in: it must not grow with the tokens.

Qwen2.5-0.5B's head (151,936 tokens of width 896) for policy and reference, random hidden states. The gradient of the head, half a
GiB in float32, is part of what is measured. Every line is a process of its own; peak is the kernel's high-water mark.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

KINDS = ("reverse", "forward", "gkl", "gkl global")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measure(args.cell[0], int(args.cell[1]), args.vocabulary, args.width)))
        return
    found = []
    print("| divergence | tokens | inputs GB | peak above them GB | seconds |\n|---|---|---|---|---|")
    for kind in args.kinds:
        for tokens in args.tokens:
            sizes = ["--vocabulary", str(args.vocabulary), "--width", str(args.width)]
            command = [sys.executable, __file__, *sizes, "--cell", kind, str(tokens)]
            cell = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            found.append({"kind": kind, "tokens": tokens, **cell})
            print(
                f"| {kind} | {tokens} | {cell['inputs']:.2f} | {cell['above']:.2f} | {cell['seconds']:.1f} |",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


def measure(kind: str, tokens: int, vocabulary: int, width: int) -> dict[str, float]:
    """Gigabytes (10^9 bytes) and seconds of one forward and backward pass."""
    import time

    import torch
    from torch import nn

    from slimrl.algorithm.kl import Divergence, global_weights
    from slimrl.model.head import Head, Reference, token_statistics

    prior = global_weights(torch.ones(vocabulary) / vocabulary, 0.5) if kind == "gkl global" else None
    weights = "policy" if prior is None else "global"
    name = "gkl" if kind.startswith("gkl") else kind
    divergence = Divergence(name, 1.0, 1.0, weights, 1.0, prior)  # type: ignore[arg-type]
    head, other = (Head(nn.Linear(width, vocabulary, bias=False)) for _ in range(2))
    hidden, seen = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
    targets = torch.zeros(tokens, dtype=torch.long)
    before, started = status("VmRSS"), time.perf_counter()
    parts = token_statistics(head, hidden, targets, temperature=1.0, reference=Reference(other, seen, divergence))
    torch.stack([part.sum() for part in parts]).sum().backward()  # type: ignore[no-untyped-call]
    return {"inputs": before / 1e9, "above": (status("VmHWM") - before) / 1e9, "seconds": time.perf_counter() - started}


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
