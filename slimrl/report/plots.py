"""The figures of a study's report: effects, and curves over training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from slimrl.report.svg import ACCENT, COLOURS, INK, STYLE, as_svg
from slimrl.report.tables import verdict_of
from slimrl.statistics import student_t
from slimrl.study.compare import Effect
from slimrl.study.primary import Primary
from slimrl.study.runs import Run
from slimrl.text import one_line, signed

Array = NDArray[np.float64]

ACCURACY = Primary("test", "sampled")
MARKS = {
    "better": ("#010102", "^"), "worse": ("#010103", "v"), "no difference": ("#010104", "s"), "undecided": ("#010105", "o"),
    "identical": ("#010106", "D"), "noise": (INK, "P"),
}  # fmt: skip
"""Colour and marker of a verdict."""
LINES: tuple[tuple[str, tuple[float, ...]], ...] = (
    (INK, ()), (INK, (1, 1.5)), (ACCENT, ()), ("#010107", (5, 2)), ("#010108", (7, 2, 1.5, 2)), ("#010109", (2.5, 1.2)),
)  # fmt: skip
"""Colour and dashes of the arms in a panel, the reference and its A/A arm first."""
BELOW, ABOVE = -0.38, 0.15
"""Ends of a row of the effects that hold its marks; its name is above them."""
GRID_POINTS = 40
FEWEST_FOR_BAND = 3
"""Runs; the interval of two is 13 times as wide as they are apart, and would fill every panel."""
MOST_PANELS = 20
"""Arms that have a panel of their own."""
LONGEST_LABEL = 34
PANEL, SMALL_PANEL = (3.9, 2.5), (3.1, 2.0)
"""Inches; small enough for text to stay legible on a phone."""
AXES = {"tokens": "sampled tokens", "seconds": "seconds of training", "step": "steps"}


@dataclass(frozen=True)
class Kind:
    """A curve of a run, what it is drawn over, and its title with the unit."""

    name: str
    over: str
    title: str
    scale: float = 1.0
    """Factor to the unit."""
    lowest: float = 0.0
    highest: float = math.inf
    """The values that are possible."""

    @property
    def heading(self) -> str:
        return f"{self.title}, over {AXES[self.over]}"


KINDS = (
    Kind("accuracy", "tokens", "Accuracy in training, %", 100.0, highest=1.0),
    Kind("accuracy", "seconds", "Accuracy in training, %", 100.0, highest=1.0),
    Kind("length", "step", "Completion length, tokens"),
    Kind("truncated", "step", "Completions cut off, %", 100.0, highest=1.0),
    Kind("entropy", "step", "Entropy, nats per token"),
    Kind("kl", "step", "KL to the initial model, nats per token", lowest=-math.inf),
)


@dataclass(frozen=True)
class Line:
    """An arm's runs, and how they look in a panel."""

    runs: Sequence[Run]
    colour: str
    dashes: tuple[float, ...]

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.status == "finished"]


@dataclass(frozen=True)
class Frame:
    """The common layout of all panels of a kind."""

    kind: Kind
    limits: tuple[float, float, float, float]
    """Left, right, bottom and top."""
    size: tuple[float, float]
    """Inches."""


@dataclass(frozen=True)
class Panel:
    """A small figure, empty if nothing was measured."""

    title: str
    picture: Markup
    missing: tuple[str, ...]
    """Arms for which nothing was measured."""


@dataclass(frozen=True)
class Group:
    """Panels that are read together."""

    title: str
    panels: tuple[Panel, ...]
    legend: Mapping[str, Markup]
    """A swatch by arm; empty if every panel has one arm."""


@dataclass(frozen=True)
class Curve:
    """Runs of an arm over seeds on a common grid, each `[points]`; the band is NaN for fewer than FEWEST_FOR_BAND runs."""

    x: Array
    mean: Array
    low: Array
    high: Array


def mean_curve(runs: Sequence[Run], over: str, name: str) -> Curve | None:
    """Mean and Student's 95 % band of a curve, up to the end of the shortest run; None if nothing was measured."""
    known = [xy for xy in (_known(run, over, name) for run in runs) if len(xy[0])]
    if not known:
        return None
    start, end = max(x[0] for x, _ in known), min(x[-1] for x, _ in known)
    grid = np.linspace(start, max(start, end), min(GRID_POINTS, max(len(x) for x, _ in known)))
    values = np.stack([np.interp(grid, x, y) for x, y in known])
    mean = values.mean(axis=0)
    half = _half_width(values) if len(values) >= FEWEST_FOR_BAND else np.full(len(grid), math.nan)
    return Curve(grid, mean, mean - half, mean + half)


def _half_width(values: Array) -> Array:
    """[runs, ...] -> [...]: half the width of Student's 95 % interval of the mean over at least two runs."""
    n = len(values)
    half: Array = student_t(n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return half


def _known(run: Run, over: str, name: str) -> tuple[Array, Array]:
    x, y = (np.asarray(run.curves[key], dtype=np.float64) for key in (over, name))
    both = np.isfinite(x) & np.isfinite(y)
    return x[both], y[both]


def held_out_points(runs: Sequence[Run], over: str) -> list[tuple[float, float, float]]:
    """Mean place, mean measure and half of its 95 % interval at each evaluation; the last of every run go together."""
    x = 0 if over == "tokens" else 1
    each = ([(p[x], p[2]) for p in run.held_out if math.isfinite(p[2])] for run in runs)
    measured = [points for points in each if points]
    found = []
    for place in [*range(min(map(len, measured)) - 1), -1] if measured else []:
        places, values = np.array([points[place] for points in measured]).T
        half = float(_half_width(values)) if len(values) > 1 else 0.0
        found.append((float(places.mean()), float(values.mean()), half))
    return found


def effect_plot(effects: Sequence[Effect], floor: float, margin: float, noun: str = "held-out accuracy") -> Markup:
    """One row per effect: seeds as dots, mean and 95 % interval, the noise floor as a band, the margin as dotted lines."""
    left, right = (_reach(effects, floor, margin, side) for side in (-1, 1))
    height = 0.56 + 0.44 * len(effects)
    with mpl.style.context(["default", STYLE]):
        figure = Figure(figsize=(4.7, height))
        axes = figure.add_axes((0.04, 0.44 / height, 0.92, 1 - 0.48 / height))
        axes.set(xlim=(-left, right), ylim=(0.6 - len(effects), 0.65), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"points of {noun}", labelpad=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+g}" if x else "0"))
        for row, effect in enumerate(effects):
            if row:
                axes.axhline(0.62 - row, color=INK, alpha=0.15, linewidth=0.5)
            _draw_scale(axes, -row, floor, margin)
            _draw_effect(axes, -row, effect, (-left, right))
        spoken = "; ".join(f"{e.name} {signed(e.difference.mean)}, {e.judgement.verdict}" for e in effects)
        return as_svg(figure, "effects", f"Difference of every effect in points with its 95 % interval: {spoken}")


def _reach(effects: Sequence[Effect], floor: float, margin: float, side: int) -> float:
    """The end of the picture on a side, in points.

    It includes every mean, but not all of a very wide interval or a seed that diverged, which would squeeze all else.
    """
    means = [side * e.difference.mean for e in effects]
    ends = [side * x for e in effects for x in (*e.pairs, e.difference.low, e.difference.high)]
    inner = max(x for x in (*means, margin, floor) if math.isfinite(x))
    return 108 * min(max(x for x in (*ends, inner) if math.isfinite(x)), 1.6 * inner)


def _draw_scale(axes: Any, y: float, floor: float, margin: float) -> None:
    """Noise floor, zero and margin behind the marks of a row, but not behind its name."""
    bottom, top = y + BELOW, y + ABOVE
    if math.isfinite(floor):
        axes.fill_between([-100 * floor, 100 * floor], bottom, top, color=INK, alpha=0.1, linewidth=0)
    axes.vlines(0, bottom, top, color=INK, linewidth=0.8)
    for side in (-margin, margin):
        axes.vlines(100 * side, bottom, top, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))


def _draw_effect(axes: Any, y: float, effect: Effect, limits: tuple[float, float]) -> None:
    colour, marker = MARKS[verdict_of(effect)]
    d = effect.difference
    label = {"y": y + 0.28, "transform": axes.get_yaxis_transform(), "va": "baseline", "fontsize": 9}
    axes.text(0.0, s=_label(effect.name), ha="left", weight="bold", **label)
    axes.text(1.0, s=signed(d.mean) if d.n else "no result yet", ha="right", **label)
    if not d.n:
        return
    if math.isfinite(d.low):
        axes.plot([100 * d.low, 100 * d.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    seeds = [100 * x for x in effect.pairs]
    axes.plot(seeds, [y - 0.19] * len(seeds), "o", color=INK, alpha=0.5, markersize=3, mew=0)
    for limit, arrow in zip(limits, "<>", strict=True):
        for ends, level, size in (((100 * d.low, 100 * d.high), y, 5.0), (seeds, y - 0.19, 3.5)):
            if any(math.isfinite(end) and abs(end) > abs(limit) and end * limit > 0 for end in ends):
                axes.plot([limit], [level], arrow, color=colour, markersize=size, mew=0, clip_on=False)
    face = "none" if effect.judgement.verdict == "undecided" and effect.kind != "noise" else colour
    axes.plot([100 * d.mean], [y], marker, color=colour, markerfacecolor=face, markersize=7, mew=1.5)


def curve_groups(arms: Sequence[str], runs: Sequence[Run], primary: Primary = ACCURACY) -> tuple[Group, ...]:
    """Learning curves, with `arms` in the order in which they are shown, the reference first.

    Few arms share a panel for each kind of curve. Of more, at most MOST_PANELS, each has a panel of its own, with the reference
    in grey behind it.
    """
    by = {arm: [run for run in runs if run.arm == arm] for arm in arms[:MOST_PANELS]}
    with mpl.style.context(["default", STYLE]):
        draw = _shared if len(by) <= len(LINES) else _one_each
        return draw(by, kinds(primary))


def kinds(primary: Primary) -> list[Kind]:
    """The curves of a study; those of accuracy are of the reward that it measures, where it measures one."""
    if primary.is_share:
        return [*KINDS]
    title = f"{primary.reward} in training, hundredths"
    return [
        replace(kind, title=title, lowest=-math.inf, highest=math.inf) if kind.name == "accuracy" else kind
        for kind in KINDS
    ]


def _shared(by: Mapping[str, Sequence[Run]], shown: Sequence[Kind]) -> tuple[Group, ...]:
    lines = {arm: Line(runs, *look) for (arm, runs), look in zip(by.items(), LINES, strict=False)}
    frames = [Frame(kind, _limits([*lines.values()], kind), PANEL) for kind in shown]
    panels = tuple(_panel(frame, "", frame.kind.heading, lines) for frame in frames)
    return (Group("All arms", panels, {arm: _swatch(line) for arm, line in lines.items()}),)


def _one_each(by: Mapping[str, Sequence[Run]], shown: Sequence[Kind]) -> tuple[Group, ...]:
    lines = {arm: Line(runs, ACCENT, ()) for arm, runs in by.items()}
    reference = next(iter(lines))
    groups = []
    for kind in shown:
        frame = Frame(kind, _limits([*lines.values()], kind), SMALL_PANEL)
        panels = tuple(
            _panel(frame, f"-{i}", arm, {arm: line}, () if arm == reference else lines[reference].finished)
            for i, (arm, line) in enumerate(lines.items())
        )
        groups.append(Group(kind.heading, panels, {}))
    return tuple(groups)


def _limits(lines: Sequence[Line], kind: Kind) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of all panels of a kind.

    Means of finished runs decide: a band of two seeds or a run that diverged may leave the panel.
    """
    curves = [mean_curve(line.finished, kind.over, kind.name) for line in lines]
    known = [(c.x, c.mean) for c in curves if c is not None]
    known = known or [xy for line in lines for run in line.runs if len((xy := _known(run, kind.over, kind.name))[0])]
    if not known:
        return 0.0, 1.0, 0.0, 1.0
    x, y = np.concatenate([x for x, _ in known]), kind.scale * np.concatenate([y for _, y in known])
    if kind.name == "accuracy":
        measured = [p[1] for line in lines for p in held_out_points(line.finished, kind.over)]
        x, y = np.append(x, 0.0), np.append(y, [kind.scale * value for value in measured])
    low, high = float(y.min()), float(y.max())
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    left, right = float(x.min()), float(x.max())
    wide = 0.03 * (right - left) or 1.0
    top = min(high + room, 1.03 * kind.scale * kind.highest)
    return left - wide, right + wide, low - room if low < 0 else max(low - room, -0.3 * room), top


def _panel(frame: Frame, suffix: str, title: str, lines: Mapping[str, Line], behind: Sequence[Run] = ()) -> Panel:
    """Curves of some arms, with the mean of the runs `behind` them in grey; `suffix` makes the picture's names unique."""
    kind, (width, height) = frame.kind, frame.size
    figure = Figure(figsize=frame.size)
    axes = figure.add_axes((0.42 / width, 0.40 / height, 1 - 0.50 / width, 1 - 0.46 / height))
    axes.set(xlim=frame.limits[:2], ylim=frame.limits[2:])
    axes.set_xlabel(AXES[kind.over], labelpad=1)
    axes.grid(color=INK, alpha=0.12, linewidth=0.5)
    for axis, whole in ((axes.xaxis, kind.over in ("step", "tokens")), (axes.yaxis, False)):
        axis.set_major_locator(MaxNLocator(4, integer=whole, min_n_ticks=1 if whole else 2))
        axis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
    grey = mean_curve(behind, kind.over, kind.name)
    if grey is not None:
        axes.plot(grey.x, kind.scale * grey.mean, color=INK, alpha=0.4, linewidth=1.1)
    ends = {arm: _draw_line(axes, line, kind) for arm, line in lines.items()}
    missing = tuple(arm for arm, end in ends.items() if not end)
    if len(missing) == len(lines):
        return Panel(title, Markup(), missing)
    at_end = ", ".join(f"{arm} {end}" for arm, end in ends.items() if end)
    picture = as_svg(figure, f"{kind.name}-{kind.over}{suffix}", f"{kind.heading}; at the end {at_end}")
    return Panel(title, picture, missing)


def _draw_line(axes: Any, line: Line, kind: Kind) -> str:
    """Draw an arm; returns its last mean in words, empty if nothing was measured."""
    end = ""
    curve = mean_curve(line.finished, kind.over, kind.name)
    if curve is not None:
        mean, low, high = (kind.scale * y for y in (curve.mean, curve.low, curve.high))
        if np.isfinite(low).all():
            low, high = np.maximum(low, kind.scale * kind.lowest), np.minimum(high, kind.scale * kind.highest)
            axes.fill_between(curve.x, low, high, color=line.colour, alpha=0.14, linewidth=0)
        axes.plot(curve.x, mean, color=line.colour, linestyle=(0, line.dashes) if line.dashes else "-")
        end = f"{mean[-1]:.3g}"
    for run in line.runs:
        x, y = _known(run, kind.over, kind.name)
        if run.status == "diverged" and len(x):
            axes.plot(x, kind.scale * y, color=line.colour, linewidth=0.8, linestyle=(0, (1, 1)))
            axes.plot(x[-1:], kind.scale * y[-1:], "x", color=line.colour, markersize=5)
            end = end or "diverged"
    if kind.name == "accuracy":
        for place, middle, half in held_out_points(line.finished, kind.over):
            ends = [kind.scale * max(kind.lowest, middle - half), kind.scale * min(kind.highest, middle + half)]
            axes.plot([place, place], ends, color=line.colour, linewidth=1)
            axes.plot([place], [kind.scale * middle], "o", color=line.colour, markersize=4.5, mew=1)
    return end


def _swatch(line: Line) -> Markup:
    dashed = f' stroke-dasharray="{" ".join(f"{2 * d:g}" for d in line.dashes)}"' if line.dashes else ""
    return Markup(
        f'<svg class="swatch" viewBox="0 0 36 8" aria-hidden="true"><path d="M0 4H36" stroke="{COLOURS[line.colour]}" '
        f'stroke-width="3"{dashed}/></svg>'
    )


def _short(value: float) -> str:
    """A number on an axis."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _label(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"
