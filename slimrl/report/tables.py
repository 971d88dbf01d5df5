"""The tables of a study's report, as text for the page and for Markdown: every number is rounded here, once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slimrl.statistics import CONFIDENCE, Interval
from slimrl.study.compare import ArmResult, Effect
from slimrl.study.gains import BY_FORM, origin
from slimrl.study.primary import read_primary
from slimrl.study.results import Results
from slimrl.text import UNKNOWN, percent, signed

NOISE = "noise"
SYMBOLS = {"better": "▲", "worse": "▼", "no difference": "■", "undecided": "○", "identical": "◆", NOISE: "✚"}
"""By verdict, which is never shown by colour alone."""
REMARKS = {
    "inert": "cannot act",
    "confounded": "changes more than one thing",
    "reward": "training reward not comparable",
    "finding": "found in its runs",
}
SEEN = "found inert in the run"
CELLS = {
    "right": "right, in form", "right_out_of_form": "right, out of form",
    "wrong_in_form": "wrong, in form", "wrong_out_of_form": "wrong, out of form",
}  # fmt: skip


GAINS = {
    "test/sampled": "Strict", "lenient": "Lenient", BY_FORM: "By form", "pass@n": "pass@{n}, strict",
    "lenient_pass@n": "pass@{n}, lenient", "disputed": "Disputed", "drop": "Drop on twins",
}  # fmt: skip
"""Titles of the changes from the untrained model; n is the number of samples a problem."""


@dataclass(frozen=True)
class Cell:
    """A number, and what is shown next to it."""

    main: str
    more: str = ""

    def __str__(self) -> str:
        return f"{self.main} {self.more}".strip()


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    detail: str
    cells: tuple[Cell, ...]
    verdict: str = ""
    """Key of SYMBOLS, or empty."""
    marks: tuple[str, ...] = ()
    """Kinds of remarks on the arm."""
    shares: tuple[float, ...] = ()
    """Parts of 1, drawn as a bar."""


@dataclass(frozen=True)
class Table:
    """Rows under titles, the first of which is that of the names."""

    caption: str
    titles: tuple[str, ...]
    rows: tuple[Row, ...]


def span(low: float, high: float, *, sign: bool) -> str:
    """An interval of shares in percent, or of differences (`sign`) in points; empty if it is infinite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{signed(low)}, {signed(high)}]" if sign else f"[{percent(low)}, {percent(high)}]"


def probability(p: float) -> str:
    return UNKNOWN if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else UNKNOWN


def times(value: float, reference: float) -> str:
    known = math.isfinite(value) and math.isfinite(reference) and reference > 0
    return f"{value / reference:.2f}×" if known else UNKNOWN


def setting(value: Any) -> str:
    """A setting as it may stand in a settings file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def ordered_effects(results: Results) -> list[Effect]:
    """The A/A comparison, all switches together, the switches, and interactions; of a kind, the largest difference first."""
    kinds = (NOISE, "together", "switch", "interaction")
    return sorted(results.effects, key=lambda e: (kinds.index(e.kind), _descending(e.difference.mean), e.name))


def ordered_arms(results: Results) -> list[ArmResult]:
    """The reference, its A/A arm, and the others in the order of their effects, or by accuracy if an arm has no effect."""
    rank = {effect.name: place for place, effect in enumerate(ordered_effects(results))}
    repeats = {effect.name for effect in results.effects if effect.kind == NOISE}
    by_verdict = one_to_one(results)

    def place(arm: ArmResult) -> tuple[int, float, str]:
        first = 0 if arm.name == results.reference else 1 if arm.name in repeats else 2
        return first, rank[arm.name] if by_verdict and first else _descending(arm.primary.mean), arm.name

    return sorted(results.arms, key=place)


def one_to_one(results: Results) -> bool:
    """True if every effect is that of one arm against the reference, so that one table can hold both."""
    others = sorted(arm.name for arm in results.arms if arm.name != results.reference)
    plain = all(effect.weights == {effect.name: 1.0, results.reference: -1.0} for effect in results.effects)
    return plain and others == sorted(effect.name for effect in results.effects)


def _descending(value: float) -> float:
    return -value if math.isfinite(value) else math.inf


def verdict_words(effect: Effect) -> str:
    """The verdict; for the A/A arm, which changes nothing, a statement on its difference as one of chance."""
    d = effect.difference
    if effect.kind != NOISE:
        return effect.judgement.words
    if d.n < 2:
        return "noise check: needs two seeds"
    if d.p < 1 - CONFIDENCE:
        return f"noise check: differs by {signed(d.mean)} points though nothing was changed"
    if effect.judgement.verdict == "no difference" or d.sd == 0:
        return f"noise check: {effect.judgement.words}"
    bound = percent(effect.judgement.bound)
    return f"noise check: nothing was changed, and no difference up to {bound} points is found"


def verdict_of(effect: Effect) -> str:
    """Key of SYMBOLS."""
    return NOISE if effect.kind == NOISE else effect.judgement.verdict


def verdict_tables(results: Results) -> tuple[Table, ...]:
    """One table if every effect is that of an arm; otherwise one of the effects and one of the arms."""
    effects = ordered_effects(results)
    arms = ordered_arms(results)
    cost = ("Tokens, relative", "Seconds, relative", "Seeds finished")
    title = read_primary(results.primary).title
    judged = ("Verdict", "Difference, points", "p (Holm)", "Over problems, points", "Chance of improvement")
    if one_to_one(results):
        by = {effect.name: effect for effect in effects}
        rows = []
        for arm in arms:
            own = _judged(by[arm.name]) if arm.name in by else (Cell("reference"), *[Cell(UNKNOWN)] * 4)
            cells = (*own[:2], _accuracy(arm.primary), *own[2:], *_costs(arm, results))
            verdict = verdict_of(by[arm.name]) if arm.name in by else ""
            rows.append(Row(arm.name, _changes(arm, results), cells, verdict, _marks(arm)))
        return (Table("Verdicts", ("Arm", *judged[:2], title, *judged[2:], *cost), tuple(rows)),)
    of_effects = tuple(
        Row(e.name, compared(e), (*_judged(e), Cell(f"{len(e.seeds)}/{results.seeds}")), verdict_of(e)) for e in effects
    )
    of_arms = tuple(
        Row(arm.name, _changes(arm, results), (_accuracy(arm.primary), *_costs(arm, results)), "", _marks(arm))
        for arm in arms
    )
    verdicts = Table("Verdicts", ("Effect", *judged, "Seeds compared"), of_effects)
    return verdicts, Table("Arms", ("Arm", title, *cost), of_arms)


def compared(effect: Effect) -> str:
    """The arms that an effect compares, in words."""
    plus = [arm for arm, weight in effect.weights.items() if weight > 0]
    minus = [arm for arm, weight in effect.weights.items() if weight < 0]
    if effect.kind == NOISE:
        return f"the settings of {minus[0]} with other seeds"
    if len(plus) == len(minus) == 1:
        return f"{plus[0]} less {minus[0]}"
    if effect.kind == "interaction":
        return "both together, beyond the sum of each alone"
    return f"mean of the {len(plus)} arms with it less mean of the {len(minus)} without"


def _judged(effect: Effect) -> tuple[Cell, ...]:
    d, problems = effect.difference, effect.problems
    partly = 0 < effect.identical < len(effect.seeds)
    same = f"equal to the last bit on {effect.identical} of {len(effect.seeds)} seeds" if partly else ""
    over = span(problems["low"], problems["high"], sign=True) if problems else ""
    chance = effect.probability_of_improvement
    return (
        Cell(f"{SYMBOLS[verdict_of(effect)]} {verdict_words(effect)}", same),
        Cell(signed(d.mean), span(d.low, d.high, sign=True)),
        Cell(probability(effect.adjusted_p) if d.n > 1 else UNKNOWN),
        Cell(over or UNKNOWN),
        Cell(f"{percent(chance, 0)}%" if math.isfinite(chance) else UNKNOWN),
    )


def _accuracy(interval: Interval) -> Cell:
    return Cell(percent(interval.mean), span(interval.low, interval.high, sign=False))


def _costs(arm: ArmResult, results: Results) -> tuple[Cell, ...]:
    own = next(other for other in results.arms if other.name == results.reference).measures
    broken = [f"{n} {status}" for n, status in ((arm.diverged, "diverged"), (arm.failed, "failed")) if n]
    return (
        *(Cell(times(_measured(arm, key), own.get(key, math.nan))) for key in ("tokens", "seconds")),
        Cell(f"{arm.finished}/{arm.planned}", ", ".join(broken)),
    )


def _measured(arm: ArmResult, key: str) -> float:
    return arm.measures.get(key, math.nan)


def _changes(arm: ArmResult, results: Results) -> str:
    if any(effect.kind == NOISE and effect.name == arm.name for effect in results.effects):
        return f"the settings of {results.reference} with other seeds"
    unchanged = "what all others are compared with" if arm.name == results.reference else "nothing"
    return ", ".join(arm.overrides) or unchanged


def _marks(arm: ArmResult) -> tuple[str, ...]:
    kinds = {kind for kind, _ in arm.remarks}
    return tuple(text for kind, text in REMARKS.items() if kind in kinds)


def remarks(results: Results) -> list[tuple[tuple[str, ...], str, str]]:
    """Arms, kind in words, text: remarks on arms, and settings that their runs found inert, but not those of the reference."""
    everywhere = {text for run in results.runs if run.arm == results.reference for text in run.inert}
    found: dict[tuple[str, str], list[str]] = {}
    for arm in ordered_arms(results):
        told = [(REMARKS[kind], text) for kind, text in arm.remarks]
        seen = dict.fromkeys(text for run in results.runs if run.arm == arm.name for text in run.inert)
        told += [(SEEN, text) for text in seen if arm.name == results.reference or text not in everywhere]
        for remark in told:
            found.setdefault(remark, []).append(arm.name)
    return [(tuple(names), kind, text) for (kind, text), names in found.items()]


def cost_table(results: Results) -> Table:
    """The cost of each arm, as means over its runs."""
    rows = []
    for arm in ordered_arms(results):
        tokens, seconds, _ = _costs(arm, results)
        cells = (
            Cell(count(_measured(arm, "tokens")), tokens.main),
            Cell(count(_measured(arm, "seconds"), digits=1), seconds.main),
            Cell(count(_measured(arm, "steps"))),
            Cell(percent(_measured(arm, "no_signal"))),
            Cell(count(_measured(arm, "mean_length"))),
            Cell(percent(_measured(arm, "truncated"))),
        )
        rows.append(Row(arm.name, "", cells))
    titles = (
        "Arm", "Tokens sampled", "Seconds", "Steps", "Groups without signal, %", "Tokens per test completion",
        "Test completions cut off, %",
    )  # fmt: skip
    return Table("Cost per arm", titles, tuple(rows))


def form_table(results: Results) -> Table:
    """Sampled test completions by answer and form; of the untrained model only the sums are known."""
    before: Mapping[str, float] = next((run.before for run in results.runs if run.before), {})
    named: list[tuple[str, str, Mapping[str, float]]] = [("before training", "the untrained model", before)]
    named += [(arm.name, "", arm.measures) for arm in ordered_arms(results)]
    rows = []
    for name, detail, measures in named:
        values = [measures.get(key, math.nan) for key in (*CELLS, "lenient", "format")]
        shares = tuple(values[: len(CELLS)])
        bar = shares if all(map(math.isfinite, shares)) else ()
        rows.append(Row(name, detail, tuple(Cell(percent(value)) for value in values), shares=bar))
    titles = ("Arm", *(text.capitalize() for text in CELLS.values()), "Answer right", "Form right")
    return Table("Accuracy split into answer and form, % of sampled test completions", titles, tuple(rows))


def gain_table(results: Results) -> Table:
    """The change of each arm from its own untrained model, and what kind of gain that is; without rows before any run is done."""
    known = [arm for arm in ordered_arms(results) if arm.gains or arm.diverged]
    keys = [key for key in GAINS if any(key in arm.gains for arm in known)]
    samples = int(results.settings.get("evaluation.samples", 1))
    rows = tuple(
        Row(arm.name, _left_out(arm), (Cell(origin(arm.gains, samples)), *(_gain(arm.gains.get(key)) for key in keys)))
        for arm in known
    )
    titles = tuple(GAINS[key].format(n=samples) for key in keys)
    return Table("Gains over the untrained model, points", ("Arm", "Where it comes from", *titles), rows)


def _left_out(arm: ArmResult) -> str:
    """The runs that an arm's gains are without: those that diverged, whose models are not measured."""
    return f"{arm.finished} of {arm.planned} runs; {arm.diverged} diverged" if arm.diverged else ""


def _gain(change: Interval | None) -> Cell:
    return Cell(UNKNOWN) if change is None else Cell(signed(change.mean), span(change.low, change.high, sign=True))


def troubled_runs(results: Results) -> Table:
    """Runs that diverged or failed, with the reason; the others are only counted, with their arm."""
    order = {arm.name: place for place, arm in enumerate(ordered_arms(results))}
    rows = tuple(
        Row(run.arm, "", (Cell(str(run.index)), Cell(run.status), Cell(run.reason or UNKNOWN), Cell(str(run.steps))))
        for run in sorted(results.runs, key=lambda run: (order[run.arm], run.index))
        if run.status in ("diverged", "failed")
    )
    return Table("Runs that diverged or failed", ("Arm", "Seed", "Status", "Reason", "Steps taken"), rows)
