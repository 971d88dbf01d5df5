"""The built-in environment `guess`: a number to find from what is said about guesses (task `guess`)."""

from __future__ import annotations

import re
from math import ceil, log

from slimrl.records import Problem

_NUMBER = re.compile(r"(?<![0-9.])-?[0-9]{1,9}(?:\.[0-9]+)?")
Answer = tuple[list[dict[str, str]], bool] | tuple[list[dict[str, str]], bool, float]


class Guess:
    """A turn guesses the last number that it writes. The answer is `higher` or `lower`; the episode is over when it is found.

    The score is 1 for a number found at once and less by `cost` for each turn more, but 0 or more; it is 0 for a number that is
    not found. With `per_turn` every turn is paid instead, with what it tells less `cost`: the logarithm of how many times fewer
    outcomes are possible after it, as a share of that for the whole range. The outcomes are the numbers that are left and one
    more, to find it. Over an episode in which the number is found that is 1 less `cost` for each turn.
    """

    def __init__(self, cost: float = 0.1, per_turn: bool = False) -> None:
        self.cost, self.per_turn = cost, per_turn
        self.number, self.turns, self.found = 0, 0, False
        self.low, self.high, self.size = 0, 0, 0

    def reset(self, problem: Problem) -> None:
        """The task poses the question."""
        low, high = problem.columns.get("low"), problem.columns.get("high")
        if not isinstance(low, int) or not isinstance(high, int):
            raise ValueError("the problem has no range of numbers; set task.name=guess")
        self.number, self.low, self.high, self.size = int(problem.answer), low, high, high - low + 1

    def step(self, text: str) -> Answer:
        """The answer to a guess."""
        self.turns += 1
        before = self.high - self.low + 1
        numbers = _NUMBER.findall(text)
        guess = float(numbers[-1]) if numbers else None
        self.found = guess == self.number
        if guess is None:
            said = "no number"
        elif guess < self.number:
            said, self.low = "higher", max(self.low, int(guess) + 1)
        else:
            said, self.high = "lower", min(self.high, ceil(guess) - 1)
        left = 0 if self.found else self.high - self.low + 1
        messages = [] if self.found else [{"role": "user", "content": said}]
        reward = log((before + 1) / (left + 1)) / log(self.size + 1) - self.cost
        return (messages, self.found, reward) if self.per_turn else (messages, self.found)

    def score(self) -> float:
        """The reward of the episode."""
        if self.per_turn or not self.found:
            return 0.0
        return max(0.0, 1.0 - self.cost * (self.turns - 1))
