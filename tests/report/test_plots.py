"""Pictures as a reader sees them: names beside lines, whole steps on axes, intervals within what is possible."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from slimrl import statistics
from slimrl.config.schema import TrainConfig
from slimrl.display.run import WIDTH
from slimrl.report import plots, tables
from slimrl.results import Evaluation, SplitEvaluation, TrainSummary, compare
from slimrl.runs.curves import draw_curves
from slimrl.study.results import collect
from slimrl.study.runs import Run, planned_runs
from slimrl.study.spec import load_study
from tests.config.test_mistakes import on_a_terminal
from tests.study.folders import write_run
from tests.study.synthetic import LINES, make_results
from tests.test_results import answered


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is written."""
    figures: list[Figure] = []
    plots, curves = Figure.savefig, FigureCanvasAgg.print_png
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), plots(self, *a, **k))[1])
    monkeypatch.setattr(
        FigureCanvasAgg, "print_png", lambda self, *a, **k: (figures.append(self.figure), curves(self, *a, **k))[1]
    )
    return figures


def evaluation(step: int, right: int, of: int = 10) -> Evaluation:
    rows = tuple(answered(str(i), i < right) for i in range(of))
    return Evaluation(step, SplitEvaluation(rows), SplitEvaluation(()))


def test_curves_have_a_name_whole_steps_and_readable_legends(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = tmp_path / "my_$run$"
    folder.mkdir()
    history = [
        {
            "step": i, "reward": 0.5, "completions/clipped_ratio": 0.0, "frac_reward_zero_std": 1.0, "entropy": 0.1,
            "completions/mean_length": 12345.0 * i,
        }
        for i in (1, 2, 3)
    ]  # fmt: skip
    draw_curves(folder / "curves.png", history, {e.step: e.summaries() for e in (evaluation(0, 3), evaluation(3, 10))})
    (figure,) = drawn
    figure.canvas.draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i]), "no text lies on another"
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= figure.bbox.y0 for box in boxes)
    assert figure.get_suptitle().startswith("my_$run$: held-out accuracy 30.0% before, 100.0% after 3 steps")
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    texts = [text.get_text() for legend in legends for text in legend.get_texts()]
    assert texts == ["completions cut off", "groups with equal rewards"], "none for a single series, no raw keys"
    for axes in figure.axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks()), axes.get_title()
    accuracy = figure.axes[0]
    assert accuracy.get_ylim()[0] < 0, "a mark at 0 is whole"
    assert accuracy.get_ylim()[1] > 100


def test_names_of_effects_lie_on_no_line(drawn: list[Figure]) -> None:
    results = make_results(dict(list(LINES.items())[:4]), seeds=3, steps=3)
    effects = tables.ordered_effects(results)
    long = [replace(e, name=f"{e.name}_with_a_very_long_name"[:40]) for e in effects]
    plots.effect_plot(long, 0.05, 0.04)
    (figure,) = drawn
    figure.canvas.draw()
    (axes,) = figure.axes
    to_data = axes.transData.inverted()
    names = [text.get_window_extent().transformed(to_data) for text in axes.texts]
    assert len(names) == 2 * len(effects)
    drawn_behind = [path.get_extents() for collection in axes.collections for path in collection.get_paths()]
    assert len(drawn_behind) == 4 * len(effects), "noise floor, zero and two margins in every row"
    for name in names:
        assert all(name.y0 > lines.y1 or name.y1 < lines.y0 for lines in drawn_behind)


def panels(results: object, drawn: list[Figure]) -> list[Figure]:
    arms = [arm.name for arm in tables.ordered_arms(results)]  # type: ignore[arg-type]
    plots.curve_groups(arms, results.runs)  # type: ignore[attr-defined]
    return drawn


def test_steps_have_whole_ticks_and_shares_stay_within_100_percent(drawn: list[Figure]) -> None:
    results = make_results(dict(list(LINES.items())[:2]), seeds=3, steps=4)
    wild = {0: 0.0, 1: 1.0, 2: 1.0}

    def spread(run: Run) -> Run:
        held_out = [(place, seconds, wild[run.index]) for place, seconds, _ in run.held_out]
        return replace(
            run, held_out=held_out, curves=run.curves | {"accuracy": [wild[run.index]] * len(run.curves["step"])}
        )

    figures = panels(replace(results, runs=tuple(map(spread, results.runs))), drawn)
    steps = [f.axes[0] for f in figures if f.axes[0].get_xlabel() == "steps"]
    assert steps
    for axes in steps:
        axes.figure.canvas.draw()
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
    shares = [f.axes[0] for f in figures if f.axes[0].get_xlabel() != "steps"]
    assert shares
    for axes in shares:
        ends = [y for line in axes.lines for y in line.get_ydata()]
        ends += [y for band in axes.collections for path in band.get_paths() for y in path.vertices[:, 1]]
        assert min(ends) >= 0
        assert max(ends) <= 100
        assert axes.get_ylim()[1] < 110


def test_no_interval_leaves_what_is_possible() -> None:
    wide = statistics.interval([0.0, 1.0])
    assert wide.high > 5
    assert (statistics.within(wide, 0, 1).low, statistics.within(wide, 0, 1).high) == (0, 1)
    assert statistics.within(statistics.interval([0.5]), 0, 1).high == math.inf, "one value has no interval"
    results = make_results(dict(list(LINES.items())[:2]), seeds=2, steps=3, status={("base", 0): "diverged"})
    cells = [cell.more for table in tables.verdict_tables(results) for row in table.rows for cell in row.cells]
    shown = [tuple(map(float, cell[1:-1].split(", "))) for cell in cells if cell.startswith("[")]
    assert len(shown) >= 6
    assert all(-100 <= low <= high <= 100 for low, high in shown)
    assert (0.0, 100.0) in shown


def test_results_hold_what_is_shown(tmp_path: Path) -> None:
    expanded = load_study([str(write_study(tmp_path))])
    for planned in planned_runs(expanded, tmp_path):
        right = 2 if planned.arm.name == "kl" else 9
        write_run(planned, list(range(right)) if planned.index else [])
    results = collect(expanded, tmp_path)
    ends = [(arm.primary.low, arm.primary.high) for arm in results.arms]
    assert (0.0, 1.0) in ends
    assert all(0 <= low <= high <= 1 for low, high in ends)
    differences = [
        e.difference for e in results.effects if math.isfinite(e.difference.low)
    ]  # equal runs have no interval
    assert any(found.low == -1 for found in differences)
    assert all(-1 <= found.low <= found.high <= 1 for found in differences)


def write_study(folder: Path) -> Path:
    file = folder / "mine.yaml"
    file.write_text("seeds: 2\narms: {kl: algorithm.kl_coef=0}\n")
    return file


@pytest.mark.parametrize(("before", "after"), [(0, 10), (10, 10), (3, 7), (10, 0)])
def test_the_closing_table_fits(before: int, after: int) -> None:
    first, last = evaluation(0, before), evaluation(3, after)
    summary = TrainSummary(
        run="runs/x", before=first.test.summary(), after=last.test.summary(), difference=compare(first, last), harder={}, steps=3, weights="", optimizer="", tokens_generated=1,
        seconds=1.0, inert=[], confounded=[], unscorable={}, profile={},
        memory={"measured": 1.0, "estimated": 1.0, "error": 0.0, "planned": 1.0},
    )  # fmt: skip
    display = on_a_terminal()
    display.closing(summary, TrainConfig())
    assert max(map(len, display.console.export_text().splitlines())) <= WIDTH
