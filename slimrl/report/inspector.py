"""The inspector of a run's page: a bounded choice of steps and groups, and every token of their completions as markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from slimrl.records import Turns, policy_turns
from slimrl.report.episodes import NOTHING, Turn, facts_of, read_rewards, read_said, said_by_run, turns_said
from slimrl.report.quantities import (
    COLUMNS,
    Quantity,
    columns_of,
    is_clipped,
    is_one_number,
    shown,
    values_of,
)
from slimrl.report.record import RunRecord, read_lines
from slimrl.runs.tokens import TokenRow, read_tokens
from slimrl.text import counted, one_line, visible

MOST_STEPS, MOST_GROUPS, MOST_COMPLETIONS = 12, 4, 8
"""On the page: steps of a run, groups of a step, completions of a group."""
MOST_TOKENS = 10_000
"""Of all completions on the page; a token takes about 110 bytes of it."""
LONGEST = 1_200
"""Tokens of a completion that are shown."""
LONGEST_PIECE = 200
"""Characters of a token that are shown; some are long runs of blanks."""


@dataclass(frozen=True)
class Completion:
    """A completion of a group."""

    sample: int
    rewards: str
    """The weighted sum, and each reward before its weight."""
    right: bool
    facts: tuple[str, ...]
    """Advantage, length, finish reason; of an episode the number of turns, its score and metrics."""
    text: str
    """Of an episode its last turn."""
    turns: tuple[Turn, ...] = ()
    """Of an episode; empty where a completion is one turn."""
    tokens: Markup = NOTHING
    """Empty where their numbers are not stored, and of an episode, whose turns have them."""
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

    @property
    def episodes(self) -> bool:
        """True where some completion has several turns."""
        return any(one.turns for step in self.steps for group in step.groups for one in group.completions)


Rows = Mapping[int, Mapping[str, Any]]
"""Completions of a step, by line of its file from 0; lines that are damaged are missing."""


@dataclass(frozen=True)
class Picked:
    """The part of a step that may be shown."""

    number: int
    groups: tuple[tuple[int, Rows], ...]
    """Each with the number of all its completions, and those that may be shown."""
    lines: tuple[int, ...]
    """Of the completions, in the order in which they are shown where there is room."""
    tokens: Mapping[int, TokenRow]
    """Of the completions, by line."""


@dataclass(frozen=True)
class Stored:
    """All that the inspector reads of a run."""

    run: RunRecord
    steps: tuple[Picked, ...]
    stored: int
    """Steps whose completions are stored."""


def read_stored(run: RunRecord) -> Stored:
    """Read a choice of steps, groups and completions that together have at most about MOST_TOKENS tokens.

    One step is read at a time, and what is not shown of it is forgotten.
    """
    files = {number: file for file in sorted((run.path / "rollouts").glob("step-*.jsonl")) if (number := _number(file))}
    chosen = chosen_steps(run, [*files])
    steps = [_read(run, number, files[number], MOST_TOKENS // len(chosen)) for number in chosen]
    return Stored(run, tuple(step for step in steps if step.groups), len(files))


def inspect(stored: Stored, most_tokens: int = MOST_TOKENS) -> Inspected:
    """Draw those completions that together have at most about `most_tokens` tokens, two of a step at least."""
    room = most_tokens // max(1, len(stored.steps))
    steps = [_within(step, room) for step in stored.steps]
    drawn = [row for step in steps for row in step.tokens.values()]
    quantities = shown(drawn) if drawn else ()
    made = []
    for step in steps:
        limit = max(1, min(LONGEST, room // len(step.lines)))
        groups = tuple(_group(step, total, rows, quantities, limit) for total, rows in step.groups)
        made.append(Step(step.number, _heading(stored.run, step.number), groups))
    return Inspected(tuple(made), stored.stored, quantities)


def _read(run: RunRecord, number: int, file: Path, room: int) -> Picked:
    rows, tokens = read_lines(file), read_tokens(run.path, number)
    tokens = {line: row for line, row in tokens.items() if row.drawn == _count(rows.get(line, {}).get("tokens"))}
    groups = sorted(_by_problem(rows), key=lambda lines: _are_equal(rows, lines))
    whole = Picked(number, tuple((len(lines), {line: rows[line] for line in lines}) for lines in groups), (), tokens)
    return _only(whole, _pick(rows, tokens, room))


def _within(step: Picked, room: int) -> Picked:
    """The first completions of a step whose tokens fit `room`, two at least."""
    rows = {line: row for _, found in step.groups for line, row in found.items()}
    ends = accumulate(_size(rows[line], step.tokens.get(line)) for line in step.lines)
    fitting = sum(end <= room for end in ends)
    return _only(step, step.lines[: max(2, fitting)])


def _only(step: Picked, lines: Sequence[int]) -> Picked:
    """A step with no completions but those of these lines."""
    picked = {*lines}
    kept = ((total, {line: row for line, row in rows.items() if line in picked}) for total, rows in step.groups)
    tokens = {line: row for line, row in step.tokens.items() if line in picked}
    return Picked(step.number, tuple((total, rows) for total, rows in kept if rows), tuple(lines), tokens)


def _size(row: Mapping[str, Any], tokens: TokenRow | None) -> int:
    """Tokens of a completion that are shown where there is room, with those of an environment."""
    return min(LONGEST, _count(row.get("tokens")) if tokens is None else len(tokens.pieces))


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


def _pick(rows: Rows, tokens: Mapping[int, TokenRow], room: int) -> list[int]:
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
            size = _size(rows[line], tokens.get(line))
            if used + size > room and (kept >= 2 or len(picked) >= 2):
                break
            picked.append(line)
            kept, used = kept + 1, used + size
    return picked


def _by_problem(rows: Rows) -> list[list[int]]:
    """Lines of each group, in which the numbers of samples rise."""
    found: list[list[int]] = []
    last = 0
    for line, row in rows.items():
        sample = _count(row.get("sample"))
        if not found or sample <= last:
            found.append([])
        found[-1].append(line)
        last = sample
    return found


def _are_equal(rows: Rows, lines: Sequence[int]) -> bool:
    """True for a group that has no signal."""
    return len({reward for line in lines if not math.isnan(reward := _float(rows[line].get("reward")))}) < 2


def _best_and_worst(rows: Rows, lines: Sequence[int]) -> list[int]:
    """Lines without a reward are neither."""
    scored = [line for line in lines if not math.isnan(_float(rows[line].get("reward")))] or lines
    ranked = sorted(scored, key=lambda line: -_float(rows[line].get("reward")))
    ends = dict.fromkeys((ranked[0], ranked[-1]))
    return [*ends, *(line for line in lines if line not in ends)]


def _float(value: Any) -> float:
    """A number of a stored row; NaN for anything else. Those that JSON does not have are stored as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _count(value: Any) -> int:
    """A number of tokens or of a sample; 0 for anything else."""
    number = _float(value)
    return int(number) if math.isfinite(number) else 0


def _heading(run: RunRecord, number: int) -> str:
    metrics = next((row for row in run.history if row["step"] == number), {})
    parts = [f"Step {number}"]
    for key, title in (("reward", "mean reward"), ("accuracy", "right")):
        if key in metrics:
            parts.append(f"{title} {metrics[key]:.1%}" if key == "accuracy" else f"{title} {metrics[key]:.3g}")
    parts += [f"{event['event']}" for event in run.events if event.get("step") == number]
    return one_line(", ".join(parts))


def _group(step: Picked, total: int, rows: Rows, quantities: Sequence[Quantity], limit: int) -> Group:
    """A group of `total` completions, of which these rows are shown."""
    first = next(iter(rows.values()))
    notes = [] if first.get("trained", True) else ["not trained on"]
    if 0 < (drawn := _count(first.get("sampled_at"))) < step.number:
        notes.append(f"carried over from step {drawn}")
    if len(rows) < total:
        notes.append(f"{len(rows)} of {counted(total, 'completion')} shown")
    completions = tuple(_completion(row, step.tokens.get(line), quantities, limit) for line, row in rows.items())
    name, question, answer = (str(first.get(key, "")) for key in ("id", "question", "answer"))
    return Group(name, question, answer, "; ".join(notes), completions)


def _completion(
    row: Mapping[str, Any], tokens: TokenRow | None, quantities: Sequence[Quantity], limit: int
) -> Completion:
    scores = row.get("scores")
    parts = [f"{name} {_short(value)}" for name, value in scores.items()] if isinstance(scores, dict) else []
    rewards = f"reward {_short(row.get('reward'))}"
    if row.get("unscorable"):
        rewards = f"unscorable: {row['unscorable']}"
    elif len(parts) != 1 or _float(row.get("reward")) != _float(next(iter(scores.values())) if scores else None):
        rewards += f"; before weights {', '.join(parts)}" if parts else ""
    finish = {"stop": "stopped", "length": "cut off"}.get(str(row.get("finish")), str(row.get("finish", "")))
    said = read_said(row.get("turns"))
    facts = (*_advantage(tokens), counted(_count(row.get("tokens")), "token"), finish)
    facts = (counted(policy_turns(said), "turn"), *facts_of(row), *facts) if said else facts
    plain = Completion(_count(row.get("sample")), rewards, bool(row.get("correct")), facts, str(row.get("text", "")))
    if tokens is None or not quantities:
        return replace(plain, turns=turns_said(said, row.get("turn_rewards"), row.get("finish")))
    first = tokens.part(0, limit)
    columns = columns_of([quantity.key for quantity in quantities], first)
    return replace(
        plain,
        turns=_drawn_turns(row, said, first, quantities, whole=len(first.pieces) == len(tokens.pieces)) if said else (),
        tokens=NOTHING if said else draw(first, quantities),
        numbers=table_rows(first, columns),
        columns=tuple(COLUMNS[key] for key in columns),
        cut=len(tokens.pieces) - len(first.pieces),
    )


def _drawn_turns(
    row: Mapping[str, Any], said: Turns, tokens: TokenRow, quantities: Sequence[Quantity], *, whole: bool
) -> tuple[Turn, ...]:
    """An episode by the runs of its tokens, of which the last is not `whole` where tokens are left out."""
    told = said_by_run(said, read_rewards(row.get("turn_rewards")))
    whole_advantage = is_one_number(tokens.numbers.get("advantage", ()))
    runs = tokens.runs()
    found = []
    for n, (given, part) in enumerate(runs):
        title, text = told[n] if n < len(told) else ("environment" if given else "policy", "".join(part.pieces))
        facts = () if given or whole_advantage else _advantage(part)
        cut = ("cut off here",) if whole and n == len(runs) - 1 and row.get("finish") == "length" else ()
        found.append(Turn(", ".join((title, *facts, *cut)), text, given, draw(part, () if given else quantities)))
    return tuple(found)


def _advantage(tokens: TokenRow | None) -> tuple[str, ...]:
    values = [] if tokens is None else [v for v in tokens.numbers.get("advantage", ()) if math.isfinite(v)]
    if not values:
        return ()
    low, high = min(values), max(values)
    return (f"advantage {low:+.2f}" if low == high else f"advantages {low:+.2f} to {high:+.2f}",)


def _short(value: Any) -> str:
    return "unknown" if math.isnan(number := _float(value)) else f"{number:.3g}"


def draw(tokens: TokenRow, quantities: Sequence[Quantity]) -> Markup:
    """One element per token, whose classes are its colours by quantity; cX marks a token on which the clip acts."""
    classes = [quantity.classes(values_of(quantity, tokens)) for quantity in quantities]
    clipped = is_clipped(tokens)
    parts = []
    for i, piece in enumerate(tokens.pieces):
        names = [found[i] for found in classes if found[i]] + (["cX"] if clipped[i] else [])
        mark = f' class="{" ".join(names)}"' if names else ""
        parts.append(f"<i{mark}>{_shown(piece)}</i>")
    return Markup("".join(parts))


def _shown(piece: str) -> Markup:
    """The text of a token; a line's end is a sign too, and a token without any is one of its own."""
    return escape(visible(piece[:LONGEST_PIECE]).replace("\n", "↵\n") if piece else "∅")


def table_rows(tokens: TokenRow, columns: Mapping[str, Sequence[str]]) -> Markup:
    """The rows of a table: place, token, and a cell of each column. The ends of cells and rows, which HTML adds, are left out."""
    parts = []
    given = tokens.given.tolist()
    for i, piece in enumerate(tokens.pieces):
        cells = "".join(f"<td>{column[i]}" for column in columns.values())
        mark = " class=given" if given[i] else ""
        parts.append(
            f"<tr{mark}><td>{i + 1}<td>{escape(visible(repr(piece[:LONGEST_PIECE])[1:-1]).replace(' ', '␣'))}{cells}"
        )
    return Markup("".join(parts))
