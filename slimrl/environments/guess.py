"""The built-in environment `guess`: a number to find from what is said about guesses (task `guess`)."""

from __future__ import annotations

import re

from slimrl.records import Problem

_NUMBER = re.compile(r"-?[0-9]+")


class Guess:
    """A turn guesses the last number that it writes. The answer is `higher` or `lower`; the episode is over when it is found.

    The score is 1 for a number found at once and less by `cost` for each turn more, but 0 or more; it is 0 for a number that is
    not found. With `per_turn` every turn is paid instead: 1 for finding the number, and -`cost` for any other guess.
    """

    def __init__(self, cost: float = 0.1, per_turn: bool = False) -> None:
        self.cost, self.per_turn = cost, per_turn
        self.number, self.turns, self.found = 0, 0, False

    def reset(self, problem: Problem) -> None:
        """The task poses the question."""
        self.number = int(problem.answer)

    def step(self, text: str) -> tuple[list[dict[str, str]], bool] | tuple[list[dict[str, str]], bool, float]:
        """The answer to a guess."""
        self.turns += 1
        numbers = _NUMBER.findall(text)
        guess = int(numbers[-1][:20]) if numbers else None
        self.found = guess == self.number
        reward = 1.0 if self.found else -self.cost
        said = "no number" if guess is None else "higher" if guess < self.number else "lower"
        messages = [] if self.found else [{"role": "user", "content": said}]
        return (messages, self.found, reward) if self.per_turn else (messages, self.found)

    def score(self) -> float:
        """The reward of the episode."""
        if self.per_turn or not self.found:
            return 0.0
        return max(0.0, 1.0 - self.cost * (self.turns - 1))
