"""The curves of a run as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no screen is needed, and none may be opened

from matplotlib.figure import Figure

from slimrl.runs.measured import Summaries

PANELS = (
    ("held-out accuracy", ()),
    ("training reward (all sampled)", ("reward",)),
    ("completion length, tokens", ("completions/mean_length",)),
    ("share of completions", ("completions/clipped_ratio", "frac_reward_zero_std")),
    ("entropy, nats per token", ("entropy",)),
    ("KL to the initial model, nats per token", ("kl",)),
)


def draw_curves(path: Path, history: Sequence[Mapping[str, float]], measured: Mapping[int, Summaries]) -> None:
    """Six panels over steps, `measured` held out by step; a panel whose metric was never logged says so."""
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        if not keys:
            _draw_accuracy(axes, measured)
        for key in keys:
            points = [(row["step"], row[key]) for row in history if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", markersize=3, label=key)
        if axes.lines:
            axes.legend(fontsize=8)
            axes.grid(alpha=0.3)
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
    figure.savefig(path, dpi=110)


def _draw_accuracy(axes: object, measured: Mapping[int, Summaries]) -> None:
    steps = [*measured]
    for name in measured[steps[0]] if steps else ():
        summaries = [found[name] for found in measured.values()]
        for key, label in (("accuracy", "sampled"), ("greedy", "greedy")):
            if key in summaries[0]:
                prefix = "" if key == "accuracy" else "greedy_"
                middle = [s[key] for s in summaries]
                below = [m - s[f"{prefix}low"] for m, s in zip(middle, summaries, strict=True)]
                above = [s[f"{prefix}high"] - m for m, s in zip(middle, summaries, strict=True)]
                axes.errorbar(steps, middle, yerr=(below, above), marker="o", capsize=3, label=f"{name}, {label}")  # type: ignore[attr-defined]
    axes.set_ylim(0, 1)  # type: ignore[attr-defined]
