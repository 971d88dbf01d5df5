"""The curves of a run: their panels, which the run's page draws too, and curves.png, one picture of them all.

matplotlib is imported by what draws, at the end of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimrl.results import Summaries
from slimrl.text import counted

PALETTE = ("#0b63b0", "#b04a00", "#00705a", "#8e3b9e", "#59626d")
"""The colours of lines in the light pages, in order."""
INK, QUIET, GROUND = "#1c2025", "#59626d", "#fdfdfc"
STYLE = {
    "font.size": 9, "text.color": INK, "text.parse_math": False, "axes.edgecolor": QUIET, "axes.labelcolor": QUIET,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": False,
    "axes.titlelocation": "left", "axes.titlesize": 10, "axes.titleweight": "bold", "xtick.color": QUIET, "ytick.color": QUIET,
    "xtick.bottom": False, "ytick.left": False, "lines.linewidth": 1.5, "figure.facecolor": GROUND, "axes.facecolor": GROUND,
    "legend.frameon": False,
}  # fmt: skip
ROOM = {"left": 0.05, "right": 0.985, "bottom": 0.075, "top": 0.885, "wspace": 0.2, "hspace": 0.36}
"""Of the panels, as shares of the picture: a layout that fits itself to the texts takes as long again as drawing."""
MARGIN = 3
"""Above 100 and below 0 in a panel of percentages, for the whole marks of points there."""


@dataclass(frozen=True)
class Line:
    """A curve: `ends` are the 95 % intervals of its points, where it has any."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Step and value."""
    ends: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Panel:
    """Curves that are read together, over the steps."""

    title: str
    lines: tuple[Line, ...]
    percent: bool = False
    """Values lie between 0 and 100."""


PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("Reward", {"reward": "in training, weighted"}),
    ("Completion length, tokens", {"completions/mean_length": "mean length"}),
    ("Shares, %", {"completions/clipped_ratio": "completions cut off", "frac_reward_zero_std": "groups with equal rewards"}),
    ("Entropy, nats per token", {"entropy": "entropy"}),
    ("KL to the initial model, nats per token", {"kl": "KL"}),
)  # fmt: skip
"""Title of a panel, and its metrics with their names; before them comes accuracy."""
SFT_PANELS: tuple[tuple[str, dict[str, str]], ...] = (("Loss, nats per token", {"loss": "loss"}),)


def panels(history: Sequence[Mapping[str, float]], measured: Mapping[int, Summaries]) -> list[Panel]:
    """The panels of a run, each with the lines that were measured; `measured` has the summaries of evaluations by step."""
    imitation = any("loss" in row for row in history) and not any("sampling/groups" in row for row in history)
    found = [Panel("Accuracy, %", (*_accuracies(measured), *_lines(history, {"accuracy": "in training"}, 100)), True)]
    for title, names in SFT_PANELS if imitation else PANELS:
        share = title == "Shares, %"
        lines = _lines(history, names, 100 if share else 1)
        found.append(Panel(title, (*lines, *(_rewards(measured) if title == "Reward" else ())), share))
    return found


def _lines(history: Sequence[Mapping[str, float]], names: Mapping[str, str], scale: float) -> list[Line]:
    lines = [
        Line(name, tuple((row["step"], scale * row[key]) for row in history if key in row))
        for key, name in names.items()
    ]
    return [line for line in lines if line.points]


def _accuracies(measured: Mapping[int, Summaries]) -> list[Line]:
    """Strict held-out accuracy by split and mode, in %."""
    found = []
    for split in dict.fromkeys(split for summaries in measured.values() for split in summaries):
        for key, mode, ends in (
            ("accuracy", "sampled", ("low", "high")),
            ("greedy", "greedy", ("greedy_low", "greedy_high")),
        ):
            of = {step: summaries[split] for step, summaries in measured.items() if key in summaries.get(split, {})}
            if of:
                points = tuple((float(step), 100 * s[key]) for step, s in of.items())
                found.append(
                    Line(f"{split}, {mode}", points, tuple((100 * s[ends[0]], 100 * s[ends[1]]) for s in of.values()))
                )
    return found


def _rewards(measured: Mapping[int, Summaries]) -> list[Line]:
    """Held-out means of rewards on the test split, sampled and before weights, with their intervals."""
    tests = {step: found["test"] for step, found in measured.items() if "test" in found}
    names = dict.fromkeys(
        key for test in tests.values() for key in test if f"{key}/least" in test and key.startswith("rewards/")
    )
    found = []
    for key in names:
        of = {step: test for step, test in tests.items() if key in test}
        ends = tuple((test[f"{key}/low"], test[f"{key}/high"]) for test in of.values())
        points = tuple((float(step), test[key]) for step, test in of.items())
        found.append(Line(f"{key.removeprefix('rewards/')}, held out", points, ends))
    return found


def draw_curves(path: Path, history: Sequence[Mapping[str, float]], measured: Mapping[int, Summaries]) -> None:
    """Draw the panels under the name of the run's folder; a panel without values is marked as not measured."""
    # Not pyplot: no screen is needed, and none may be opened.
    import matplotlib as mpl
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = panels(history, measured)
    rows, columns = (2, 3) if len(found) > 2 else (1, 2)
    with mpl.style.context(["default", STYLE]):
        figure = Figure(figsize=(4 * columns, 3.4 * rows), dpi=110)
        figure.subplots_adjust(**ROOM)
        heading = path.parent.resolve().name
        if measured:
            first, last = min(measured), max(measured)
            before, after = (measured[step]["test"]["accuracy"] for step in (first, last))
            heading += f": held-out accuracy {before:.1%} before, {after:.1%} after {counted(last, 'step')}"
        figure.suptitle(heading, x=ROOM["left"], y=0.975, ha="left", fontsize=12, weight="bold")
        for axes, panel in zip(figure.subplots(rows, columns).flat, found, strict=True):
            axes.set_title(panel.title)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            _draw(axes, panel)
        FigureCanvasAgg(figure).print_png(path)  # Figure.savefig draws everything twice


def _draw(axes: Any, panel: Panel) -> None:
    for place, line in enumerate(panel.lines):
        colour, dashes = PALETTE[place % len(PALETTE)], "-" if place < len(PALETTE) else "--"
        x, y = zip(*line.points, strict=True)
        if line.ends:  # a held-out measure: whole marks, and a line only where there are more than two
            below = [max(0.0, middle - low) for middle, (low, _) in zip(y, line.ends, strict=True)]
            above = [max(0.0, high - middle) for middle, (_, high) in zip(y, line.ends, strict=True)]
            dashes = dashes if len(x) > 2 else "none"
            axes.errorbar(
                x, y, yerr=(below, above), color=colour, marker="o", markersize=4.5, linestyle=dashes, label=line.name
            )
        else:
            axes.plot(x, y, color=colour, linestyle=dashes, marker=".", markersize=3, label=line.name)
    if panel.lines:
        if len(panel.lines) > 1:
            axes.legend(fontsize=8)
        axes.grid(color=INK, alpha=0.12, linewidth=0.5)
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", color=QUIET, transform=axes.transAxes)
    if panel.percent:
        axes.set_ylim(-MARGIN, 100 + MARGIN)
