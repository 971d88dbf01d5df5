"""A run in a notebook: one small table with its curves, self-contained, in the notebook's own colours."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from slimrl.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]
STYLE = "--accent:#3b6fb5;max-width:46em;font-family:sans-serif"
"""A colour that can be read on light and on dark."""
SHARES = ("held-out accuracy",)
"""Curves from 0 to 1."""
CELL = "text-align:left;padding:2px 12px 2px 0"


def as_html(
    title: str, lines: Sequence[str], table: Sequence[Sequence[str]] = (), curves: Mapping[str, Points] | None = None
) -> str:
    """A title, a table whose first row has its titles, curves over steps by their names, and lines of text, all of it escaped."""
    rows = [_row("th" if number == 0 else "td", cells) for number, cells in enumerate(table)]
    below = [Markup("<p>{}</p>").format(visible(line)) for line in lines]
    parts = (Markup("<table>{}</table>").format(Markup("").join(rows)), _figure(title, curves or {}), *below)
    head = Markup("<p><b>{}</b></p>").format(visible(title))
    return str(Markup('<div style="{}">{}{}</div>').format(STYLE, head, Markup("").join(parts)))


def _row(tag: str, cells: Sequence[str]) -> Markup:
    shown = [Markup(f'<{tag} style="{CELL}">{{}}</{tag}>').format(visible(cell)) for cell in cells]
    return Markup("<tr>{}</tr>").format(Markup("").join(shown))


def _figure(title: str, curves: Mapping[str, Points]) -> Markup:
    """A panel for each curve; nothing without any."""
    if not curves:
        return Markup("")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from slimrl.report import svg

    with rc_context(svg.STYLE):
        figure = Figure(figsize=(7.0, 1.9), layout="constrained")
        for axes, (name, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
            _draw(axes, name, points)
        prefix = f"slimrl-{hashlib.sha256(title.encode('utf-8', 'replace')).hexdigest()[:8]}"
        return svg.as_svg(figure, prefix, f"{', '.join(curves)}, over steps")


def _draw(axes: Axes, name: str, points: Points) -> None:
    from matplotlib.ticker import MaxNLocator

    from slimrl.report.svg import ACCENT

    axes.set_title(name)
    if name in SHARES:
        axes.set_ylim(-0.03, 1.03)  # whole marks of points at 0 and 1
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if points:
        axes.plot(*zip(*points, strict=True), marker=".", color=ACCENT)
        axes.ticklabel_format(axis="y", useOffset=False)
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
