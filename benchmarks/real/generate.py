"""Greedy answers of transformers' own `generate`, graded by a few lines of their own, beside those of `slimrl eval`.

Reads the rows that `slimrl eval ... --out rows.jsonl` wrote, asks the model the same questions through transformers alone, and
compares: how many completions are equal to the character, and how many verdicts agree. The grader knows two forms: `boxed`
takes the contents of the last `\\boxed{...}`, `hashes` what follows the last `####`. Answers are numbers. Lenient is the last
number of the text. Answers are written after every batch of questions, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import re
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder or Hub name")
    parser.add_argument("rows", type=Path, help="what slimrl eval --out wrote, with greedy completions")
    parser.add_argument("--out", type=Path, required=True, help="JSONL of the answers; one that exists is gone on with")
    parser.add_argument("--instruction", required=True, help="the system message that slimrl eval used")
    parser.add_argument("--style", choices=("boxed", "hashes"), required=True)
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=16, help="questions of one call")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--verdicts", type=Path, help="CSV of both verdicts on every problem")
    return parser.parse_args()


def number(text: str) -> Fraction | None:
    """The value of a text that is one number, else None."""
    plain = text.strip().strip("$").replace(",", "").removesuffix(".")
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def stated(text: str, style: str) -> Fraction | None:
    """The answer in the form that was asked for."""
    if style == "hashes":
        _, mark, after = text.rpartition("####")
        return number(after.strip().partition("\n")[0]) if mark else None
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return number(boxes[-1]) if boxes else None


def last_number(text: str) -> Fraction | None:
    found = NUMBER.findall(text)
    return number(found[-1]) if found else None


def answers(args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of `generate` to all questions, of which the file holds some already."""
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    left = rows[len(done) :]
    if not left:
        return done
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device).eval()
    for start in range(0, len(left), args.batch):
        asked, started = left[start : start + args.batch], time.perf_counter()
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "system", "content": args.instruction}, {"role": "user", "content": row["question"]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for row in asked
        ]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(args.device)
        with torch.no_grad():
            out = model.generate(
                **batch, do_sample=False, max_new_tokens=args.max_new_tokens, repetition_penalty=1.0,
                temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        texts = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        seconds = (time.perf_counter() - started) / len(asked)
        new = [{"id": row["id"], "text": text, "seconds": seconds} for row, text in zip(asked, texts, strict=True)]
        with args.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        done += new
        print(f"{len(done)} of {len(rows)}, {seconds:.1f} s a question", flush=True)
    return done


def main() -> None:
    args = options()
    lines = args.rows.read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["mode"] == "greedy" and row["split"] == "test"]
    found = answers(args, rows)
    if [row["id"] for row in rows] != [row["id"] for row in found]:
        raise SystemExit(f"{args.out} holds the answers to other questions; choose another --out")
    table = [compared(ours, theirs["text"], args.style) for ours, theirs in zip(rows, found, strict=True)]
    if args.verdicts:
        with args.verdicts.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    print(json.dumps(totals(table) | {"torch": torch.__version__, "transformers": transformers.__version__,
                                      "machine": platform.processor() or platform.machine()}, indent=1))  # fmt: skip


def compared(ours: dict[str, Any], text: str, style: str) -> dict[str, Any]:
    """Both verdicts on one problem; true and false as 1 and 0."""
    gold = number(ours["answer"])
    return {
        "id": ours["id"],
        "answer": ours["answer"],
        "tokens": ours["tokens"],
        "finish": ours["finish"],
        "same_text": int(ours["text"].strip() == text.strip()),
        "slimrl_strict": int(ours["strict"]),
        "generate_strict": int(stated(text, style) == gold),
        "slimrl_lenient": int(ours["lenient"]),
        "generate_lenient": int(last_number(text) == gold),
    }


def totals(table: list[dict[str, Any]]) -> dict[str, Any]:
    """Problems, right ones by each, verdicts that agree, and the problems on which they do not."""
    found: dict[str, Any] = {"problems": len(table), "same_text": sum(row["same_text"] for row in table)}
    apart = set()
    for verdict in ("strict", "lenient"):
        by_us, by_them = f"slimrl_{verdict}", f"generate_{verdict}"
        found |= {key: sum(row[key] for row in table) for key in (by_us, by_them)}
        found[f"same_{verdict}"] = sum(row[by_us] == row[by_them] for row in table)
        apart |= {row["id"] for row in table if row[by_us] != row[by_them]}
    return found | {"apart": sorted(apart)}


if __name__ == "__main__":
    main()
