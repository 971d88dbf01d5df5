"""Randomness without state: every random number is a pure function of what it is for.

Nothing in the package calls a global generator, so the numbers do not depend on batch size, slot order, micro-batches,
ranks, logging, evaluation or a restart.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Stream = Literal["train", "evaluate", "probe", "sample", "difficulty"]


def generator(*key: str | int) -> np.random.Generator:
    """A generator that depends on `key` alone: NumPy's Philox, keyed by a hash of it."""
    digest = blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def uniforms(
    seed: int, stream: Stream, step: int, problem_id: str, *, samples: int, positions: int
) -> NDArray[np.float64]:
    """[samples, positions] in [0, 1): the numbers that decide the tokens of one group."""
    rows = [generator(seed, stream, step, problem_id, sample).random(positions) for sample in range(samples)]
    return np.stack(rows)
