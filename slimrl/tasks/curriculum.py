"""The problems of each step: shuffled, easiest first, or those with most to learn first.

A step's problems are a function of (seed, step, state), so a resumed run needs only an integer, and with `learnability` how
often each problem was right. The orders that do not only shuffle choose from a pool: all of a finite set, or of an endless
one the next POOL times as many as a step needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from slimrl.config.sections import CurriculumConfig
from slimrl.errors import SettingsError
from slimrl.randomness import generator
from slimrl.records import Group, Problem
from slimrl.tasks.rates import Rate
from slimrl.text import counted

ENDLESS = 2**24
"""Sequences at least this long are made on demand, already in random order: they are read straight through."""
POOL = 4  # problems of an endless supply in the pool, for each problem that a step needs


def problems_for_step(problems: Sequence[Problem], *, seed: int, step: int, count: int) -> Iterator[Problem]:
    """The `count` problems of this step, then spares (for dynamic sampling), none twice.

    A finite set is shuffled anew for every pass through it; spares come from a permutation of their own.
    """
    seen: set[int] = set()
    for index in _indices(len(problems), seed, step, count):
        if index not in seen:
            seen.add(index)
            yield problems[index]


def _indices(size: int, seed: int, step: int, count: int) -> Iterator[int]:
    start = step * count
    spares = generator(seed, "spares", step)
    if size >= ENDLESS:
        yield from ((start + i) % (size // 2) for i in range(count))
        while True:
            yield size // 2 + int(spares.integers(size // 2))
    for position in range(start, start + count):
        epoch, offset = divmod(position, size)
        yield int(permutation(size, seed, epoch)[offset])
    yield from spares.permutation(size).tolist()


@lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one pass."""
    return generator(seed, "order", epoch).permutation(size)


class Curriculum:
    """The order of a run's problems.

    Args:
        problems: the training problems, finite or endless.
        steps: length of the run, over which `easy_first` moves from the easiest to the hardest.
        rates: by id, the answers that were counted before the run, with which `learnability` begins.

    Raises SettingsError for `easy_first` if no difficulties are known.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        config: CurriculumConfig,
        *,
        seed: int,
        steps: int,
        rates: Mapping[str, Rate] = {},
    ) -> None:
        self._problems, self._config, self._seed, self._steps = problems, config, seed, steps
        self._endless = len(problems) >= ENDLESS
        known = rates if config.order == "learnability" else {}
        self._right = {name: float(rate.right) for name, rate in known.items()}
        self._asked = {name: float(rate.samples) for name, rate in known.items()}
        looked_at = self._pool(0, 16)
        if config.order == "easy_first" and len({problem.difficulty for problem in looked_at}) < 2:
            if rates:
                raise SettingsError(
                    "curriculum.order=easy_first needs problems of different difficulty, and task.rates and task.success_rate "
                    f"leave {counted(len(problems), 'problem')}, with one success rate; widen task.success_rate, measure with "
                    "more --samples, or set curriculum.order=shuffled"
                )
            raise SettingsError(
                "curriculum.order=easy_first needs problems of known and different difficulty, and these have none; measure it "
                "with slimrl difficulty (task.rates), add it to the data, or set curriculum.order=shuffled"
            )

    def problems_for_step(self, *, step: int, count: int) -> Iterator[Problem]:
        """The `count` problems of this step, then spares (for dynamic sampling), none twice."""
        match self._config.order:
            case "shuffled":
                yield from problems_for_step(self._problems, seed=self._seed, step=step, count=count)
            case "easy_first":
                pool = sorted(self._pool(step, count), key=lambda problem: problem.difficulty)
                progress = step / max(1, self._steps - 1)
                start = round(progress * max(0, len(pool) - count))
                # what is nearest in difficulty comes next: upwards, then downwards
                yield from pool[start:]
                yield from reversed(pool[:start])
            case "learnability":
                pool = self._pool(step, count)
                weights = np.array([self.weight(problem) for problem in pool])
                draws = generator(self._seed, "curriculum", step).random(len(pool))
                # without replacement, in proportion to the weights (Efraimidis and Spirakis 2006)
                yield from (pool[i] for i in np.argsort(np.log(draws) / np.maximum(weights, 1e-12))[::-1])

    def observe(self, groups: Sequence[Group]) -> None:
        """Learn from what a step sampled, before any selection."""
        if self._config.order != "learnability":
            return
        for group in groups:
            key, decay = self._key(group.problem), self._config.decay
            self._right[key] = decay * self._right.get(key, 0.0) + sum(r.correct for r in group.rollouts)
            self._asked[key] = decay * self._asked.get(key, 0.0) + len(group.rollouts)

    def success_rate(self, problem: Problem) -> float:
        """The posterior mean of a Beta(1, 1) prior: one half for what was never asked."""
        key = self._key(problem)
        return (1 + self._right.get(key, 0.0)) / (2 + self._asked.get(key, 0.0))

    def weight(self, problem: Problem) -> float:
        """p (1 - p) plus the floor (learnability; arXiv:2502.12272)."""
        p = self.success_rate(problem)
        return p * (1 - p) + self._config.floor

    @property
    def state(self) -> dict[str, list[float]]:
        """Right and asked by problem (of an endless supply by difficulty), for `restore`."""
        return {key: [self._right[key], self._asked[key]] for key in self._asked}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Set the state, as an earlier run left it."""
        self._right = {key: float(right) for key, (right, _) in state.items()}
        self._asked = {key: float(asked) for key, (_, asked) in state.items()}

    def _pool(self, step: int, count: int) -> list[Problem]:
        """The problems to choose from, in an order independent of difficulty."""
        if not self._endless:
            order = permutation(len(self._problems), self._seed, step if self._config.order == "easy_first" else 0)
            return [self._problems[int(i)] for i in order]
        start = step * count * POOL
        return [self._problems[(start + i) % len(self._problems)] for i in range(count * POOL)]

    def _key(self, problem: Problem) -> str:
        """The name under which a problem's success is kept: its difficulty in an endless supply, where none comes again."""
        return f"difficulty {problem.difficulty:g}" if self._endless else problem.id
