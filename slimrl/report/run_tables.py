"""The sentences and tables of a run's page: every number is rounded here, once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slimrl.report.episodes import Turn, turns_said
from slimrl.report.record import RunRecord
from slimrl.report.tables import Cell, Row, Table, count, span
from slimrl.results import GradedCompletion
from slimrl.runs.reader import way_to_resume
from slimrl.text import UNKNOWN, counted, duration, percent, points, signed, signed_points

SHARES = {"lenient": "answer right, whatever its form", "format": "in the form asked for", "truncated": "cut off"}
PARTS = ("prefill", "decode", "sampling", "rewards", "reference", "forward", "backward", "optimizer", "rest")
"""Of a step, as `log.profile` measures them."""
STATES = {
    "running": "The run goes on: this page was made on the way.",
    "interrupted": "The run was interrupted; {way} continues it.",
    "preempted": "The run was told to stop; {way} continues it.",
    "damaged": "run.json cannot be read.",
}
MOST_PROBLEMS = 6
"""Problems won that are shown, and problems lost."""


@dataclass(frozen=True)
class Moved:
    """A held-out problem whose share of right samples changed, with a completion of each end."""

    id: str
    question: str
    answer: str
    before: GradedCompletion
    after: GradedCompletion
    shares: tuple[float, float]


def headline(run: RunRecord) -> str:
    """The change of what is held out, with its interval, in a sentence."""
    name, change = _primary(run)
    if not change:
        if not run.measured:
            return "Nothing is measured yet"
        first = run.measured[min(run.measured)]["test"]
        interval = span(first["low"], first["high"], sign=False)
        return f"{percent(first['accuracy'])} % {interval} of held-out answers are right before training"
    what = f"The held-out reward {name}" if name else "Held-out accuracy"
    interval = f"[{change['low']:+.2f}, {change['high']:+.2f}]" if name else _span(change)
    if change["low"] <= 0 <= change["high"]:
        size = f"{change['change']:+.2f}" if name else signed_points(change["change"])
        return f"{what} is not shown to have changed: {size} {interval}"
    size = f"{abs(change['change']):.2f}" if name else points(abs(change["change"]))
    return f"{what} {'rose' if change['change'] > 0 else 'fell'} by {size} {interval}"


def _primary(run: RunRecord) -> tuple[str, Mapping[str, float]]:
    """The change that the headline is about: accuracy, or where nothing is right or wrong the first reward, which is named."""
    test = run.difference.get("test", {})
    reward = next((key for key in test if key.startswith("rewards/")), "")
    if run.settings.get("task.checker") == "none" and reward:
        return reward.removeprefix("rewards/"), test[reward]
    return "", test.get("sampled", test.get("greedy", {}))


def answer(run: RunRecord) -> list[str]:
    """The numbers behind the headline, and the other measures in a sentence each."""
    found = []
    name, change = _primary(run)
    if change and not name and run.measured:
        ends = [run.measured[step]["test"] for step in (min(run.measured), max(run.measured))]
        before, after = (f"{percent(end['accuracy'])} %" for end in ends)
        found.append(
            f"{before} right before, {after} after {counted(max(run.measured), 'step')}, on the same "
            f"{counted(int(change['n']), 'problem')}, sampled as in training. In brackets: 95 % interval."
        )
    for split, measures in run.difference.items():
        for mode, one in measures.items():
            if mode in ("sampled", "greedy") and (split, mode) != ("test", "sampled"):
                found.append(f"{split.capitalize()}, {mode}: {signed(one['change'])} {_span(one)} points.")
    return found


def _span(change: Mapping[str, float]) -> str:
    return span(change["low"], change["high"], sign=True)


def notices(run: RunRecord) -> list[tuple[str, str]]:
    """Reasons for caution: a word and a sentence."""
    reason = str(run.record.get("reason", ""))
    found = []
    if run.state in STATES:
        found.append((run.state.capitalize(), STATES[run.state].format(way=way_to_resume(run.path))))
    elif run.state in ("diverged", "failed"):
        found.append((run.state.capitalize(), reason or "No reason is recorded."))
    if run.damaged:
        found.append(("Damaged", run.damaged))
    found += [("Finding", str(text)) for text in run.summary.get("findings", ())]
    return found


def facts(run: RunRecord) -> dict[str, tuple[str, str]]:
    """Figure and meaning by title."""
    asked = run.settings.get("steps", 0)
    test = run.measured[min(run.measured)]["test"] if run.measured else {}
    last = run.history[-1] if run.history else {}
    parameters = run.record.get("parameters", 0)
    model = str(run.settings.get("model.path", "")) or UNKNOWN
    memory = run.summary.get("memory") or {}
    return {
        "Model": (model.rstrip("/").rsplit("/", 1)[-1], f"{parameters / 1e6:,.1f} million parameters" if parameters else ""),
        "Steps": (f"{run.steps} of {asked}" if asked else str(run.steps), f"task {run.settings.get('task.name', UNKNOWN)}"),
        "Held out": (count(test.get("n", math.nan)), "problems, the same before and after"),
        "Tokens": (count(last.get("num_tokens", math.nan)), "trained on" if _is_imitation(run) else "sampled in training"),
        "Time": (duration(_seconds(run)) if math.isfinite(_seconds(run)) else UNKNOWN, "of training, without evaluation"),
        "Memory": (f"{memory['measured']:.2f} GiB" if "measured" in memory else UNKNOWN, "at most"),
    }  # fmt: skip


def _is_imitation(run: RunRecord) -> bool:
    return run.record.get("verb") == "sft"


def _seconds(run: RunRecord) -> float:
    total = run.history[-1].get("time/total", math.nan) if run.history else math.nan
    return float(run.summary.get("seconds", total))


def before_after(run: RunRecord) -> Table:
    """Every held-out measure of the first and the last evaluation; without rows before there is one."""
    rows: list[Row] = []
    if run.measured:
        first, last = (run.measured[step] for step in (min(run.measured), max(run.measured)))
        for split, before in first.items():
            after = last.get(split, {}) if len(run.measured) > 1 else {}
            rows += _split_rows(split, before, after, run.difference.get(split, {}))
    return Table("Before and after", ("Held out", "Before", "After", "Paired change"), tuple(rows))


def _split_rows(
    split: str, before: Mapping[str, float], after: Mapping[str, float], changes: Mapping[str, Mapping[str, float]]
) -> list[Row]:
    rows = []
    for name, key, low, high in (
        ("sampled", "accuracy", "low", "high"),
        ("greedy", "greedy", "greedy_low", "greedy_high"),
    ):
        if key in before:
            cells = [
                Cell(percent(end[key]), span(end[low], end[high], sign=False)) if key in end else Cell(UNKNOWN)
                for end in (before, after)
            ]
            change = changes.get(name)
            cells.append(Cell(signed(change["change"]), _span(change)) if change else Cell(UNKNOWN))
            rows.append(Row(f"{split.capitalize()}, {name}", "right, in form, %", tuple(cells)))
    for key, text in SHARES.items():
        if key in before:
            cells = [Cell(percent(end[key])) if key in end else Cell(UNKNOWN) for end in (before, after)]
            rows.append(Row(f"{split.capitalize()}, {key}", f"{text}, %", (*cells, _plain_change(before, after, key))))
    if "mean_length" in before:
        cells = [Cell(count(end.get("mean_length", math.nan), 1)) for end in (before, after)]
        rows.append(Row(f"{split.capitalize()}, length", "tokens of a completion", (*cells, Cell(UNKNOWN))))
    if "pass@n" in before:
        cells = [Cell(percent(end["pass@n"])) if "pass@n" in end else Cell(UNKNOWN) for end in (before, after)]
        n = f"right in at least one of {before.get('samples', 0):.0f} samples, %"
        rows.append(Row(f"{split.capitalize()}, pass@n", n, (*cells, _plain_change(before, after, "pass@n"))))
    if "drop" in before:
        cells = [
            Cell(signed(end["drop"]), span(end["drop_low"], end["drop_high"], sign=True))
            if "drop" in end
            else Cell(UNKNOWN)
            for end in (before, after)
        ]
        change = changes.get("drop")
        cells.append(Cell(signed(change["change"]), _span(change)) if change else Cell(UNKNOWN))
        rows.append(Row("Twins, drop", "points below their originals", tuple(cells)))
    return [*rows, *_reward_rows(split, before, after, changes)]


def _plain_change(before: Mapping[str, float], after: Mapping[str, float], key: str) -> Cell:
    return Cell(signed(after[key] - before[key])) if key in after else Cell(UNKNOWN)


def _reward_rows(
    split: str, before: Mapping[str, float], after: Mapping[str, float], changes: Mapping[str, Mapping[str, float]]
) -> list[Row]:
    """Rewards in their own units."""
    rows = []
    for key in [key for key in before if "rewards/" in key and f"{key}/least" in before]:
        mode = "greedy" if key.startswith("greedy") else "sampled"
        cells = [
            Cell(f"{end[key]:.2f}", f"[{end[f'{key}/low']:.2f}, {end[f'{key}/high']:.2f}]")
            if key in end
            else Cell(UNKNOWN)
            for end in (before, after)
        ]
        change = changes.get(key)
        text = f"[{change['low']:+.2f}, {change['high']:+.2f}]" if change else ""
        cells.append(Cell(f"{change['change']:+.2f}", text) if change else Cell(UNKNOWN))
        name = f"{key.partition('/')[2]}{', greedy' if mode == 'greedy' else ''}"
        rows.append(Row(f"{split.capitalize()}, {name}", "score of the reward, before its weight", tuple(cells)))
    return rows


def remarks(run: RunRecord) -> list[tuple[str, str]]:
    """Kind and sentence: warnings, switches without effect, events, notes."""
    told = run.record.get("told") or {}
    summary = run.summary
    found = [("warning", text) for text in told.get("warnings", ())]
    found += [("changes more than one thing", text) for text in summary.get("confounded", ())]
    found += [
        (kind, f"{counted(int(n), 'completion')}: {text}")
        for kind in ("unscorable", "unmeasured")
        for text, n in summary.get(kind, {}).items()
    ]
    found += [("cannot act", text) for text in summary.get("inert", ())]
    for event in run.events:
        more = "; ".join(f"{key} {value}" for key, value in event.items() if key not in ("at", "step", "event"))
        found.append((f"step {event.get('step', UNKNOWN)}", f"{event['event']}{f': {more}' if more else ''}"))
    found += [("note", text) for text in told.get("notes", ())]
    return list(dict.fromkeys((kind, str(text)) for kind, text in found))


def cost(run: RunRecord) -> Table:
    """Tokens, time and memory, and where the time of a step went."""
    seconds, rollout, update = _seconds(run), run.total("time/rollout"), run.total("time/update")
    tokens = run.history[-1].get("num_tokens", math.nan) if run.history else math.nan
    both = rollout + update
    memory = run.summary.get("memory") or {}
    profile = run.summary.get("profile") or {}
    rows = [
        Row("Tokens", "", (Cell(count(tokens)),)),
        Row("Seconds of training", "", (Cell(count(seconds, 1)),)),
        Row("Tokens per second", "", (Cell(count(tokens / seconds, 1) if seconds else UNKNOWN),)),
    ]
    if math.isfinite(both) and both:
        rows.append(
            Row(
                "Sampling and rewards", "of the time", (Cell(f"{percent(rollout / both)} %"),), shares=(rollout / both,)
            )
        )
        rows.append(Row("Update", "of the time", (Cell(f"{percent(update / both)} %"),), shares=(update / both,)))
    rows += [
        Row(f"· {part}", "", (Cell(f"{percent(profile[part])} %"),), shares=(profile[part],))
        for part in PARTS
        if profile.get(part, 0) >= 0.0005
    ]
    if "flops_utilisation" in profile:
        rows.append(
            Row("Arithmetic", "of what this machine can", (Cell(f"{percent(profile['flops_utilisation'])} %"),))
        )
    if "measured" in memory:
        rows.append(
            Row(
                "Peak memory",
                f"estimated {memory.get('estimated', math.nan):.2f} GiB",
                (Cell(f"{memory['measured']:.2f} GiB"),),
            )
        )
    return Table("Cost", ("", "Whole run"), tuple(rows))


def moved(run: RunRecord) -> tuple[list[Moved], list[Moved], int]:
    """Test problems that were won and that were lost, the largest changes first, and the number of those that are compared."""
    if run.first is None or run.last is None:
        return [], [], 0
    before, after = (end.test.by_problem("sampled") for end in (run.first, run.last))
    changes = {name: after[name] - before[name] for name in before if name in after}
    changed = sorted((name for name in changes if changes[name]), key=lambda name: (-abs(changes[name]), name))
    ends = [_by_problem(end.test.rows) for end in (run.first, run.last)]
    won: list[Moved] = []
    lost: list[Moved] = []
    for name in changed:
        up = changes[name] > 0
        # of several samples those that show the change
        old, new = (_one(end[name], right) for end, right in zip(ends, (not up, up), strict=True))
        (won if up else lost).append(
            Moved(name, old.question, _text(old.answer), old, new, (before[name], after[name]))
        )
    return won, lost, len(changes)


def said_in(row: GradedCompletion) -> tuple[Turn, ...]:
    """The turns of a held-out episode; empty where a completion is one turn."""
    return turns_said(row.said, row.turn_rewards, row.finish, most=1000)


def _by_problem(rows: Sequence[GradedCompletion]) -> dict[str, list[GradedCompletion]]:
    found: dict[str, list[GradedCompletion]] = {}
    for row in rows:
        if row.mode == "sampled":
            found.setdefault(row.id, []).append(row)
    return found


def _one(rows: Sequence[GradedCompletion], right: bool) -> GradedCompletion:
    return next((row for row in rows if row.strict == right), rows[0])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
