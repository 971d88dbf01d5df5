"""A study's report in four forms with equal numbers: a page, Markdown, a table of runs, and data.

Everything that a report shows comes from outside: names, completions and reasons are escaped in each form's own way.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from slimrl.report import plots as pictures
from slimrl.report import prose as words
from slimrl.report import tables
from slimrl.report.tables import Table
from slimrl.runs.reader import Run
from slimrl.study.results import Results
from slimrl.text import visible

CURVE_POINTS = 60
"""Of a run, in results.json."""
LONGEST_TEXT = 3000
"""Characters of a completion on the page."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A cell that begins so is a formula to a spreadsheet, to some in full width too."""


def write_reports(results: Results, folder: Path) -> Path:
    """Write report.html, report.md, results.csv and results.json into a folder; returns the page's path.

    The same results give the same bytes. A file is replaced as a whole or not at all.
    """
    forms = {
        "results.json": as_json(results),
        "results.csv": as_csv(results),
        "report.md": as_markdown(results),
        "report.html": as_html(results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in forms.items():
        _replace(folder / name, text)
    return folder / "report.html"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(path)
    except OSError as error:
        if error.errno:
            error.filename, error.filename2 = str(path), None  # the name that a reader knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def as_html(results: Results) -> str:
    """One page that needs nothing else: no script, no network, no font."""
    environment = Environment(
        loader=PackageLoader("slimrl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    arms = [arm.name for arm in tables.ordered_arms(results)]
    return environment.get_template("report.html.j2").render(
        results=results,
        tables=tables,
        words=words,
        arms=arms,
        effect_plot=pictures.effect_plot(tables.ordered_effects(results), results.noise.floor, results.margin),
        curves=pictures.curve_groups(arms, results.runs),
        drawn=pictures.MOST_PANELS,
        shortened=_shortened,
    )


def _shown(value: Any) -> Any:
    """Plain text of the page with its control characters made visible; markup of our own is of another type."""
    return visible(value) if type(value) is str else value


def _shortened(text: str) -> str:
    rest = len(text) - LONGEST_TEXT
    return text if rest <= 0 else f"{text[:LONGEST_TEXT]}\n[… {rest:,} more characters]"


def as_markdown(results: Results) -> str:
    """The page without its pictures and completions."""
    parts = [f"# {prose(results.question or results.name)}", prose(words.lead(results))]
    first, *others = map(prose, words.answer(results))
    parts += [f"**{first}**", " ".join(others)]
    parts += [f"**{word}.** {prose(text)}" for word, text in words.notices(results)]
    parts.append(
        _bullets(f"**{title}: {prose(figure)}.** {prose(text)}" for title, figure, text in words.facts(results))
    )
    for table in tables.verdict_tables(results):
        parts += [f"## {table.caption}", _markdown_table(table)]
    if remarks := tables.remarks(results):
        parts += [
            "### Remarks",
            _bullets(f"**{prose(words.listed(names))}**, {kind}: {prose(text)}" for names, kind, text in remarks),
        ]
    parts += ["### Columns", _bullets(f"**{title}**: {prose(text)}" for title, text in words.legend(results))]
    for table in (tables.cost_table(results), tables.form_table(results), tables.troubled_runs(results)):
        if table.rows:
            parts += [f"## {table.caption}", _markdown_table(table)]
    parts += ["## What this study cannot tell", _bullets(prose(text) for text in results.cannot_tell)]
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
    lines = [" | ".join(map(prose, titles)), " | ".join(["---"] * len(titles))]
    for row in table.rows:
        detail = [prose(row.detail)] if detailed else []
        lines.append(" | ".join([code(row.name), *detail, *(prose(str(cell)) for cell in row.cells)]))
    return "\n".join(f"| {line} |" for line in lines)


MARKUP = re.compile(
    r"[\\`*|~$#^]"
    r"|<(?=\S)|&(?=[#A-Za-z])"  # a sign less-than before a gap, as in p < 0.001, is none of HTML's
    r"|\[(?![-+\d., ]+\](?![(\[:]))"  # nor are the brackets of an interval a link's
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"
    r"|^>|^[-+](?=\s|$)|^-{2,}|^=+|(?:^\d{1,9})[.)](?=\s|$)"
)
ADDRESS = re.compile(r"@|:(?=/)|(?<=www)\.", re.IGNORECASE)


def prose(text: str) -> str:
    """Text as one line of Markdown that is no markup.

    What could be is written as entities, which nothing that stands before can undo, as it can a backslash. Addresses are
    broken by a gap of no width, since many programs make links of bare ones.
    """

    def entities(match: re.Match[str]) -> str:
        return "".join(sign if sign.isdigit() else f"&#{ord(sign)};" for sign in match[0])

    return ADDRESS.sub(lambda match: f"{entities(match)}&#8203;", MARKUP.sub(entities, _line(text)))


def code(text: str) -> str:
    """Text as a code span of Markdown, or as prose where a span could end early."""
    line = _line(text)
    return prose(line) if not line or re.search(r"[`|\\]", line) else f"`{line}`"


def _line(text: str) -> str:
    return " ".join(visible(text).split())


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
    # looked at before and after spaces are folded: either may be what a program strips
    line = _line(value)
    return f"'{line}" if value.startswith(FORMULA) or line.startswith(FORMULA) else line


def as_json(results: Results) -> str:
    """All of it in full, but for answers by problem, with CURVE_POINTS of each curve at six digits; null where unknown."""
    data = {field.name: getattr(results, field.name) for field in dataclasses.fields(results)}
    data["runs"] = [_json_run(run) for run in results.runs]
    whole = {"answer": words.answer(results), **data}
    return json.dumps(_plain(whole), indent=1, allow_nan=False) + "\n"


def _json_run(run: Run) -> dict[str, Any]:
    data = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name != "items"}
    return data | {"curves": {name: _thinned(values) for name, values in run.curves.items()}}


def _thinned(values: Sequence[float]) -> list[float]:
    kept = np.linspace(0, len(values) - 1, min(len(values), CURVE_POINTS)).round().astype(int)
    return [float(f"{values[i]:.6g}") for i in kept]


def _plain(value: Any) -> Any:
    """Records and mappings as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int)) or value is None else str(value)
