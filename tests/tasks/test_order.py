from __future__ import annotations

from collections import Counter
from itertools import islice

from slimrl.records import Problem
from slimrl.tasks.order import ENDLESS, problems_for_step

PROBLEMS = [Problem(str(i), "?", "1") for i in range(10)]


def ids(step: int, take: int, count: int = 4, seed: int = 0) -> list[str]:
    return [p.id for p in islice(problems_for_step(PROBLEMS, seed=seed, step=step, count=count), take)]


def test_a_pass_meets_every_problem_once() -> None:
    seen = Counter(i for step in range(5) for i in ids(step, 2, count=2))
    assert set(seen.values()) == {1}
    assert len(seen) == 10


def test_pure_in_seed_and_step() -> None:
    assert ids(3, 4) == ids(3, 4)
    assert ids(3, 4, seed=1) != ids(3, 4) or ids(4, 4, seed=1) != ids(4, 4)
    assert [ids(s, 4) for s in (0, 1)] != [ids(s, 4) for s in (5, 6)], "a new pass is a new order"


def test_spares_never_repeat_a_problem_and_end_with_the_set() -> None:
    for step in range(8):
        got = ids(step, 99)
        assert sorted(got, key=int) == [str(i) for i in range(10)]


class Endless:
    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Problem:
        return Problem(str(index), "?", "1")


def test_endless_supply_is_read_straight_through_with_spares_from_elsewhere() -> None:
    def take(step: int, n: int) -> list[int]:
        return [int(p.id) for p in islice(problems_for_step(Endless(), seed=0, step=step, count=4), n)]  # type: ignore[arg-type]

    assert take(0, 4) + take(1, 4) == list(range(8))
    assert all(i >= ENDLESS // 2 for i in take(0, 50)[4:])
    assert take(0, 50)[4:] != take(1, 50)[4:]
