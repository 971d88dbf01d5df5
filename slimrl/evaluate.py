"""Held-out measurement under a fixed protocol: the same problems and the same random draws every time.

Accuracy is strict (the answer in the required form, equal to the gold answer); lenient accuracy (last number) stands
beside it. The training reward is never the headline: several switches change what it means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from slimrl.records import Completion, Problem

if TYPE_CHECKING:
    from slimrl.preflight.setup import Setup

CONFIDENCE = 0.95
ADDED_TO_MEAN = 1.5
ADDED_TO_CHANGE = 1.25
"""Problems put to those seen at either end of the scale (right and wrong, gained and lost): the fewest with which 95 % intervals
cover at least 93.5 % from 30 problems and one sample each on (benchmarks/coverage.py)."""
Array = NDArray[np.float64]
Mode = Literal["sampled", "greedy"]
Comparison = dict[str, dict[Mode, dict[str, float]]]
"""Split, then mode, then `change`, `low`, `high`, `n`."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One held-out completion and its verdicts."""

    id: str
    mode: Mode
    sample: int
    strict: bool
    lenient: bool
    well_formed: bool
    finish: str
    tokens: int
    question: str
    answer: str
    extracted_strict: str
    extracted_lenient: str
    text: str


@dataclass(frozen=True)
class SplitEvaluation:
    """All completions of one split."""

    rows: tuple[Answered, ...]

    def by_problem(self, mode: Mode) -> dict[str, float]:
        """Strict accuracy of each problem, over its samples."""
        verdicts: dict[str, list[bool]] = {}
        for row in self.rows:
            if row.mode == mode:
                verdicts.setdefault(row.id, []).append(row.strict)
        return {problem: float(np.mean(v)) for problem, v in verdicts.items()}

    def summary(self) -> dict[str, float]:
        """`accuracy`, `low`, `high` (strict, sampled, 95 % interval), `greedy` (where measured), `n` problems, and
        `lenient`, `format`, `truncated` (shares), `mean_length` (tokens) of the sampled completions.
        """
        accuracy = list(self.by_problem("sampled").values())
        low, high = interval(accuracy)
        drawn = [row for row in self.rows if row.mode == "sampled"]
        summary = {
            "accuracy": float(np.mean(accuracy)),
            "low": low,
            "high": high,
            "n": len(accuracy),
            "lenient": float(np.mean([row.lenient for row in drawn])),
            "format": float(np.mean([row.well_formed for row in drawn])),
            "truncated": float(np.mean([row.finish == "length" for row in drawn])),
            "mean_length": float(np.mean([row.tokens for row in drawn])),
        }
        greedy = list(self.by_problem("greedy").values())
        if greedy:
            low, high = interval(greedy)
            summary |= {"greedy": float(np.mean(greedy)), "greedy_low": low, "greedy_high": high}
            decoded = [row for row in self.rows if row.mode == "greedy"]
            summary["greedy_lenient"] = float(np.mean([row.lenient for row in decoded]))
        return summary


@dataclass(frozen=True)
class Evaluation:
    """Held-out accuracy after `step` training steps."""

    step: int
    test: SplitEvaluation
    harder: SplitEvaluation
    """Without rows where the task has no harder split."""

    @property
    def splits(self) -> dict[str, SplitEvaluation]:
        """Those that were measured, by name."""
        return {name: split for name, split in (("test", self.test), ("harder", self.harder)) if split.rows}

    def table(self) -> list[dict[str, Any]]:
        """Every completion with its verdicts, as rows of JSON."""
        return [{"split": name, **asdict(row)} for name, split in self.splits.items() for row in split.rows]

    def summaries(self) -> dict[str, dict[str, float]]:
        """The summary of each split."""
        return {name: split.summary() for name, split in self.splits.items()}


def read_evaluations(folder: Path, *, up_to: int) -> Iterator[Evaluation]:
    """What `Evaluation.table` was written to, step-N.jsonl each, by step, none beyond `up_to`; a file that cannot be read, or
    holds no completion of the test split, is left out.
    """
    for path in sorted(folder.glob("step-*.jsonl")):
        splits: dict[str, list[Answered]] = {"test": [], "harder": []}
        try:
            step = int(path.stem.removeprefix("step-"))
            for row in (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line):
                splits[row.pop("split")].append(Answered(**row))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if splits["test"] and step <= up_to:
            yield Evaluation(step, SplitEvaluation(tuple(splits["test"])), SplitEvaluation(tuple(splits["harder"])))


def evaluate(setup: Setup[Any], *, step: int) -> Evaluation:
    """Sample (at the training temperature) and decode greedily on the held-out problems."""
    return Evaluation(step, _answer(setup, setup.held_out), _answer(setup, setup.harder))


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Paired change of strict accuracy by split and mode, over the same problems."""
    modes: tuple[Mode, ...] = ("sampled", "greedy")
    return {
        name: {
            m: paired_difference(b.by_problem(m), after.splits[name].by_problem(m)) for m in modes if b.by_problem(m)
        }
        for name, b in before.splits.items()
    }


def _answer(setup: Setup[Any], problems: Sequence[Problem]) -> SplitEvaluation:
    rollout, evaluation = setup.config.rollout, setup.config.evaluation
    rows: list[Answered] = []
    modes: list[tuple[Mode, int]] = [("sampled", evaluation.samples), *([("greedy", 1)] if evaluation.greedy else [])]  # type: ignore[list-item]
    for mode, samples in modes:
        # The step is not part of the key: before and after meet the same draws, so their difference is paired.
        requests = setup.requests(problems, stream="evaluate", step=0, samples=samples)
        groups = setup.engine.generate(
            requests,
            max_new_tokens=rollout.budget,
            temperature=rollout.temperature,
            greedy=mode == "greedy",
        )
        rows += [
            _judge(setup, problem, completion, mode, sample)
            for problem, group in zip(problems, groups, strict=True)
            for sample, completion in enumerate(group)
        ]
    return SplitEvaluation(tuple(rows))


def _judge(setup: Setup[Any], problem: Problem, completion: Completion, mode: Mode, sample: int) -> Answered:
    text = setup.policy.decode(completion.token_ids)
    grade = setup.task.grade(text, problem.answer)
    return Answered(
        id=problem.id,
        mode=mode,
        sample=sample,
        strict=grade.strict,
        lenient=grade.lenient,
        well_formed=setup.task.style.well_formed(text),
        finish=completion.finish,
        tokens=len(completion.token_ids),
        question=problem.question,
        answer=problem.answer,
        extracted_strict=grade.extracted_strict,
        extracted_lenient=grade.extracted_lenient,
        text=text,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of shares of right answers, one a problem: see `bounded_interval`."""
    return bounded_interval(values, 0.0, 1.0, added=ADDED_TO_MEAN)


def paired_difference(
    before: Mapping[str, float], after: Mapping[str, float], *, reach: float = 1.0
) -> dict[str, float]:
    """Mean change over the same problems with its 95 % interval: `change`, `low`, `high`, `n`.

    `reach` is the largest change that a problem can show, either way. The interval is that of `bounded_interval`, for
    right-or-wrong answers close to Bonett and Price's (Journal of Educational and Behavioral Statistics 37, 2012).
    """
    changes = [after[problem] - before[problem] for problem in before]
    low, high = bounded_interval(changes, -reach, reach, added=ADDED_TO_CHANGE)
    return {"change": float(np.mean(changes)), "low": low, "high": high, "n": len(changes)}


def bounded_interval(values: Sequence[float], lowest: float, highest: float, *, added: float) -> tuple[float, float]:
    """95 % interval of the mean of a population of problems, of which `values`, between `lowest` and `highest`, are a sample.

    A single problem gives the whole range.
    """
    if len(values) < 2:
        return lowest, highest
    mean, variance = np.array([np.mean(values)]), np.array([np.var(values)])
    low, high = interval_of_moments(len(values), mean, variance, lowest, highest, added=added)
    return float(low[0]), float(high[0])


def interval_of_moments(
    n: int, mean: Array, variance: Array, lowest: float, highest: float, *, added: float
) -> tuple[Array, Array]:
    """[m] means and variances (divisor n) of m samples of n > 1 problems each -> [m] lower and upper ends.

    Student's t with n - 1 degrees of freedom, after `added` problems at either end were put to those that were seen, as
    Agresti and Coull (The American Statistician 52, 1998) do for right or wrong. What was not seen has a place so: the interval
    is never without a width, also where no answer changed, nor too short where a few problems decide the mean.
    """
    total = n + 2 * added
    centre = (n * mean + added * (lowest + highest)) / total
    squares = n * (variance + (mean - centre) ** 2) + added * ((lowest - centre) ** 2 + (highest - centre) ** 2)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * np.sqrt(squares) / total
    return np.maximum(lowest, centre - half), np.minimum(highest, centre + half)
