"""The task of the environment `guess`: a number of a range, made on demand.

A problem is a pure function of (split, seed, index), and a hash of the range decides to which split it may belong, so that no
range of a held-out problem is trained on.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from slimrl.records import Problem
from slimrl.tasks.draws import Draws
from slimrl.tasks.files import Splits
from slimrl.tasks.made import Made

TRAIN_PROBLEMS, TEST_PROBLEMS = 2**31, 100_000
LOWEST = 40
"""Largest first number of a range."""
SIZES = range(20, 61)
"""Numbers in a range."""


def load(*, seed: int) -> Splits:
    """Training problems, which `seed` decides, and held-out ones, the same in every run."""
    return Splits(Games("train", seed, TRAIN_PROBLEMS), Games("test", 0, TEST_PROBLEMS))


@dataclass(frozen=True)
class Games(Made):
    """The numbers of a split, and their ranges."""

    split: Literal["train", "test"]
    seed: int
    size: int

    def make(self, index: int) -> Problem:
        name = f"train/{self.seed}/{index}" if self.split == "train" else f"test/{index}"
        draws = Draws(f"guess/{name}")
        while True:
            low = 1 + draws.below(LOWEST)
            high = low + draws.pick(SIZES) - 1
            question = f"Guess my number. It is from {low} to {high}."
            if is_held_out(question) == (self.split == "test"):
                break
        number = low + draws.below(high - low + 1)
        return Problem(id=f"guess/{name}", question=question, answer=str(number), columns={"low": low, "high": high})


def is_held_out(question: str) -> bool:
    """True for the ranges of held-out problems, one in eight."""
    return hashlib.blake2b(question.encode(), digest_size=8).digest()[0] % 8 == 0
