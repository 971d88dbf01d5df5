"""Tables of an evaluation's measures and of comparisons, for a terminal; they need no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slimrl.measures import Paired
from slimrl.results import Evaluation
from slimrl.text import counted, percent, signed, visible

NAMED = 3
"""Problems that a comparison names of those that were won, and of those that were lost."""
MOST_BARS, BAR = 9, 40
"""Rows of a table of rates between never and always right, and the characters of a bar of all problems."""


def say(console: Console, text: str, style: str = "") -> None:
    """A line in which nothing is read as markup."""
    console.print(Text(visible(text), style=style), soft_wrap=not console.is_terminal)


def unscored_note(name: str, evaluation: Evaluation, split: str) -> str:
    """A sentence on the completions of a split that have no score, with the way out where it is known; empty without any."""
    rows = evaluation.splits[split].rows
    reasons = Counter(row.unscorable for row in rows if row.unscorable)
    if not reasons:
        return ""
    frequent = [reason for reason, _ in reasons.most_common()]
    reason = next((one for one in frequent if one in evaluation.ways_out), frequent[0])
    way_out = evaluation.ways_out.get(reason, "")
    return f"{reasons.total():,} of {len(rows):,} held-out completions ({name}) without a score: {reason}{way_out}"


def show_at_k(console: Console, name: str, measures: Mapping[str, Any]) -> None:
    """pass@k and maj@k of what `name` says, by k; nothing where there is one sample a problem."""
    if [*measures["pass@k"]] == ["1"]:
        return
    table = _table(f"{name}, k", "pass@k in %", "maj@k in %")
    for k, passed in measures["pass@k"].items():
        table.add_row(k, _interval(passed), _interval(measures["maj@k"][k]))
    console.print(table)
    if problems := measures.get("uncompared"):
        say(console, f"note: {uncompared_note(name, problems)}")


def uncompared_note(name: str, problems: int) -> str:
    """A sentence on `problems` of what `name` says, whose maj@k may take equal answers for different ones."""
    return (
        f"{name}: {counted(problems, 'problem')} with more different answers than math-verify is asked about in pairs; there "
        "maj@k tells the rest apart by text and number alone"
    )


def show_tasks(console: Console, model: str, tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """One row per task and split: its problems, and the measures in percent; the last two at each task's largest k."""
    say(console, f"{model}: strict held-out accuracy in % on n problems, with 95 % intervals", "bold")
    rows = [(split_name(task, split), found) for task, splits in tasks.items() for split, found in splits.items()]
    table = _table("", "n", "sampled", "greedy", "lenient", "cut off", "pass@k", "maj@k")
    names = table.columns[0]
    names.no_wrap, names.overflow = False, "fold"  # in a narrow terminal, so that no number is cut
    for name, found in rows:
        (k, passed), (_, majority) = ([*found[key].items()][-1] for key in ("pass@k", "maj@k"))
        sampled = _interval({"value": found["accuracy"], "low": found["low"], "high": found["high"]})
        cells = [percent(found[key]) if key in found else "" for key in ("greedy", "lenient", "truncated")]
        at_k = [f"{percent(one['value'])} (k {k})" for one in (passed, majority)]
        table.add_row(Text(visible(name)), f"{found['n']:.0f}", sampled, *cells, *at_k)
    console.print(table)


def split_name(task: str, split: str) -> str:
    """A split of one of several tasks; the test split goes by the task's name alone."""
    return task if split == "test" else f"{task}, {split}"


def show_comparison(console: Console, names: Sequence[str], part: str, found: Mapping[str, Paired]) -> None:
    """The second model against the first on one split: `found` by mode, `sampled` before `greedy`."""
    first, second = names
    n = next(iter(found.values())).n
    say(console, f"{second} against {first} on {counted(n, 'problem')} of {part}, strict, in %", "bold")
    table = _table("", "first", "second", "difference", "")
    for mode, one in found.items():
        table.add_row(mode, *_pair(one.accuracy), one.verdict)
        for measure, by_k in one.at_k.items() if mode == "sampled" else ():
            for k, estimate in by_k.items():
                if k != "1":  # at 1 both are the accuracy
                    table.add_row(measure.replace("k", k), *_pair(estimate), "")
    console.print(table)
    _show_rewards(console, found)
    for mode, one in found.items():
        if one.verdict == "equal":
            say(console, f"{mode}: equal, every problem has the same share of right answers")
        else:
            won, lost = (f"{len(moved)}{_named(moved)}" for moved in (one.won, one.lost))
            say(console, f"{mode}: won {won}; lost {lost}; {n - len(one.won) - len(one.lost)} alike")


def show_rates(console: Console, name: str, summary: Mapping[str, Any]) -> None:
    """The success rates of a split: their mean, and the problems by their number of right samples."""
    k, histogram, n = int(summary["samples"]), summary["histogram"], int(summary["n"])
    say(
        console,
        f"{name}, {counted(n, 'problem')}, {counted(k, 'sample')} each: {percent(summary['mean'])} % right "
        f"[{percent(summary['low'])}, {percent(summary['high'])}]; never right {percent(summary['at_0'])} %, always "
        f"{percent(summary['at_1'])} %",
        "cyan",
    )
    width = -(-max(0, k - 1) // MOST_BARS) or 1
    parts = [(0, 0), *((i, min(i + width, k) - 1) for i in range(1, k, width)), (k, k)]
    table = _table("right", "problems", "in %", "")
    for first, last in parts:
        count = sum(histogram[first : last + 1])
        right = f"{first}" if first == last else f"{first} to {last}"
        bar = "#" * round(BAR * count / max(1, n))
        table.add_row(f"{right} of {k}", f"{count:,}", percent(count / n), bar)
    console.print(table)


def _show_rewards(console: Console, found: Mapping[str, Paired]) -> None:
    """The rewards of both models in their own units; nothing where none was measured."""
    table = _table("reward", "first", "second", "difference")
    for mode, one in found.items():
        for name, e in one.rewards.items():
            change = f"{e['difference']:+.2f} [{e['low']:+.2f}, {e['high']:+.2f}]"
            table.add_row(Text(visible(f"{name}, {mode}")), f"{e['first']:.2f}", f"{e['second']:.2f}", change)
    if table.row_count:
        console.print(table)


def _named(moved: Mapping[str, tuple[float, float]]) -> str:
    """The first of the problems that moved, with both shares."""
    shown = [f"{name} {percent(a, 0)} to {percent(b, 0)} %" for name, (a, b) in [*moved.items()][:NAMED]]
    if not shown:
        return ""
    return f" ({', '.join(shown)}{', ...' if len(moved) > NAMED else ''})"


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{percent(estimate['value'])} [{percent(estimate['low'])}, {percent(estimate['high'])}]"


def _pair(estimate: Mapping[str, float]) -> tuple[str, str, str]:
    change = f"{signed(estimate['difference'])} [{signed(estimate['low'])}, {signed(estimate['high'])}]"
    return percent(estimate["first"]), percent(estimate["second"]), change


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        table.add_column(Text(visible(title)), no_wrap=True)
    return table
