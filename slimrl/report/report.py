"""A study's report in four forms with equal numbers: a page, Markdown, a table of runs (CSV), and data (JSON).

Names, completions and reasons come from outside, so each form escapes them in its own way.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slimrl.report import plots, prose, tables
from slimrl.report.episodes import turns_said
from slimrl.report.page import page_template
from slimrl.report.tables import Table
from slimrl.runs.files import write_text
from slimrl.study.primary import read_primary
from slimrl.study.results import Results
from slimrl.study.runs import Run
from slimrl.text import one_line, points

CURVE_POINTS = 60
"""Of a curve in results.json."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet takes a cell that begins so for a formula; some know the full-width forms too."""


def write_reports(results: Results, folder: Path) -> Path:
    """Write report.html, report.md, results.csv and results.json into a folder; returns the page's path.

    The same results give the same bytes. A file is replaced as a whole or not at all. Raises OSError.
    """
    forms = {"results.json": as_json, "results.csv": as_csv, "report.md": as_markdown, "report.html": as_html}
    texts = {name: form(results) for name, form in forms.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / "report.html"


def as_html(results: Results) -> str:
    """One page that needs nothing else: no script, no network, no font."""
    arms = [arm.name for arm in tables.ordered_arms(results)]
    return page_template("report.html.j2").render(
        results=results,
        tables=tables,
        prose=prose,
        turns_said=turns_said,
        arms=arms,
        effect_plot=plots.effect_plot(
            tables.ordered_effects(results), results.noise.floor, results.margin, read_primary(results.primary).noun
        ),
        curves=plots.curve_groups(arms, results.runs, read_primary(results.primary)),
        drawn=plots.MOST_PANELS,
        points=points,
    )


def as_markdown(results: Results) -> str:
    """The report without its figures and completions."""
    parts = [f"# {escaped(results.question or results.name)}", escaped(prose.lead(results))]
    first, *others = map(escaped, prose.answer(results))
    parts += [f"**{first}**", " ".join(others)]
    parts += [f"**{word}.** {escaped(text)}" for word, text in prose.notices(results).items()]
    facts = prose.facts(results).items()
    parts.append(_bullets(f"**{title}: {escaped(figure)}.** {escaped(text)}" for title, (figure, text) in facts))
    for table in tables.verdict_tables(results):
        parts += [f"## {table.caption}", _markdown_table(table)]
    remarks = [
        f"**{escaped(prose.listed(names))}**, {kind}: {escaped(text)}" for names, kind, text in tables.remarks(results)
    ]
    if remarks:
        parts += ["### Remarks", _bullets(remarks)]
    legend = prose.legend(results).items()
    parts += ["### Columns", _bullets(f"**{title}**: {escaped(text)}" for title, text in legend)]
    for table in (
        tables.cost_table(results),
        tables.form_table(results),
        tables.gain_table(results),
        tables.troubled_runs(results),
    ):
        if table.rows:
            parts += [f"## {table.caption}", _markdown_table(table)]
    parts += ["## What this study cannot tell", _bullets(escaped(text) for text in results.cannot_tell)]
    for title, values in (("Settings of the reference", results.settings), ("Versions", results.versions)):
        rows = [f"| {code(str(key))} | {code(tables.setting(value))} |" for key, value in values.items()]
        parts += [f"## {title}", "\n".join(["| setting | value |", "| --- | --- |", *rows])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _markdown_table(table: Table) -> str:
    first, *others = table.titles
    detailed = any(row.detail for row in table.rows)
    titles = [first, *(["What it is"] if detailed else []), *others]
    lines = [" | ".join(map(escaped, titles)), " | ".join(["---"] * len(titles))]
    for row in table.rows:
        detail = [escaped(row.detail)] if detailed else []
        lines.append(" | ".join([code(row.name), *detail, *(escaped(str(cell)) for cell in row.cells)]))
    return "\n".join(f"| {line} |" for line in lines)


MARKUP = re.compile(
    r"[\\`*|~$#^]"
    r"|<(?=\S)|&(?=[#A-Za-z])"  # a sign less-than before a gap, as in p < 0.001, is none of HTML's
    r"|\[(?![-+\d., ]+\](?![(\[:]))"  # nor are the brackets of an interval a link's
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"
    r"|^>|^[-+](?=\s|$)|^-{2,}|^=+|(?:^\d{1,9})[.)](?=\s|$)"
)
ADDRESS = re.compile(r"@|:(?=/)|(?<=www)\.", re.IGNORECASE)


def escaped(text: str) -> str:
    """Text as one line of Markdown without markup.

    Signs of markup become entities, which no text before them can undo, as it could undo a backslash. A zero-width space breaks
    addresses, of which many programs make links.
    """

    def entities(match: re.Match[str]) -> str:
        return "".join(sign if sign.isdigit() else f"&#{ord(sign)};" for sign in match[0])

    return ADDRESS.sub(lambda match: f"{entities(match)}&#8203;", MARKUP.sub(entities, one_line(text)))


def code(text: str) -> str:
    """Text as a code span of Markdown; escaped instead if its signs could end a span early."""
    line = one_line(text)
    return escaped(line) if not line or re.search(r"[`|\\]", line) else f"`{line}`"


def as_csv(results: Results) -> str:
    """One row per run; numbers in full, empty where unknown."""
    measures = sorted({key for run in results.runs for key in run.after})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    before = f"before {results.primary}"
    titles = ["arm", "index", "seed", "status", "reason", before, *measures, "steps", "tokens", "seconds", "weights"]
    writer.writerow(map(_csv_cell, titles))
    for run in results.runs:
        values = [
            run.arm, run.index, run.seed, run.status, run.reason, run.before.get(results.primary, math.nan),
            *(run.after.get(key, math.nan) for key in measures), run.steps, run.tokens, run.seconds, run.weights,
        ]  # fmt: skip
        writer.writerow(map(_csv_cell, values))
    return buffer.getvalue()


def _csv_cell(value: Any) -> str:
    if not isinstance(value, str):
        return repr(value) if math.isfinite(value) else ""
    # both before and after spaces are folded, since some programs strip them
    line = one_line(value)
    return f"'{line}" if value.startswith(FORMULA) or line.startswith(FORMULA) else line


def as_json(results: Results) -> str:
    """All results but the answers by problem, with CURVE_POINTS of each curve at six digits; null for an unknown number."""
    whole = {"answer": prose.answer(results), **vars(results), "runs": [_json_run(run) for run in results.runs]}
    return json.dumps(_plain(whole), indent=1, allow_nan=False) + "\n"


def _json_run(run: Run) -> dict[str, Any]:
    curves = {name: _thinned(values) for name, values in run.curves.items()}
    return {name: value for name, value in vars(run).items() if name != "items"} | {"curves": curves}


def _thinned(values: Sequence[float]) -> list[float]:
    kept = np.linspace(0, len(values) - 1, min(len(values), CURVE_POINTS)).round().astype(int)
    return [float(f"{values[i]:.6g}") for i in kept]


def _plain(value: Any) -> Any:
    """Records and mappings as objects of JSON."""
    if dataclasses.is_dataclass(value):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int)) or value is None else str(value)
