"""The results of a run: its evaluations, its summary, and the findings of the preflight.

Plain records without torch, which run directories store, readers read back, and screens and reports show. This module knows
neither how a result is measured nor where it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from slimrl.measures import Tally, at_k, tally
from slimrl.statistics import accuracy_interval, paired_difference

Mode = Literal["sampled", "greedy"]
MODES: tuple[Mode, ...] = ("sampled", "greedy")
Summaries = dict[str, dict[str, float]]
"""By split: see `SplitEvaluation.summary`."""
Comparison = dict[str, dict[Mode, dict[str, float]]]
"""Split, then mode, then `change`, `low`, `high`, `n`."""


@dataclass(frozen=True, slots=True)
class GradedCompletion:
    """One held-out completion and its verdicts."""

    id: str
    """Of the problem."""
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
    thinking: int = 0
    """Tokens up to the end of the thinking; all of `tokens` where it does not end, 0 where there is none."""
    vote: int | None = None
    """The sample of the problem that was the first with an equal answer; None without an answer in the form."""


@dataclass(frozen=True)
class SplitEvaluation:
    """All completions of one split."""

    rows: tuple[GradedCompletion, ...]

    def by_problem(self, mode: Mode) -> dict[str, float]:
        """Strict accuracy of each problem, over its samples."""
        verdicts: dict[str, list[bool]] = {}
        for row in self.rows:
            if row.mode == mode:
                verdicts.setdefault(row.id, []).append(row.strict)
        return {problem: _mean(values) for problem, values in verdicts.items()}

    def tallies(self, mode: Mode = "sampled") -> dict[str, Tally]:
        """The answers of each problem, counted."""
        answers: dict[str, list[tuple[bool, int | None]]] = {}
        for row in self.rows:
            if row.mode == mode:
                answers.setdefault(row.id, []).append((row.strict, row.vote))
        return {problem: tally(votes) for problem, votes in answers.items()}

    def measures(self) -> dict[str, Any]:
        """The summary, and `pass@k` and `maj@k` of the sampled completions (`slimrl/measures.py`)."""
        return {**self.summary(), **at_k(self.tallies().values())}

    def summary(self) -> dict[str, float]:
        """`accuracy`, `low`, `high` (strict, sampled, 95 % interval), `greedy` (where measured), `n` problems, and
        `lenient`, `format`, `truncated` (shares), `mean_length` (tokens) of the sampled completions. Where some think,
        `thinking_length` (tokens) and `thinking_truncated` (share cut off while thinking) of them.
        """
        drawn, decoded = ([row for row in self.rows if row.mode == mode] for mode in MODES)
        accuracy = list(self.by_problem("sampled").values())
        low, high = accuracy_interval(accuracy)
        summary = {"accuracy": _mean(accuracy), "low": low, "high": high, "n": len(accuracy)}
        summary["lenient"] = _mean([row.lenient for row in drawn])
        summary["format"] = _mean([row.well_formed for row in drawn])
        summary["truncated"] = _mean([row.finish == "length" for row in drawn])
        summary["mean_length"] = _mean([row.tokens for row in drawn])
        if any(row.thinking for row in drawn):
            summary["thinking_length"] = _mean([row.thinking for row in drawn])
            summary["thinking_truncated"] = _mean(
                [row.finish == "length" and row.thinking == row.tokens for row in drawn]
            )
        if decoded:
            accuracy = list(self.by_problem("greedy").values())
            low, high = accuracy_interval(accuracy)
            lenient = _mean([row.lenient for row in decoded])
            summary |= {"greedy": _mean(accuracy), "greedy_low": low, "greedy_high": high, "greedy_lenient": lenient}
        return summary


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


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

    def summaries(self) -> Summaries:
        """The summary of each split."""
        return {name: split.summary() for name, split in self.splits.items()}

    def measures(self) -> dict[str, dict[str, Any]]:
        """The same with pass@k and maj@k."""
        return {name: split.measures() for name, split in self.splits.items()}


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Paired change of strict accuracy by split and mode, over the same problems."""
    found: Comparison = {}
    for name, split in before.splits.items():
        for mode in MODES:
            if answers := split.by_problem(mode):
                found.setdefault(name, {})[mode] = paired_difference(answers, after.splits[name].by_problem(mode))
    return found


@dataclass(frozen=True)
class FormFinding:
    """One form of an answer, asked for on a few problems, greedily; counts are of these problems."""

    style: str
    problems: int
    in_form: int
    right: int
    """Strictly."""
    lenient: int
    """Right by the last number after the thinking, whatever the form."""
    cut_off: int
    """Longer than the token budget."""
    mean_length: float
    """Tokens."""
    verdicts: str
    """The strict verdict on each problem, 1 or 0, in one order for all forms."""
    example: str
    """The completion of the first problem."""


@dataclass(frozen=True)
class DoctorReport:
    """The output of `slimrl doctor --json`; shares are of the probe's completions or groups."""

    first_prompt: str
    stop_ids: dict[str, str]
    """Stop id to its text."""
    stop_texts: list[str]
    """Texts that end a completion as well."""
    completions: int
    stop: float
    """Share that ends with a stop id within the budget."""
    parses: float
    """Share in the required form."""
    right: float
    """Share that is right, strictly."""
    groups: int
    signal: float
    """Share of groups whose rewards differ: only these can teach."""
    gold_checked: int
    gold_failed: int
    reward_maximum: float
    inert: list[str]
    confounded: list[str]
    warnings: list[str]
    samples: list[dict[str, Any]]
    """Completions of the probe: `question`, `text`, `extracted`, `answer`, `reward`."""
    notes: list[str]
    """Sentences that a user should know before the first step."""


@dataclass(frozen=True)
class TrainSummary:
    """The output of `slimrl train --json`."""

    run: str
    before: dict[str, float]
    after: dict[str, float]
    difference: Comparison
    harder: dict[str, dict[str, float]]
    """`before` and `after` on the harder split; empty without one."""
    steps: int
    """Taken; fewer than asked for where max_tokens ended the run."""
    weights: str
    """SHA-256 of the trained weights: equal where two runs are equal to the last bit."""
    optimizer: str
    """The same of the optimizers' masters and moments."""
    tokens_generated: int
    seconds: float
    """Training without set-up and evaluation."""
    inert: list[str]
    """Switches that cannot have changed anything."""
    confounded: list[str]
    """Switches that acted, but also as something else."""
    unscorable: dict[str, int]
    """Completions that could not be scored, by reason."""
    memory: dict[str, float]
    """Peaks in GiB, `planned` for at most, `estimated` for what came up and `measured`; `error` of the estimate."""
    profile: dict[str, float]
    """Means over the steps, weighted by their time; empty without log.profile."""


@dataclass(frozen=True)
class SftSummary:
    """The output of `slimrl sft --json`."""

    run: str
    before: dict[str, float]
    after: dict[str, float]
    steps: int
    tokens_trained: int
    seconds: float
    """Updates without set-up and evaluation."""
