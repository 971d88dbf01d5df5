"""The numbers of a token as colours: each a few steps of one hue, or of two hues around 0; they differ in lightness too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimrl.runs.tokens import TokenRow

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Quantity:
    """A number of a token that may be shown as its colour."""

    key: str
    """A letter; the classes of its colours begin with it."""
    title: str
    meaning: str
    ends: tuple[float, ...]
    """Ends of the steps, in ascending order."""
    labels: tuple[str, ...]
    """Of the steps from the least coloured on; around 0, of one side."""
    two_sided: bool = False

    def classes(self, values: Array) -> list[str]:
        """The class of each value: empty for the least coloured step, key0 where the number is unknown.

        Below 0 of a two-sided quantity the steps go on behind those above it.
        """
        found = []
        for value in values.tolist():
            if math.isnan(value):
                found.append(f"{self.key}0")
                continue
            step = (
                sum(abs(value) >= end for end in self.ends)
                if self.two_sided
                else sum(value >= end for end in self.ends)
            )
            found.append(f"{self.key}{step + (len(self.ends) if self.two_sided and value < 0 else 0)}" if step else "")
        return found

    def legend(self) -> list[tuple[str, str]]:
        """Class and label of each step."""
        one = [(f"{self.key}{i}" if i else "", label) for i, label in enumerate(self.labels)]
        if not self.two_sided:
            return one
        n = len(self.ends)
        below = [(f"{self.key}{n + i}", _below(label)) for i, label in enumerate(self.labels) if i]
        above = [(name, label if label.startswith("≥") else f"+{label}") for name, label in one[1:]]
        return [*reversed(below), one[0], *above]


def _below(label: str) -> str:
    """The label of the step on the other side of 0."""
    return f"≤ −{label.removeprefix('≥ ')}" if label.startswith("≥ ") else f"−{label}"


QUANTITIES = (
    Quantity("p", "Probability", "of the token when it was drawn, by the sampler", (0.05, 0.3, 0.7, 1.6, 3.0),
             ("≥ 95 %", "74–95 %", "50–74 %", "20–50 %", "5–20 %", "< 5 %")),
    Quantity("g", "Trainer − sampler", "log-probability of the trainer less that of the sampler, in nats", (0.001, 0.01, 0.1),
             ("< 0.001", "0.001–0.01", "0.01–0.1", "≥ 0.1"), two_sided=True),
    Quantity("r", "Ratio", "importance ratio, less 1; tokens on which the clip acts have a frame", (0.01, 0.05, 0.2),
             ("< 0.01", "0.01–0.05", "0.05–0.2", "≥ 0.2"), two_sided=True),
    Quantity("k", "KL", "estimate of the KL penalty at the token, in nats", (0.001, 0.01, 0.1),
             ("< 0.001", "0.001–0.01", "0.01–0.1", "≥ 0.1"), two_sided=True),
    Quantity("e", "Entropy", "of the distribution that the token was drawn from, in nats", (0.05, 0.2, 0.5, 1.0, 2.0),
             ("< 0.05", "0.05–0.2", "0.2–0.5", "0.5–1", "1–2", "≥ 2")),
    Quantity("w", "Loss weight", "factor of the token in the loss; 1 is an equal share for all tokens of the update",
             (0.25, 0.75, 1.25, 2.0, 4.0), ("< 0.25", "0.25–0.75", "0.75–1.25", "1.25–2", "2–4", "≥ 4")),
    Quantity("a", "Advantage", "of the token; one number a completion, or one a turn with credit by turn, except with a critic",
             (0.01, 0.5, 1.5), ("0", "0.01–0.5", "0.5–1.5", "≥ 1.5"), two_sided=True),
)  # fmt: skip
COLUMNS = {
    "sampler": "sampler", "trainer": "trainer", "gap": "trainer − sampler", "ratio": "ratio",
    "clipped": "clipped", "kl": "KL", "entropy": "entropy",
    "weight": "weight", "advantage": "advantage",
}  # fmt: skip
"""Titles of the table of a completion's tokens."""
NAMES = {"g": "gap", "r": "log_ratio", "k": "kl", "e": "entropy", "w": "weight", "a": "advantage"}


def shown(rows: Sequence[TokenRow]) -> tuple[Quantity, ...]:
    """The quantities that some token of these completions has; a ratio that is 1 everywhere says nothing."""
    found = []
    for quantity in QUANTITIES:
        columns = [row.numbers[NAMES[quantity.key]] for row in rows if NAMES.get(quantity.key) in row.numbers]
        known = any(np.isfinite(values).any() for values in columns)
        moves = any((np.nan_to_num(values) != 0).any() for values in columns)
        if quantity.key == "p" or (known and (quantity.key != "r" or moves)):
            found.append(quantity)
    return tuple(found)


def values_of(quantity: Quantity, row: TokenRow) -> Array:
    """The numbers of a completion's tokens [n] that are compared with the ends of the steps."""
    if quantity.key == "p":
        return -row.numbers["sampler"]
    found = _numbers(row, NAMES[quantity.key])
    return np.expm1(found) if quantity.key == "r" else found


def columns_of(keys: Sequence[str], row: TokenRow) -> dict[str, list[str]]:
    """The cells of a completion's table, by key of COLUMNS; `keys` are those of the quantities that are shown."""
    sampler = row.numbers["sampler"]
    found: dict[str, Array] = {"sampler": sampler, "trainer": sampler + _numbers(row, "gap")}
    if "r" in keys:
        found["ratio"] = np.exp(_numbers(row, "log_ratio"))
    cells = {name: [number(value) for value in values.tolist()] for name, values in found.items()}
    cells["gap"] = [number(value, 5) for value in _numbers(row, "gap").tolist()]
    if "r" in keys:
        cells["clipped"] = ["yes" if value == 1 else "" for value in _numbers(row, "clipped").tolist()]
    for key, name in (("k", "kl"), ("e", "entropy"), ("w", "weight"), ("a", "advantage")):
        if key in keys and not (
            key == "a" and is_one_number(_numbers(row, name))
        ):  # one number stands above its completion
            cells[name] = [number(value) for value in _numbers(row, name).tolist()]
    return {key: cells[key] for key in COLUMNS if key in cells}


def is_one_number(values: Array | Sequence[float]) -> bool:
    """True where all that are known are the same, such as the advantages of a completion with credit by episode."""
    known = np.asarray(values)[np.isfinite(values)]
    return len(known) > 0 and bool(np.ptp(known) == 0)


def is_clipped(row: TokenRow) -> list[bool]:
    return [value == 1 for value in _numbers(row, "clipped").tolist()]


def _numbers(row: TokenRow, name: str) -> Array:
    return row.numbers.get(name, np.full(len(row.pieces), np.nan, dtype=np.float32))


def number(value: float, digits: int = 3) -> str:
    """A number of a token, to so many digits behind the point; empty where it is unknown."""
    if math.isnan(value):
        return ""
    text = f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else "0"
