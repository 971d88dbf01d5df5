"""Success rates of problems, measured before training: the file of `slimrl difficulty`, and the problems that it chooses.

A file has one JSON object a line: how the rates were measured, then a row for each problem,

    {"id": "gsm8k/train/00007", "question": "3f2a90b1c4d5e6f7", "right": 3, "samples": 8, "rate": 0.375}

`question` is a digest of what the problem asks, by which a rate of another problem is found out.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from slimrl.config.task import EVERY_RATE, TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Problem
from slimrl.tasks.questions import asked, normalized
from slimrl.tasks.rows import Row, plain
from slimrl.tasks.sources import read_rows

DIGITS = 16
"""Of the digest of a question."""
FORM = ("style", "checker")
"""Settings of a task that decide what is right; rates that were measured with others are worth a note."""


@dataclass(frozen=True)
class Rate:
    """The answers of a model to one problem, counted."""

    id: str
    question: str
    """Digest of what the problem asks; empty in a file that does not say."""
    right: int
    samples: int

    @property
    def rate(self) -> float:
        """Share of right answers."""
        return self.right / self.samples

    def row(self) -> dict[str, Any]:
        """As the file has it."""
        return {**asdict(self), "rate": self.rate}


@dataclass(frozen=True)
class Rates:
    """A file of success rates."""

    origin: Mapping[str, Any]
    """How they were measured; empty where the file does not say."""
    by_id: Mapping[str, Rate]
    places: Mapping[str, str]
    """`file:line` of each."""


def refuse_immeasurable(config: TaskConfig) -> None:
    """Raises SettingsError for a task without an end, and for one in which nothing is right."""
    if config.is_made:
        raise SettingsError(f"the problems of task {config.name} never end; give --task a task that is read from data")
    if config.checker == "none":
        raise SettingsError("with task.checker=none nothing is right, so there are no success rates; choose a checker")


def question_digest(problem: Problem) -> str:
    """The same for questions that differ in nothing that means something (`slimrl/tasks/questions.py`)."""
    text = normalized(asked(problem))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


def read_rates(file: str) -> Rates:
    """Read a file of success rates.

    Rows need `id`, `right` and `samples`. Raises DataError, naming file:line, for a bad row and for an id that is there twice.
    """
    first, *rest = rows = read_rows(file)
    origin: dict[str, Any] = {}
    if "id" not in first.fields and "samples" in first.fields:
        origin, rows = {name: plain(value) for name, value in first.fields.items()}, rest
    by_id: dict[str, Rate] = {}
    places: dict[str, str] = {}
    for row in rows:
        rate = _rate(row)
        if rate.id in by_id:
            row.fail(f"id {rate.id[:60]!r} is also that of {places[rate.id]}; remove one of them")
        by_id[rate.id], places[rate.id] = rate, row.where
    return Rates(origin, by_id, places)


def _rate(row: Row) -> Rate:
    name, question = row.answer("id"), row.optional_text("question")
    for field in ("right", "samples"):
        if field not in row.fields:
            row.missing((field,), "; slimrl difficulty writes such a file")
    right, samples = row.number("right"), row.number("samples")
    if not (right.is_integer() and samples.is_integer() and 0 <= right <= samples and samples):
        row.fail(f"{right:g} right of {samples:g} samples is no success rate; correct the row")
    return Rate(name, question, int(right), int(samples))


def rated(
    problems: Sequence[Problem], config: TaskConfig
) -> tuple[tuple[Problem, ...], dict[str, Rate], tuple[str, ...]]:
    """The problems that have a rate in `task.rates` within `task.success_rate`, of difficulty 1 - rate; their rates by id; notes.

    Raises DataError, naming file:line, for the rate of another question, and SettingsError where no problem is left.
    """
    found = read_rates(config.rates)
    known = [problem for problem in problems if problem.id in found.by_id]
    if not known:
        raise SettingsError(
            f"task.rates={config.rates} has none of the {len(problems):,} training problems (the first is {problems[0].id}); "
            "measure them with slimrl difficulty and the same task settings"
        )
    for problem in known:
        written = found.by_id[problem.id].question
        if written and written != question_digest(problem):
            raise DataError(
                f"{found.places[problem.id]}: {problem.id} asked something else when its rate was measured; measure again with "
                "slimrl difficulty, or give problems ids of their own"
            )
    low, high = config.success_rate
    kept = [problem for problem in known if low <= found.by_id[problem.id].rate <= high]
    if not kept:
        raise SettingsError(
            f"none of {len(known):,} training problems has a success rate from {low:g} to {high:g} in {config.rates}; widen "
            "task.success_rate"
        )
    rates = {problem.id: found.by_id[problem.id] for problem in kept}
    chosen = tuple(replace(problem, difficulty=1 - rates[problem.id].rate) for problem in kept)
    return chosen, rates, _notes(config, found, problems, len(known), len(kept))


def _notes(config: TaskConfig, found: Rates, problems: Sequence[Problem], known: int, kept: int) -> tuple[str, ...]:
    low, high = config.success_rate
    mean = math.fsum(rate.rate for rate in found.by_id.values()) / len(found.by_id)
    of = f" of {found.origin['model']}" if "model" in found.origin else ""
    notes = [f"task.rates: success rates{of}, {mean:.1%} on average; difficulty is 1 minus the rate"]
    if config.success_rate != EVERY_RATE:
        notes.append(
            f"{kept:,} of {known:,} training problems have a success rate from {low:g} to {high:g} (task.success_rate)"
        )
    if known < len(problems):
        first = next(problem.id for problem in problems if problem.id not in found.by_id)
        notes.append(
            f"{len(problems) - known:,} of {len(problems):,} training problems have no rate in {config.rates} and are left out, "
            f"the first of them {first}; slimrl difficulty measures the rest"
        )
    for key in FORM:
        then, now = found.origin.get(key, getattr(config, key)), getattr(config, key)
        if then != now:
            notes.append(f"the rates were measured with task.{key}={then}, and answers are read with {now}")
    return tuple(notes)


def summary(rates: Sequence[Rate]) -> dict[str, Any]:
    """`n` problems, `samples` of each, the `mean` rate with its 95 % interval `low`, `high` over problems, the shares of problems
    that are never (`at_0`) and always (`at_1`) right, and `histogram`: problems by their right samples, from 0 to `samples`.
    """
    # Reward workers load this module, and SciPy would be a quarter of all that they load.
    from slimrl.statistics import accuracy_interval

    shares = [rate.rate for rate in rates]
    samples = max(rate.samples for rate in rates)
    low, high = accuracy_interval(shares)
    counts = Counter(rate.right for rate in rates)
    return {
        "n": len(rates),
        "samples": samples,
        "mean": math.fsum(shares) / len(shares),
        "low": low,
        "high": high,
        "at_0": shares.count(0.0) / len(shares),
        "at_1": shares.count(1.0) / len(shares),
        "histogram": [counts[right] for right in range(samples + 1)],
    }
