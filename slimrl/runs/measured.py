"""The evaluations of a run: read back from evals/, and remembered, the first and the last whole, of all the summaries.

An evaluation holds the text of every completion (megabytes for a thousand problems), which is in evals/ anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter

from slimrl.measures import Bounds, read_bounds
from slimrl.results import Evaluation, GradedCompletion, SplitEvaluation, Summaries
from slimrl.runs.reader import read_answers

ROW = TypeAdapter(GradedCompletion)


class Measured:
    """The evaluations of one run, in the order of their steps."""

    def __init__(self) -> None:
        self.summaries: dict[int, Summaries] = {}
        """By step."""
        self._whole: list[Evaluation] = []

    def add(self, evaluation: Evaluation) -> None:
        """Add the newest; of the one before it only the summaries stay, unless it is the first."""
        self.summaries[evaluation.step] = evaluation.summaries()
        self._whole = [*self._whole[:1], evaluation]

    @property
    def first(self) -> Evaluation:
        return self._whole[0]

    @property
    def last(self) -> Evaluation:
        return self._whole[-1]

    def rewind(self, step: int) -> None:
        """Forget all beyond this step. Until the next is added the last may then be the first."""
        self.summaries = {at: found for at, found in self.summaries.items() if at <= step}
        self._whole = [evaluation for evaluation in self._whole if evaluation.step <= step]


def read_evaluations(run: Path, *, up_to: int, bounds: Mapping[str, Bounds] = {}) -> Iterator[Evaluation]:
    """The evaluations of a run by step, none beyond `up_to` and none whose file is damaged or lacks the test split.

    `bounds` are those of its rewards, for rows that do not have them.
    """
    for path in sorted((run / "evals").glob("step-*.jsonl")):
        number = path.stem.removeprefix("step-")
        found = read_evaluation(run, int(number), bounds) if number.isdecimal() and int(number) <= up_to else None
        if found is not None:
            yield found


def read_evaluation(run: Path, step: int, bounds: Mapping[str, Bounds] = {}) -> Evaluation | None:
    """The evaluation after `step`; None where its file is missing or damaged, or lacks the test split.

    `bounds` are those of its rewards, for rows that do not have them.
    """
    splits: dict[str, list[GradedCompletion]] = {"test": [], "harder": [], "twins": []}
    known = {**bounds}
    try:
        for row in read_answers(run, step):
            known |= read_bounds(row.pop("bounds", {}))
            splits[row.pop("split")].append(ROW.validate_python(row))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not splits["test"]:
        return None
    test, harder, twins = (SplitEvaluation(tuple(rows), known) for rows in splits.values())
    return Evaluation(step, test, harder, twins)
