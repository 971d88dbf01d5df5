"""Before and after of finished runs, by seed and over seeds: one Markdown table, and small files of every verdict.

    python table.py runs/real/builtin-lora-* --verdicts results/real/builtin

Runs whose names differ in their last number alone are seeds of one method. A run's interval is over its problems, paired; a
method's is Student's over its seeds. `--verdicts` writes a CSV for each run: problem, mode, right before, right after, answers.
"""

from __future__ import annotations

import argparse
import csv
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from slimrl.statistics import interval

HEADERS = (
    "run", "sampled, %: before", "after", "change", "greedy, %: before", "after", "change", "steps", "tokens sampled", "hours",
    "peak GiB",
)  # fmt: skip


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--verdicts", type=Path, help="folder for one CSV a run")
    return parser.parse_args()


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def change(found: dict[str, float]) -> str:
    return f"{100 * found['change']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def line(name: str, summary: dict[str, Any]) -> list[str]:
    before, after, difference = summary["before"], summary["after"], summary["difference"]["test"]
    cells = [name]
    for mode, key in (("sampled", "accuracy"), ("greedy", "greedy")):
        cells += [percent(before[key]), percent(after[key]), change(difference[mode])]
    return [
        *cells,
        str(summary["steps"]),
        f"{summary['tokens_generated']:,}",
        f"{summary['seconds'] / 3600:.2f}",
        f"{summary['memory']['measured']:.1f}",
    ]


def over_seeds(method: str, summaries: list[dict[str, Any]]) -> list[str]:
    cells = [f"**{method}, {len(summaries)} seeds**"]
    for mode, key in (("sampled", "accuracy"), ("greedy", "greedy")):
        before, after = ([summary[when][key] for summary in summaries] for when in ("before", "after"))
        found = interval([summary["difference"]["test"][mode]["change"] for summary in summaries])
        cells += [percent(sum(before) / len(before)), percent(sum(after) / len(after))]
        cells.append(f"**{change({'change': found.mean, 'low': found.low, 'high': found.high})}**")
    hours = sum(summary["seconds"] for summary in summaries) / 3600
    tokens = sum(summary["tokens_generated"] for summary in summaries)
    peak = max(summary["memory"]["measured"] for summary in summaries)
    return [*cells, "", f"{tokens:,}", f"{hours:.2f}", f"{peak:.1f}"]


def write_verdicts(run: Path, target: Path) -> None:
    """Every held-out problem of a run, before and after."""
    first, *_, last = sorted((run / "evals").glob("step-*.jsonl"))
    before, after = ([json.loads(row) for row in file.read_text().splitlines()] for file in (first, last))
    target.mkdir(parents=True, exist_ok=True)
    with (target / f"{run.name}.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("id", "mode", "sample", "right_before", "right_after", "gold", "answer_before", "answer_after"))
        for old, new in zip(before, after, strict=True):
            table.writerow(
                (
                    old["id"], old["mode"], old["sample"], int(old["strict"]), int(new["strict"]), old["answer"],
                    old["extracted_strict"], new["extracted_strict"],
                )
            )  # fmt: skip


def main() -> None:
    args = options()
    found = {run: json.loads((run / "run.json").read_text()) for run in args.runs}
    finished = {run: record["summary"] for run, record in found.items() if record["status"] == "finished"}
    rows = []
    for method, runs in groupby(sorted(finished), key=lambda run: run.name.rpartition("-")[0]):
        seeds = list(runs)
        rows += [line(run.name, finished[run]) for run in seeds]
        if len(seeds) > 1:
            rows.append(over_seeds(method, [finished[run] for run in seeds]))
        for run in seeds if args.verdicts else ():
            write_verdicts(run, args.verdicts)
    for cells in (HEADERS, ["---"] * len(HEADERS), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
