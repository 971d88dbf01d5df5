"""Line charts of a run as SVG elements in the page's own colours.

They are written by hand, in milliseconds: a page is made while its run goes on, and matplotlib takes as long as a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from slimrl.runs.curves import Line, Panel
from slimrl.text import visible

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 26
"""Room around the curves, in the units of the picture."""
COLOURS = ("var(--accent)", "var(--line-2)", "var(--line-3)", "var(--line-4)", "var(--quiet)")
DASHES = ("", "5 2", "2 2", "7 2 2 2", "")
MOST_POINTS = 200
"""Of a curve; of more, evenly spaced ones are drawn."""
TICKS = 4
ROUNDING = 1e-9


def chart(panel: Panel) -> Markup:
    """The curves of a panel; empty where nothing was measured."""
    lines = [Line(line.name, *_known(line)) for line in panel.lines]
    drawn = [line for line in lines if line.points]
    if not drawn:
        return Markup()
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    ys += [end for line in drawn for ends in line.ends for end in ends if math.isfinite(end)]
    x_ticks, y_ticks = ticks(min(xs), max(xs), whole=True), ticks(0, 100) if panel.percent else ticks(min(ys), max(ys))
    place = _Scale((min(xs), max(xs)), (min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])))
    parts = [_axes(place, x_ticks, y_ticks), *(_line(place, line, lines.index(line)) for line in drawn)]
    spoken = "; ".join(f"{line.name}: {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in drawn)
    label = escape(visible(f"{panel.title}, from the first to the last point: {spoken}"))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def swatch(place: int) -> Markup:
    """The look of the curve at this place of a panel, for its legend."""
    return Markup(
        f'<svg class="swatch" viewBox="0 0 36 8" aria-hidden="true"><path d="M0 4H36" stroke-width="3" {_look(place)}/></svg>'
    )


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers that enclose an interval, about TICKS of them; inside it and `whole` for steps."""
    size = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(size / TICKS))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if size / (step * factor) <= TICKS)
    if whole:
        step = math.ceil(step)
        first, last = math.ceil(low / step - ROUNDING), math.floor(high / step + ROUNDING)
    else:
        first, last = math.floor(low / step + ROUNDING), math.ceil(high / step - ROUNDING)
    return [n * step for n in range(first, last + 1)] or [low]


class _Scale:
    """Values to places in the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * _share(value, self._x)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(value, self._y)


def _share(value: float, ends: tuple[float, float]) -> float:
    return (value - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5


def _known(line: Line) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
    """Points that are finite numbers, with their intervals, at most MOST_POINTS."""
    chosen = [i for i, (_, y) in enumerate(line.points) if math.isfinite(y)]
    if len(chosen) > MOST_POINTS:
        chosen = [chosen[round(i * (len(chosen) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
    return tuple(line.points[i] for i in chosen), tuple(line.ends[i] for i in chosen if line.ends)


def _axes(place: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in y_ticks:
        y = f"{place.y(value):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y}" dy=".32em" text-anchor="end">{short(value)}</text>')
    for value in x_ticks:
        x = f"{place.x(value):.1f}"
        parts.append(f'<text x="{x}" y="{bottom + 11}" text-anchor="middle">{short(value)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    parts.append(f'<text x="{(LEFT + right) / 2:g}" y="{HEIGHT - 3}" text-anchor="middle">steps</text>')
    return "".join(parts)


def _line(place: _Scale, line: Line, number: int) -> str:
    points = [(place.x(x), place.y(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    held_out = bool(line.ends)
    # two measures before and after are joined by nothing that was measured
    parts = [f'<path d="{path}" {_look(number)}/>'] if len(points) > (2 if held_out else 1) else []
    for (x, _), (low, high) in zip(points, line.ends, strict=False):
        if math.isfinite(low) and math.isfinite(high):
            parts.append(f'<path d="M{x:.1f} {place.y(low):.1f}V{place.y(high):.1f}" {_look(number, dashed=False)}/>')
    if held_out or len(points) == 1:
        colour = COLOURS[number % len(COLOURS)]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in points]
    return "".join(parts)


def _look(number: int, *, dashed: bool = True) -> str:
    dashes = DASHES[number % len(DASHES)] if dashed else ""
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}"{dash}'


def short(value: float) -> str:
    """A number on an axis."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.4g}"
