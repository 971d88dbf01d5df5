"""The results of a run: its evaluations, its summary, and the findings of the preflight.

Plain records without torch, which run directories store, readers read back, and screens and reports show. This module knows
neither how a result is measured nor where it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal

import numpy as np

from slimrl.measures import (
    UNBOUNDED,
    Bounds,
    Tally,
    at_k,
    both_bounds,
    mean_score,
    pass_at_k,
    score_difference,
    tally,
    written_bounds,
)
from slimrl.records import TWIN, Turns, right_answers
from slimrl.statistics import accuracy_interval, paired_difference
from slimrl.text import counted, percent
from slimrl.thinking import is_open

Mode = Literal["sampled", "greedy"]
MODES: tuple[Mode, ...] = ("sampled", "greedy")
Summaries = dict[str, dict[str, float]]
"""By split: see `SplitEvaluation.summary`."""
Comparison = dict[str, dict[str, dict[str, float]]]
"""Split, then mode (strict accuracy) or another measure, then `change`, `low`, `high`, `n`: see `compare`."""
OF_EPISODES = ("said", "turn_rewards", "environment_score", "failed")
REWARD_KEYS: dict[Mode, str] = {"sampled": "rewards", "greedy": "greedy_rewards"}
"""What stands before a reward's name in a summary, by mode."""


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
    """Tokens of the last turn up to the end of its thinking; all of them where it does not end, 0 where there is none."""
    vote: int | None = None
    """The sample of the problem that was the first with an equal answer; None without an answer in the form."""
    uncompared: bool = False
    """The answer was not compared with all others that it may equal, since a symbolic checker is asked about few pairs."""
    independent: bool | None = None
    """The verdict of the independent checker (`slimrl/tasks/independent.py`); None where it has none."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """By reward but `correct`, before weights; None where it does not apply, or failed."""
    unscorable: str = ""
    """Why a reward had no score; empty where all had one."""
    turns: int = 0
    """Of the policy, in an episode; 0 where a completion is one turn by itself."""
    said: Turns = ()
    """`Played.turns`, and below its rewards of turns, its score and its failure (slimrl/records.py)."""
    turn_rewards: tuple[float | None, ...] = ()
    environment_score: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class SplitEvaluation:
    """All completions of one split."""

    rows: tuple[GradedCompletion, ...]
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    """Of the rewards' scores, where they are known."""

    def by_problem(self, mode: Mode) -> dict[str, float]:
        """Strict accuracy of each problem, over its samples."""
        return self._by_problem(mode, lambda row: row.strict)

    def scores(self, mode: Mode, reward: str) -> dict[str, float]:
        """Mean score of each problem, over those of its samples that have one; a problem without any is left out."""
        return self._by_problem(mode, lambda row: row.scores.get(reward))

    def disputed(self) -> dict[str, float]:
        """Share of each problem's samples that are right strictly and wrong to the independent checker."""
        return self._by_problem("sampled", lambda row: row.strict and row.independent is False)

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards that were measured."""
        return [*dict.fromkeys(name for row in self.rows for name in row.scores)]

    def _by_problem(self, mode: Mode, value: Callable[[GradedCompletion], float | None]) -> dict[str, float]:
        """Means by problem of what a row has, which may be nothing."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if row.mode == mode and (own := value(row)) is not None:
                found.setdefault(row.id, []).append(own)
        return {problem: _mean(values) for problem, values in found.items()}

    def tallies(self, mode: Mode = "sampled") -> dict[str, Tally]:
        """The answers of each problem, counted."""
        answers: dict[str, list[tuple[bool, int | None]]] = {}
        for row in self.rows:
            if row.mode == mode:
                answers.setdefault(row.id, []).append((row.strict, row.vote))
        return {problem: tally(votes) for problem, votes in answers.items()}

    def measures(self) -> dict[str, Any]:
        """The summary, and `pass@k` and `maj@k` of the sampled completions (`slimrl/measures.py`), and `uncompared` where it is
        not 0.
        """
        uncompared = {"uncompared": self.uncompared} if self.uncompared else {}
        return {**self.summary(), **at_k(self.tallies().values()), **uncompared}

    @property
    def uncompared(self) -> int:
        """Problems some of whose answers were not compared with all others (`slimrl/tasks/votes.py`), for maj@k."""
        return len({row.id for row in self.rows if row.mode == "sampled" and row.uncompared})

    def summary(self) -> dict[str, float]:
        """`accuracy`, `low`, `high` (strict, sampled, 95 % interval), `greedy` (where measured), `n` problems, and
        `lenient`, `format`, `truncated` (shares), `mean_length` (tokens) of the sampled completions. Where some think,
        `thinking_length` (tokens) and `thinking_truncated` (share cut off while thinking) of them. With several samples a
        problem, `samples` and pass@k at that number: `pass@n` and `lenient_pass@n`. `disputed` where there is an independent
        verdict, and the scores of rewards (`_scores`).
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
            summary["thinking_truncated"] = _mean([row.finish == "length" and is_open(row.text) for row in drawn])
        if decoded:
            accuracy = list(self.by_problem("greedy").values())
            low, high = accuracy_interval(accuracy)
            lenient = _mean([row.lenient for row in decoded])
            summary |= {"greedy": _mean(accuracy), "greedy_low": low, "greedy_high": high, "greedy_lenient": lenient}
        if any(row.turns for row in drawn):
            summary["turns"] = _mean([row.turns for row in drawn])
        if any(row.independent is not None for row in drawn):
            summary["disputed"] = _mean([row.strict and row.independent is False for row in drawn])
        return summary | self._best_of() | self._scores()

    def _best_of(self) -> dict[str, float]:
        """`samples` a problem, the fewest of any, and pass@k at that k by either verdict; empty where there is one."""
        by_id: dict[str, list[GradedCompletion]] = {}
        for row in self.rows:
            if row.mode == "sampled":
                by_id.setdefault(row.id, []).append(row)
        n = min(map(len, by_id.values()), default=1)
        if n == 1:
            return {}
        strict = [pass_at_k(len(own), sum(row.strict for row in own), n) for own in by_id.values()]
        lenient = [pass_at_k(len(own), sum(row.lenient for row in own), n) for own in by_id.values()]
        return {"samples": n, "pass@n": _mean(strict), "lenient_pass@n": _mean(lenient)}

    def _scores(self) -> dict[str, float]:
        """Of each reward `rewards/NAME`, a mean over problems, with its 95 % interval `rewards/NAME/low` and `/high` and the
        lowest score that it can give, `/least`; the same of greedy completions as `greedy_rewards/NAME`; and `unscorable`, the
        share of sampled completions on which a reward failed.
        """
        found: dict[str, float] = {}
        for name in self.rewards:
            bounds = self.bounds.get(name, UNBOUNDED)
            for mode, key in REWARD_KEYS.items():
                if scores := [*self.scores(mode, name).values()]:
                    estimate = mean_score(scores, bounds)
                    found[f"{key}/{name}"] = estimate["value"]
                    found |= {f"{key}/{name}/{end}": estimate[end] for end in ("low", "high")}
                    found[f"{key}/{name}/least"] = bounds[0] if isfinite(bounds[0]) else min(scores)
        if any(row.scores or row.unscorable for row in self.rows):
            found["unscorable"] = _mean([bool(row.unscorable) for row in self.rows if row.mode == "sampled"])
        return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Held-out accuracy after `step` training steps."""

    step: int
    test: SplitEvaluation
    harder: SplitEvaluation
    """Without rows where the task has no harder split."""
    twins: SplitEvaluation = SplitEvaluation(())
    """Test problems with other numbers, each with its original's id and TWIN; without rows unless they are asked for."""
    ways_out: Mapping[str, str] = field(default_factory=dict)
    """The end of a sentence on completions without a score, by the reason, where a reward knows what to change."""

    def __repr__(self) -> str:
        found = [
            f"{name} {percent(s['accuracy'])} % [{percent(s['low'])}, {percent(s['high'])}] of {counted(int(s['n']), 'problem')}"
            for name, s in self.summaries().items()
        ]
        return f"Evaluation(step={self.step}: {'; '.join(found)})"

    @property
    def accuracy(self) -> float:
        """Strict accuracy of the sampled completions on the test problems, 0 to 1."""
        return self.test.summary()["accuracy"]

    @property
    def splits(self) -> dict[str, SplitEvaluation]:
        """Those that were measured, by name."""
        splits = {"test": self.test, "harder": self.harder, "twins": self.twins}
        return {name: split for name, split in splits.items() if split.rows}

    def table(self) -> list[dict[str, Any]]:
        """Every completion with its verdicts and the bounds of its scores, as rows of JSON."""
        return [
            {"split": name}
            | {k: v for k, v in asdict(row).items() if k not in OF_EPISODES or v not in ((), None, "")}
            | ({"bounds": written_bounds(split.bounds)} if row.scores else {})
            | ({"answers": found} if len(found := right_answers(row.answer)) > 1 else {})
            for name, split in self.splits.items()
            for row in split.rows
        ]

    def summaries(self) -> Summaries:
        """The summary of each split; that of the twins has their `drop` too."""
        found = {name: split.summary() for name, split in self.splits.items()}
        if "twins" in found:
            found["twins"] |= self._drop()
        return found

    def measures(self) -> dict[str, dict[str, Any]]:
        """The same with pass@k and maj@k."""
        summaries = self.summaries()
        return {name: summaries[name] | split.measures() for name, split in self.splits.items()}

    def drops(self) -> dict[str, float]:
        """By original: the share of its samples that is right, less the share of its twin's."""
        originals, twins = self.test.by_problem("sampled"), self.twins.by_problem("sampled")
        pairs = {name.removesuffix(TWIN): share for name, share in twins.items()}
        return {name: originals[name] - share for name, share in pairs.items() if name in originals}

    def _drop(self) -> dict[str, float]:
        """`originals`, the strict accuracy of the problems that have a twin, and `drop`: by how much it exceeds the twins', with
        the paired 95 % interval `drop_low`, `drop_high`.
        """
        drops = self.drops()
        if not drops:
            return {}
        change = paired_difference(dict.fromkeys(drops, 0.0), drops)
        originals = self.test.by_problem("sampled")
        return {
            "originals": _mean([originals[name] for name in drops]),
            "drop": change["change"],
            "drop_low": change["low"],
            "drop_high": change["high"],
        }


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Paired changes by split over the same problems: of strict accuracy by mode, and as far as they were measured of
    `disputed`, `rewards/NAME`, `greedy_rewards/NAME`, and of the twins' `drop`.
    """
    found: Comparison = {}
    for name, split in before.splits.items():
        own, later = found.setdefault(name, {}), after.splits[name]
        for mode in MODES:
            if answers := split.by_problem(mode):
                own[mode] = paired_difference(answers, later.by_problem(mode))
        for reward in split.rewards:
            bounds = both_bounds(*(side.bounds.get(reward, UNBOUNDED) for side in (split, later)))
            for mode, key in REWARD_KEYS.items():
                if change := score_difference(split.scores(mode, reward), later.scores(mode, reward), bounds):
                    own[f"{key}/{reward}"] = change
        if all("disputed" in end.summary() for end in (split, later)):
            own["disputed"] = paired_difference(split.disputed(), later.disputed())
    if drops := before.drops():
        found["twins"]["drop"] = paired_difference(drops, after.drops(), reach=2.0)
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
    """The completion of the first problem; of an episode its last turn."""


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
    twins: dict[str, dict[str, float]] = field(default_factory=dict)
    """`before` and `after` on the twins of test problems; empty without them."""
    findings: list[str] = field(default_factory=list)
    """Notable sentences on the course of the run (`slimrl/runs/findings.py`)."""
    unmeasured: dict[str, int] = field(default_factory=dict)
    """Completions that a reward of weight 0 could not score, by reason."""


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
