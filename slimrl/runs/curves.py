"""curves.png: the curves of a run as one picture. matplotlib is imported by what draws, at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimrl.results import Summaries

PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("held-out accuracy", {}),
    ("reward", {"reward": "training (all sampled), weighted"}),
    ("completion length, tokens", {"completions/mean_length": "mean length"}),
    (
        "shares",
        {"completions/clipped_ratio": "completions cut off", "frac_reward_zero_std": "groups with equal rewards"},
    ),
    ("entropy, nats per token", {"entropy": "entropy"}),
    ("KL to the initial model, nats per token", {"kl": "KL"}),
)
"""Title of a panel, and its metrics with their names in the legend."""
ROOM = {"left": 0.05, "right": 0.985, "bottom": 0.075, "top": 0.905, "wspace": 0.2, "hspace": 0.32}
"""Of the panels, as shares of the picture: a layout that fits itself to the texts takes as long again as drawing."""
MARGIN = 0.03
"""Above 1 and below 0 in a panel of shares, for the whole marks of points there."""


def draw_curves(path: Path, history: Sequence[Mapping[str, float]], measured: Mapping[int, Summaries]) -> None:
    """Draw six panels over steps, under the name of the run's folder; a panel without values is marked as not measured.

    `measured` has the summaries of evaluations by step.
    """
    # Not pyplot: no screen is needed, and none may be opened.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 6.8), dpi=110)
    figure.subplots_adjust(**ROOM)
    heading = path.parent.resolve().name
    if measured:
        first, last = min(measured), max(measured)
        before, after = (measured[step]["test"]["accuracy"] for step in (first, last))
        heading += f": held-out accuracy {before:.1%} before, {after:.1%} after {last} steps"
    figure.suptitle(heading, fontsize=11, parse_math=False)
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if not names:
            _draw_accuracy(axes, measured)
        for key, name in names.items():
            points = [(row["step"], row[key]) for row in history if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", markersize=3, label=name)
        if title == "reward":
            _draw_rewards(axes, measured)
        if axes.lines:
            if len(axes.get_legend_handles_labels()[0]) > 1:
                axes.legend(fontsize=8)
            axes.grid(alpha=0.3)
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        if not names or title == "shares":
            axes.set_ylim(-MARGIN, 1 + MARGIN)
    FigureCanvasAgg(figure).print_png(path)  # Figure.savefig draws everything twice


def _draw_rewards(axes: Any, measured: Mapping[int, Summaries]) -> None:
    """Held-out means of rewards on the test split, sampled and before weights, with their intervals."""
    tests = {step: found["test"] for step, found in measured.items()}
    names = dict.fromkeys(
        key for test in tests.values() for key in test if f"{key}/least" in test and key.startswith("rewards/")
    )
    for key in names:
        steps = [step for step, test in tests.items() if key in test]
        middle, low, high = ([tests[step][f"{key}{end}"] for step in steps] for end in ("", "/low", "/high"))
        below = [max(0.0, m - end) for m, end in zip(middle, low, strict=True)]
        above = [max(0.0, end - m) for m, end in zip(middle, high, strict=True)]
        label = f"{key.removeprefix('rewards/')}, held out"
        axes.errorbar(steps, middle, yerr=(below, above), marker="o", capsize=3, linestyle=":", label=label)


def _draw_accuracy(axes: Any, measured: Mapping[int, Summaries]) -> None:
    """Accuracies with their intervals, joined by a line if there are more than two."""
    steps = [*measured]
    line = "-" if len(steps) > 2 else "none"
    for name in measured[steps[0]] if steps else ():
        summaries = [found[name] for found in measured.values()]
        for key, label in (("accuracy", "sampled"), ("greedy", "greedy")):
            if key in summaries[0]:
                prefix = "" if key == "accuracy" else "greedy_"
                middle = [s[key] for s in summaries]
                below = [max(0.0, m - s[f"{prefix}low"]) for m, s in zip(middle, summaries, strict=True)]
                above = [max(0.0, s[f"{prefix}high"] - m) for m, s in zip(middle, summaries, strict=True)]
                axes.errorbar(
                    steps, middle, yerr=(below, above), marker="o", capsize=3, linestyle=line, label=f"{name}, {label}"
                )
