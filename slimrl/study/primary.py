"""The primary measure of a study, read from its text: test/sampled, twins/greedy, test/rewards/NAME."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORM = re.compile(r"(test|harder|twins)/(?:(sampled|greedy)|rewards/([A-Za-z_]\w*))")


@dataclass(frozen=True)
class Primary:
    """A held-out measure: strict accuracy, or the mean score of a reward."""

    split: str
    mode: str
    """`sampled` or `greedy`; rewards are those of sampled completions."""
    reward: str = ""
    """Empty: strict accuracy, a share."""

    @property
    def is_share(self) -> bool:
        return not self.reward

    @property
    def noun(self) -> str:
        """The measure in a sentence."""
        return f"held-out {self.reward}" if self.reward else "held-out accuracy"

    @property
    def title(self) -> str:
        """The title of a column; rewards are in hundredths as accuracies are, so that a point is 0.01 of either."""
        return f"{self.reward}, hundredths" if self.reward else "Accuracy, %"

    def value(self, row: Mapping[str, Any]) -> float | None:
        """The measure of a held-out completion; None where it has none, or is of another split or mode."""
        if (row["split"], row["mode"]) != (self.split, self.mode):
            return None
        value = row.get("scores", {}).get(self.reward) if self.reward else row["strict"]
        return None if value is None else float(value)


def read_primary(text: str) -> Primary:
    """Raises ValueError for what is no held-out measure."""
    match = FORM.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text[:60]!r} is no held-out measure; write test, harder or twins, then /sampled, /greedy or /rewards/NAME"
        )
    split, mode, reward = match.groups()
    if reward == "correct":
        raise ValueError(f"the reward correct is accuracy; write {split}/sampled")
    return Primary(split, mode or "sampled", reward or "")
