"""Names under which trackers get what has none in metrics.jsonl: held-out accuracy, summaries, completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slimrl.text import turn_titles

UNTOLD = ("run", "weights", "optimizer", "inert", "confounded")
"""Parts of a summary that are no numbers."""


def evaluation_numbers(summaries: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`eval/SPLIT/accuracy` and so on."""
    return {f"eval/{split}/{key}": value for split, summary in summaries.items() for key, value in summary.items()}


def summary_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run's summary with `/` between the levels: `before/accuracy`, `difference/test/sampled/change`."""
    told = {key: value for key, value in summary.items() if key not in UNTOLD}
    return {key: float(value) for key, value in _leaves(told, "") if isinstance(value, int | float)}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}/{key}" if path else str(key))


def sample_table(step: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Rows of `rollouts/` as a table whose columns have TRL's names where it has one; the rewards are `rewards/NAME`."""
    names = sorted({name for row in rows for name in row["scores"]})
    return [
        {
            "step": step,
            "prompt": row["question"],
            "completion": _completion(row),
            **{f"rewards/{name}": row["scores"].get(name) for name in names},
            "reward": row["reward"],
            "answer": row["answer"],
            "correct": row["correct"],
            "finish": row["finish"],
            "tokens": row["tokens"],
        }
        for row in rows
    ]


def _completion(row: Mapping[str, Any]) -> str:
    """The text of a completion; of an episode all that was said, each part below its title."""
    said = row.get("turns", ())
    titles = turn_titles([role for role, _ in said], row.get("turn_rewards", ()))
    return "\n".join(f"[{title}]\n{text}" for title, (_, text) in zip(titles, said, strict=True)) or str(row["text"])


def columns_of(rows: Sequence[Mapping[str, object]]) -> tuple[list[str], list[list[object]]]:
    """Names of a table's columns, and its rows as lists."""
    names = list(rows[0]) if rows else []
    return names, [[row.get(name) for name in names] for row in rows]
