"""What a run remembers of its evaluations: the first and the last whole, of all the summaries.

An evaluation holds the text of every completion (megabytes for a thousand problems), which lies in evals/ anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slimrl.evaluate import Evaluation

Summaries = dict[str, dict[str, float]]
"""By split, as `Evaluation.summaries` returns them."""


class Measured:
    """The evaluations of one run, in the order of their steps."""

    def __init__(self) -> None:
        self.summaries: dict[int, Summaries] = {}
        """By step."""
        self._whole: list[Evaluation] = []

    def add(self, evaluation: Evaluation) -> None:
        """The newest; the one before it is forgotten but for its summaries, unless it is the first."""
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
