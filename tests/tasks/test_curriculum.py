"""Which problems come when: pure in (seed, step, state), none twice, and weighted as it says."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from slimrl.config.sections import CurriculumConfig
from slimrl.errors import SettingsError
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.tasks.curriculum import ENDLESS, Curriculum, problems_for_step
from slimrl.tasks.rates import Rate

FINITE = [Problem(f"p{i}", "?", "1", difficulty=float(i % 5)) for i in range(40)]


class Endless:
    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Problem:
        return Problem(str(index), "?", "1", difficulty=float(1 + index % 3))


SUPPLIES = {"finite": FINITE, "endless": Endless()}


def curriculum(order: str, problems: object = FINITE, **more: object) -> Curriculum:
    config = CurriculumConfig(order=order, **more)  # type: ignore[arg-type]
    return Curriculum(problems, config, seed=0, steps=10)  # type: ignore[arg-type]


def ids(made: Curriculum, step: int, take: int, count: int = 4) -> list[str]:
    return [p.id for p in islice(made.problems_for_step(step=step, count=count), take)]


def outcome(problem: Problem, right: int, size: int = 8) -> Group:
    blank = Completion((1,), (2,), (-0.5,), "stop")
    return Group(tuple(Rollout(problem, blank, "", i < right, {}, float(i < right)) for i in range(size)), 0)


@pytest.mark.parametrize("supply", SUPPLIES)
@pytest.mark.parametrize("order", ["shuffled", "easy_first", "learnability"])
def test_a_step_is_a_function_of_seed_and_step_and_repeats_no_problem(order: str, supply: str) -> None:
    made, again = (curriculum(order, SUPPLIES[supply]) for _ in range(2))
    for step in (0, 3, 9):
        got = ids(made, step, 16)
        assert got == ids(again, step, 16)
        assert len(set(got)) == 16
    assert ids(made, 1, 4) != ids(made, 2, 4)


@pytest.mark.parametrize("supply", SUPPLIES)
def test_the_easiest_come_first_and_the_hardest_last(supply: str) -> None:
    made = curriculum("easy_first", SUPPLIES[supply])
    means = [
        np.mean([p.difficulty for p in islice(made.problems_for_step(step=step, count=4), 4)]) for step in range(10)
    ]
    assert means == sorted(means)
    assert means[0] == (0 if supply == "finite" else 1)
    assert means[-1] == (4 if supply == "finite" else 3)


def test_every_difficulty_is_passed_through_and_spares_are_near() -> None:
    made = curriculum("easy_first")
    seen = {p.difficulty for step in range(10) for p in islice(made.problems_for_step(step=step, count=4), 4)}
    assert seen == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert sorted(ids(made, 4, 99)) == sorted(p.id for p in FINITE), "spares end with the set"
    following = [p.difficulty for p in islice(made.problems_for_step(step=4, count=4), 8)]
    assert max(following) - min(following) <= 1


def test_one_measured_rate_for_all_is_told_apart_from_none() -> None:
    rates = {"a": Rate("a", "", 1, 4)}
    with pytest.raises(SettingsError, match=r"task.rates and task.success_rate leave 1 problem, with one success rate"):
        Curriculum(
            [Problem("a", "?", "1", "", 0.75)], CurriculumConfig(order="easy_first"), seed=0, steps=1, rates=rates
        )


def test_without_difficulties_easy_first_is_refused() -> None:
    with pytest.raises(SettingsError, match="easy_first needs problems of known"):
        curriculum("easy_first", [Problem(str(i), "?", "1") for i in range(9)])


def test_the_posterior_by_hand() -> None:
    made = curriculum("learnability", decay=0.5)
    assert made.success_rate(FINITE[0]) == 0.5
    made.observe([outcome(FINITE[0], 6)])
    assert made.success_rate(FINITE[0]) == (1 + 6) / (2 + 8)
    made.observe([outcome(FINITE[0], 8)])
    assert made.success_rate(FINITE[0]) == (1 + 3 + 8) / (2 + 4 + 8)
    assert made.weight(FINITE[0]) == pytest.approx(12 / 14 * 2 / 14 + 0.05)
    assert made.success_rate(FINITE[1]) == 0.5


def test_problems_are_drawn_by_what_there_is_to_learn() -> None:
    """Half of the problems solved, the others never tried: 0.25 + floor against about p (1 - p) + floor of the solved."""
    made = curriculum("learnability", floor=0.0)
    solved = FINITE[:20]
    for _ in range(20):
        made.observe([outcome(p, 8) for p in solved])
    drawn = Counter(i for step in range(200) for i in ids(made, step, 4))
    easy = sum(drawn[p.id] for p in solved) / 800
    weights = [made.weight(p) for p in FINITE]
    assert easy == pytest.approx(sum(weights[:20]) / sum(weights), abs=0.03)
    kept = curriculum("learnability", floor=1.0)
    kept.restore(made.state)
    drawn = Counter(i for step in range(200) for i in ids(kept, step, 4))
    assert sum(drawn[p.id] for p in solved) / 800 > 0.4, "the floor forgets no problem"


def test_of_an_endless_supply_the_difficulty_is_what_is_known() -> None:
    made = curriculum("learnability", Endless(), floor=0.0)
    for _ in range(30):
        made.observe(
            [outcome(Problem("x", "?", "1", difficulty=1.0), 8), outcome(Problem("y", "?", "1", difficulty=3.0), 0)]
        )
    drawn = Counter(p.difficulty for step in range(50) for p in islice(made.problems_for_step(step=step, count=4), 4))
    assert drawn[2.0] > 150


def test_state_makes_a_round_trip_and_other_orders_have_none() -> None:
    made, other = curriculum("learnability"), curriculum("learnability")
    made.observe([outcome(FINITE[3], 2), outcome(FINITE[7], 8)])
    assert set(made.state) == {"p3", "p7"}
    other.restore(made.state)
    assert other.state == made.state
    assert ids(other, 5, 20) == ids(made, 5, 20)
    still = curriculum("easy_first")
    still.observe([outcome(FINITE[3], 2)])
    assert still.state == {}


PROBLEMS = [Problem(str(i), "?", "1") for i in range(10)]


def shuffled(step: int, take: int, count: int = 4, seed: int = 0) -> list[str]:
    return [p.id for p in islice(problems_for_step(PROBLEMS, seed=seed, step=step, count=count), take)]


def test_a_pass_meets_every_problem_once() -> None:
    seen = Counter(i for step in range(5) for i in shuffled(step, 2, count=2))
    assert set(seen.values()) == {1}
    assert len(seen) == 10


def test_pure_in_seed_and_step() -> None:
    assert shuffled(3, 4) == shuffled(3, 4)
    assert shuffled(3, 4, seed=1) != shuffled(3, 4) or shuffled(4, 4, seed=1) != shuffled(4, 4)
    assert [shuffled(s, 4) for s in (0, 1)] != [shuffled(s, 4) for s in (5, 6)], "a new pass is a new order"


def test_spares_never_repeat_a_problem_and_end_with_the_set() -> None:
    for step in range(8):
        got = shuffled(step, 99)
        assert sorted(got, key=int) == [str(i) for i in range(10)]


def test_endless_supply_is_read_straight_through_with_spares_from_elsewhere() -> None:
    def take(step: int, n: int) -> list[int]:
        return [int(p.id) for p in islice(problems_for_step(Endless(), seed=0, step=step, count=4), n)]  # type: ignore[arg-type]

    assert take(0, 4) + take(1, 4) == list(range(8))
    assert all(i >= ENDLESS // 2 for i in take(0, 50)[4:])
    assert take(0, 50)[4:] != take(1, 50)[4:]


def test_learnability_begins_with_the_rates_that_were_measured() -> None:
    rates = {problem.id: Rate(problem.id, "", right, 8) for problem, right in zip(FINITE, [0, 4, 8], strict=False)}
    config = CurriculumConfig(order="learnability", floor=0.0, decay=0.5)
    made = Curriculum(FINITE, config, seed=0, steps=10, rates=rates)
    assert [made.success_rate(FINITE[i]) for i in range(4)] == [1 / 10, 5 / 10, 9 / 10, 1 / 2]
    made.observe([outcome(FINITE[0], 8)])
    assert made.success_rate(FINITE[0]) == (1 + 8) / (2 + 4 + 8), "half of what was measured, and all of what was seen"
    again = curriculum("learnability", floor=0.0, decay=0.5)
    again.restore(made.state)
    assert [again.success_rate(p) for p in FINITE] == [made.success_rate(p) for p in FINITE]
    assert Curriculum(FINITE, CurriculumConfig(), seed=0, steps=10, rates=rates).state == {}, (
        "no other order reads them"
    )
