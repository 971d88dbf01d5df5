"""A run in a terminal: what its page says, in lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from slimrl.report import run_tables
from slimrl.report.inspector import Completion, Inspected, inspect, read_stored
from slimrl.report.record import RunRecord
from slimrl.report.tables import Table
from slimrl.text import counted, one_line, visible

WIDTH = 80
MOST_COMPLETIONS = 4
"""Of the last step, that are shown."""
MOST_LINES = 12
"""Of a completion."""
PANEL = ("accuracy", "reward", "completions/mean_length", "completions/clipped_ratio", "entropy", "kl")
"""Metrics of which the first and the last third of the steps are compared."""


def run_text(run: RunRecord) -> str:
    """Headline, tables, remarks, and a few completions of the last step that is stored; lines of about WIDTH characters."""
    parts = [
        _wrapped(f"{run.name} ({run.record.get('verb', 'train')}, {run.state})"),
        _wrapped(f"{run_tables.headline(run)}."),
        *map(_wrapped, run_tables.answer(run)),
        *(_wrapped(f"{word}: {text}") for word, text in run_tables.notices(run)),
        _table(run_tables.before_after(run)),
        _course(run),
        _table(run_tables.cost(run)),
    ]
    remarks = [
        textwrap.fill(one_line(f"- {kind}: {text}"), WIDTH, subsequent_indent="  ")
        for kind, text in run_tables.remarks(run)
    ]
    won, lost, compared = run_tables.moved(run)
    if compared:
        parts.append(_wrapped(f"Problems of the test split: {len(won)} won, {len(lost)} lost, of {compared}."))
    if remarks:
        parts.append("\n".join(["Warnings and remarks", *remarks]))
    parts += _completions(inspect(read_stored(run)))
    return "\n\n".join(part for part in parts if part)


def _wrapped(text: str) -> str:
    return textwrap.fill(one_line(text), WIDTH)


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    lines = [[table.caption, *table.titles[1:]]]
    lines += [[one_line(row.name), *map(str, row.cells)] for row in table.rows]
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    widths[0] = min(widths[0], WIDTH // 2)
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _course(run: RunRecord) -> str:
    """Means of a few metrics over the first and the last third of the steps."""
    third = len(run.history) // 3
    if not third:
        return ""
    lines = [["In training, mean of", "first third", "last third"]]
    for key in PANEL:
        ends = [[row[key] for row in rows if key in row] for rows in (run.history[:third], run.history[-third:])]
        if all(ends):
            lines.append([key, *(f"{sum(values) / len(values):.4g}" for values in ends)])
    return _aligned(lines)


def _completions(inspected: Inspected) -> Iterator[str]:
    if not inspected.steps:
        return
    step = inspected.steps[-1]
    for group in step.groups[:1]:
        yield _wrapped(f"{step.heading}; problem {group.problem}, answer {group.answer}")
        yield textwrap.indent(visible(group.question), "    ")
        for one in group.completions[:MOST_COMPLETIONS]:
            verdict = "right" if one.right else "wrong"
            head = _wrapped(f"{one.sample + 1}: {verdict}, {one.rewards}, {', '.join(one.facts)}")
            yield "\n".join([head, *(_turns(one) if one.turns else [_indented(one.text)])])


def _turns(one: Completion) -> Iterator[str]:
    """The turns of an episode, each further in than its title, for which no text can pass."""
    for turn in one.turns:
        yield textwrap.indent(textwrap.fill(one_line(turn.title), WIDTH - 4), "    ")
        yield textwrap.indent(_indented(turn.text), "    ")
    if one.cut:
        yield f"    [… {counted(one.cut, 'more token')}]"


def _indented(text: str) -> str:
    lines = (visible(text) or "(empty)").split("\n")
    more = [f"[… {len(lines) - MOST_LINES} more lines]"] if len(lines) > MOST_LINES else []
    return textwrap.indent("\n".join([*lines[:MOST_LINES], *more]), "    ", lambda _: True)
