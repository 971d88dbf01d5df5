"""The gain of an arm's runs over their own untrained model, and where it comes from: form, sharpening, or new answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from slimrl.statistics import Interval, interval
from slimrl.study.runs import Run
from slimrl.text import counted, points, signed, signed_points

MEASURES = ("test/sampled", "lenient", "format", "pass@n", "lenient_pass@n", "disputed", "drop")
"""Those of `Run.before` and `Run.after` whose change is told."""
BY_FORM = "by form"
"""The strict gain less the lenient one."""


def gains(runs: Sequence[Run]) -> dict[str, Interval]:
    """Mean change of each measure over the finished runs of an arm, each against its own untrained model, over seeds."""
    finished = [run for run in runs if run.status == "finished"]
    found: dict[str, Interval] = {}
    for key in MEASURES:
        changes = [run.after[key] - run.before[key] for run in finished if key in run.before and key in run.after]
        if changes and len(changes) == len(finished):
            found[key] = interval(changes)
    if {"test/sampled", "lenient"} <= found.keys():
        strict, lenient = (
            [run.after[key] - run.before[key] for run in finished] for key in ("test/sampled", "lenient")
        )
        found[BY_FORM] = interval([a - b for a, b in zip(strict, lenient, strict=True)])
    return found


def origin(found: Mapping[str, Interval], samples: int) -> str:
    """A sentence on the gain, where `samples` is the k of pass@n. An interval over seeds that holds 0 proves no absence, so it is
    told and not judged.
    """
    strict, lenient = found.get("test/sampled"), found.get("lenient")
    if strict is None or lenient is None or not math.isfinite(strict.low):
        return "too few runs to tell"
    if strict.high < 0:
        return f"a loss of {points(-strict.mean)}"
    if strict.low <= 0:
        return "no gain shown"
    form = found[BY_FORM]
    by_form = f"; {points(form.mean)} of the strict gain by form" if form.low > 0 else ""
    if lenient.low <= 0:
        return f"form, as far as shown: read leniently, the change is {_told(lenient)}"
    best = found.get("lenient_pass@n")
    if best is None:
        return f"more right answers{by_form}"
    within = f"within {counted(samples, 'sample')}"
    if best.low > 0:
        return f"new: {within} it solves {points(best.mean)} more of the problems{by_form}"
    return f"sharpening, as far as shown: {within} the change is {_told(best)}{by_form}"


def _told(change: Interval) -> str:
    return f"{signed_points(change.mean)} [{signed(change.low)}, {signed(change.high)}]"
