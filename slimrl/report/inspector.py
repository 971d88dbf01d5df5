"""The inspector of a run's page: a bounded choice of steps and groups, and every token of their completions as markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from slimrl.report.quantities import (
    COLUMNS,
    Quantity,
    columns_of,
    is_clipped,
    shown,
    values_of,
)
from slimrl.report.record import RunRecord, read_lines
from slimrl.runs.tokens import TokenRow, read_tokens
from slimrl.text import counted, one_line, visible

NOTHING = Markup()
MOST_STEPS, MOST_GROUPS, MOST_COMPLETIONS = 12, 4, 8
"""On the page: steps of a run, groups of a step, completions of a group."""
MOST_TOKENS = 10_000
"""Of all completions on the page; a token takes about 110 bytes of it."""
LONGEST = 1_200
"""Tokens of a completion that are shown."""
FEWEST = 60
"""Tokens of a completion that are shown where many long ones share the page."""


@dataclass(frozen=True)
class Completion:
    """A completion of a group."""

    sample: int
    rewards: str
    """The weighted sum, and each reward before its weight."""
    right: bool
    facts: tuple[str, ...]
    """Advantage, length, finish reason."""
    text: str
    tokens: Markup = NOTHING
    """Empty where their numbers are not stored."""
    numbers: Markup = NOTHING
    """The rows of the table of its tokens."""
    columns: tuple[str, ...] = ()
    cut: int = 0
    """Tokens that are not shown."""


@dataclass(frozen=True)
class Group:
    """The completions of a problem."""

    problem: str
    question: str
    answer: str
    note: str
    """On the group as a whole: trained on or not, completions that are left out."""
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Step:
    """Groups of a step."""

    number: int
    heading: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Inspected:
    """Everything that the inspector shows."""

    steps: tuple[Step, ...]
    stored: int
    """Steps whose completions are stored."""
    quantities: tuple[Quantity, ...]
    """Empty where no numbers of tokens are stored."""


Rows = dict[int, dict[str, Any]]
"""Rows of a file of completions, by line from 0."""


def inspect(run: RunRecord, most_tokens: int = MOST_TOKENS) -> Inspected:
    """Choose steps, groups and completions that together have at most about `most_tokens` tokens, and draw them."""
    files = {number: file for file in sorted((run.path / "rollouts").glob("step-*.jsonl")) if (number := _number(file))}
    steps = {
        number: (read_lines(files[number]), read_tokens(run.path, number)) for number in chosen_steps(run, [*files])
    }
    steps = {number: found for number, found in steps.items() if found[0]}
    rooms = {number: most_tokens // len(steps) for number in steps}
    picked = {number: _pick(rows, tokens, rooms[number]) for number, (rows, tokens) in steps.items()}
    drawn = [steps[number][1][line] for number, lines in picked.items() for line in lines if line in steps[number][1]]
    quantities = shown(drawn) if drawn else ()
    made = []
    for number, (rows, tokens) in steps.items():
        limit = max(FEWEST, min(LONGEST, rooms[number] // max(1, len(picked[number]))))
        groups = _groups(rows, picked[number], tokens, quantities, limit)
        made.append(Step(number, _heading(run, number), groups))
    return Inspected(tuple(made), len(files), quantities)


def _number(file: Path) -> int:
    number = file.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else 0


def chosen_steps(run: RunRecord, stored: Sequence[int]) -> list[int]:
    """The first and the last of the stored steps, those with an event or a dropped update, and others evenly between."""
    if len(stored) <= MOST_STEPS:
        return [*stored]
    odd = {int(event["step"]) for event in run.events if isinstance(event.get("step"), int)}
    odd |= {int(row["step"]) for row in run.history if row.get("update/nonfinite") or row.get("sampling/fell_back")}
    found = dict.fromkeys((stored[0], stored[-1]))
    found |= dict.fromkeys([step for step in stored if step in odd][: MOST_STEPS // 3])
    left = MOST_STEPS - len(found)
    rest = [step for step in stored if step not in found]
    found |= dict.fromkeys(rest[round((i + 0.5) * len(rest) / left - 0.5)] for i in range(left))
    return sorted(found)


def _pick(rows: Sequence[Mapping[str, Any]], tokens: Mapping[int, TokenRow], room: int) -> list[int]:
    """Lines of the completions that are shown, as many as fit `room` tokens; one group with two at least.

    Groups with numbers of tokens come first, of these the ones whose rewards differ, and within a group the best and the worst
    completion.
    """
    groups = _by_problem(rows)
    groups.sort(key=lambda lines: (lines[0] not in tokens, _are_equal(rows, lines)))
    picked: list[int] = []
    used = 0
    for lines in groups[:MOST_GROUPS]:
        kept = 0
        for line in _best_and_worst(rows, lines)[:MOST_COMPLETIONS]:
            size = min(LONGEST, int(_float(rows[line].get("tokens")) or 0))
            if used + size > room and (kept >= 2 or len(picked) >= 2):
                break
            picked.append(line)
            kept, used = kept + 1, used + size
    return sorted(picked)


def _by_problem(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Lines of each group: one begins with each sample 0."""
    found: list[list[int]] = []
    for line, row in enumerate(rows):
        if not found or row.get("sample") == 0:
            found.append([])
        found[-1].append(line)
    return found


def _are_equal(rows: Sequence[Mapping[str, Any]], lines: Sequence[int]) -> bool:
    """True for a group that has no signal."""
    return len({_float(rows[line].get("reward")) for line in lines}) < 2


def _best_and_worst(rows: Sequence[Mapping[str, Any]], lines: Sequence[int]) -> list[int]:
    ranked = sorted(lines, key=lambda line: -(_float(rows[line].get("reward")) or 0.0))
    ends = dict.fromkeys((ranked[0], ranked[-1]))
    return [*ends, *(line for line in lines if line not in ends)]


def _float(value: Any) -> float:
    """A number of a stored row; NaN for anything else. Those that JSON does not have are stored as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _heading(run: RunRecord, number: int) -> str:
    metrics = next((row for row in run.history if row["step"] == number), {})
    parts = [f"Step {number}"]
    for key, title in (("reward", "mean reward"), ("accuracy", "right")):
        if key in metrics:
            parts.append(f"{title} {metrics[key]:.1%}" if key == "accuracy" else f"{title} {metrics[key]:.3g}")
    parts += [f"{event['event']}" for event in run.events if event.get("step") == number]
    return one_line(", ".join(parts))


def _groups(
    rows: Sequence[Mapping[str, Any]],
    picked: Sequence[int],
    tokens: Mapping[int, TokenRow],
    quantities: Sequence[Quantity],
    limit: int,
) -> tuple[Group, ...]:
    found = []
    for lines in sorted(_by_problem(rows), key=lambda lines: _are_equal(rows, lines)):
        kept = [line for line in lines if line in picked]
        if not kept:
            continue
        first = rows[kept[0]]
        notes = [] if first.get("trained", True) else ["not trained on"]
        if len(kept) < len(lines):
            notes.append(f"{len(kept)} of {counted(len(lines), 'completion')} shown")
        completions = tuple(_completion(rows[line], tokens.get(line), quantities, limit) for line in kept)
        name, question, answer = (str(first.get(key, "")) for key in ("id", "question", "answer"))
        found.append(Group(name, question, answer, "; ".join(notes), completions))
    return tuple(found)


def _completion(
    row: Mapping[str, Any], tokens: TokenRow | None, quantities: Sequence[Quantity], limit: int
) -> Completion:
    scores = row.get("scores")
    parts = [f"{name} {_short(value)}" for name, value in scores.items()] if isinstance(scores, dict) else []
    rewards = f"reward {_short(row.get('reward'))}"
    if row.get("unscorable"):
        rewards = f"unscorable: {row['unscorable']}"
    elif len(parts) != 1 or _float(row.get("reward")) != _float(next(iter(scores.values())) if scores else None):
        rewards += f" = {', '.join(parts)}" if parts else ""
    count = int(_float(row.get("tokens")) or 0) if math.isfinite(_float(row.get("tokens"))) else 0
    finish = {"stop": "stopped", "length": "cut off"}.get(str(row.get("finish")), str(row.get("finish", "")))
    facts = (*_advantage(tokens), counted(count, "token"), finish)
    plain = Completion(
        int(_float(row.get("sample")) or 0), rewards, bool(row.get("correct")), facts, str(row.get("text", ""))
    )
    if tokens is None or not quantities:
        return plain
    columns = columns_of([quantity.key for quantity in quantities], tokens)
    return replace(
        plain,
        tokens=draw(tokens, quantities, limit),
        numbers=table_rows(tokens, columns, limit),
        columns=tuple(COLUMNS[key] for key in columns),
        cut=max(0, len(tokens.pieces) - limit),
    )


def _advantage(tokens: TokenRow | None) -> tuple[str, ...]:
    values = [] if tokens is None else [v for v in tokens.numbers.get("advantage", ()) if math.isfinite(v)]
    if not values:
        return ()
    low, high = min(values), max(values)
    return (f"advantage {low:+.2f}" if low == high else f"advantages {low:+.2f} to {high:+.2f}",)


def _short(value: Any) -> str:
    return "unknown" if math.isnan(number := _float(value)) else f"{number:.3g}"


def draw(tokens: TokenRow, quantities: Sequence[Quantity], limit: int) -> Markup:
    """One element per token, whose classes are its colours by quantity; cX marks a token that the clip silences."""
    classes = [quantity.classes(values_of(quantity, tokens)) for quantity in quantities]
    clipped = is_clipped(tokens)
    parts = []
    for i, piece in enumerate(tokens.pieces[:limit]):
        names = [found[i] for found in classes if found[i]] + (["cX"] if clipped[i] else [])
        mark = f' class="{" ".join(names)}"' if names else ""
        parts.append(f"<i{mark}>{_shown(piece)}</i>")
    return Markup("".join(parts))


def _shown(piece: str) -> Markup:
    """The text of a token; a line's end is a sign too, and a token without any is one of its own."""
    return escape(visible(piece).replace("\n", "↵\n") if piece else "∅")


def table_rows(tokens: TokenRow, columns: Mapping[str, Sequence[str]], limit: int) -> Markup:
    """The rows of a table: place, token, and a cell of each column. The ends of cells and rows, which HTML adds, are left out."""
    parts = []
    for i, piece in enumerate(tokens.pieces[:limit]):
        cells = "".join(f"<td>{column[i]}" for column in columns.values())
        parts.append(f"<tr><td>{i + 1}<td>{escape(visible(repr(piece)[1:-1]).replace(' ', '␣'))}{cells}")
    return Markup("".join(parts))
