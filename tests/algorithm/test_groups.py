"""Dynamic sampling: whole groups, the problems' order, a budget, surplus kept, nothing hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrl.algorithm.groups import Collected, DynamicSampling, collect_groups, has_signal
from slimrl.algorithm.metrics import describe
from slimrl.records import Completion, Group, Problem, Rollout


def group(problem: Problem, rewards: Sequence[float], unscorable: Sequence[bool] = (), step: int = 0) -> Group:
    blank = [False] * len(rewards)
    return Group(
        tuple(
            Rollout(problem, Completion((1,), (2,), (-0.5,), "stop"), "", r >= 1, {"correct": r}, r, "broken" * u)
            for r, u in zip(rewards, unscorable or blank, strict=True)
        ),
        step,
    )


def problem(index: int) -> Problem:
    return Problem(f"p{index}", "?", "1")


class Scripted:
    """Stands where the engine is: group i of a fixed list carries a signal or not."""

    def __init__(self, signals: Sequence[bool]) -> None:
        self.signals = signals
        self.rounds: list[int] = []

    def __call__(self, problems: Sequence[Problem]) -> list[Group]:
        self.rounds.append(len(problems))
        return [group(p, [0.0, 1.0] if self.signals[int(p.id[1:])] else [1.0, 1.0]) for p in problems]


def collect(signals: Sequence[bool], wanted: int, budget: float = 3.0, carried: Sequence[Group] = ()) -> Collected:
    return collect_groups(
        (problem(i) for i in count()),
        Scripted(signals),
        count=wanted,
        sampling=DynamicSampling("refill", refill_budget=budget),
        carried=carried,
    )


def test_no_surplus_is_older_than_the_budget_and_the_oldest_goes_first() -> None:
    """40 steps of every kind: ages of the groups trained on, and steps that sampled nothing."""
    draws = np.random.default_rng(0)
    oldest, idle = 0, 0

    def roll_out(asked: Sequence[Problem], step: int) -> list[Group]:
        share = draws.choice([0.1, 0.9])  # after few signals many groups are asked for, and then most may have one
        return [group(p, [0.0, float(draws.random() < share)], step=step) for p in asked]

    for wanted in (1, 2, 5):
        for budget in (1.5, 2.0, 3.0):
            carried: tuple[Group, ...] = ()
            for step in range(40):
                found = collect_groups(
                    (problem(i) for i in count()),
                    partial(roll_out, step=step),
                    count=wanted,
                    sampling=DynamicSampling("refill", refill_budget=budget),
                    carried=carried,
                )
                ages = [step - g.step for g in found.groups]
                assert ages == sorted(ages, reverse=True)
                assert max(ages, default=0) <= np.ceil(budget)
                oldest, idle = max(oldest, *ages, 0), idle + (not found.sampled)
                assert bool(found.sampled) == (len(carried) < wanted)
                carried = found.surplus
    assert oldest > 1
    assert idle > 0


def test_signals() -> None:
    p = problem(0)
    assert has_signal(group(p, [0.0, 1.0]), "correct")
    assert has_signal(group(p, [0.0, 1.0]), "reward")
    assert not has_signal(group(p, [0.2, 0.5]), "correct")
    assert has_signal(group(p, [0.2, 0.5]), "reward")
    assert not has_signal(group(p, [0.1 + 0.2, 0.3]), "reward"), "float noise is no signal"
    assert not has_signal(group(p, [0.0, 1.0], [True, False]), "reward"), "unscorable rows are no signal"
    assert not has_signal(group(p, [0.0, 1.0], [True, True]), "correct")


def test_turns_may_differ_where_rewards_are_equal() -> None:
    p = problem(0)

    def returns(*rows: tuple[float, ...]) -> Group:
        rollouts = group(p, [row[0] for row in rows]).rollouts
        return Group(tuple(replace(r, returns=row) for r, row in zip(rollouts, rows, strict=True)), 0)

    differing = returns((1.0, 1.0), (1.0, 0.0))
    assert has_signal(differing, "reward", "turn")
    assert not has_signal(differing, "reward")
    assert not has_signal(differing, "correct", "turn") or has_signal(differing, "correct")
    alone = returns((1.0, 0.0), (1.0,))
    assert not has_signal(alone, "reward", "turn"), "nobody else has the second turn"
    assert has_signal(returns((1.0, 0.0), (0.5, 0.0)), "reward", "turn")
    found = collect_groups(
        iter([p]), lambda _: [differing], count=1, sampling=DynamicSampling("filter", "reward", credit="turn")
    )
    assert found.groups == (differing,)
    assert describe(found, "reward", "turn")["frac_reward_zero_std"] == 0.0
    assert describe(found, "reward")["frac_reward_zero_std"] == 1.0


def test_off_takes_what_comes() -> None:
    script = Scripted([False] * 4)
    got = collect_groups((problem(i) for i in count()), script, count=4)
    assert [g.problem.id for g in got.groups] == ["p0", "p1", "p2", "p3"]
    assert script.rounds == [4]
    assert not got.fell_back


def test_refill_keeps_order_and_surplus() -> None:
    got = collect([True, False, True, False] * 10, 4)
    assert [g.problem.id for g in got.groups] == ["p0", "p2", "p4", "p6"]
    assert all(has_signal(g, "correct") for g in (*got.groups, *got.surplus))
    assert len(got.sampled) <= 12


def test_carried_groups_come_first_and_save_sampling() -> None:
    old = [group(problem(90 + i), [0.0, 1.0]) for i in range(3)]
    got = collect([True] * 40, 4, carried=old)
    assert [g.problem.id for g in got.groups] == ["p90", "p91", "p92", "p0"]
    assert len(got.sampled) == 1


def test_more_carried_than_wanted_stays_carried() -> None:
    old = [group(problem(90 + i), [0.0, 1.0]) for i in range(6)]
    got = collect([True] * 40, 4, carried=old)
    assert len(got.groups) == 4
    assert len(got.surplus) == 2
    assert got.sampled == ()


def test_it_ends_when_no_group_ever_carries_a_signal() -> None:
    got = collect([False] * 1000, 4)
    assert got.groups == ()
    assert len(got.sampled) == 12
    assert got.fell_back


def test_it_ends_when_problems_run_out() -> None:
    got = collect_groups(
        (problem(i) for i in range(5)),
        Scripted([False] * 5),
        count=4,
        sampling=DynamicSampling("refill", refill_budget=9),
    )
    assert len(got.sampled) == 5
    assert got.fell_back


@given(st.lists(st.booleans(), min_size=60, max_size=60), st.integers(1, 8), st.floats(1, 5))
def test_laws(signals: list[bool], wanted: int, budget: float) -> None:
    got = collect(signals, wanted, budget)
    ids = [int(g.problem.id[1:]) for g in got.sampled]
    assert ids == list(range(len(ids))), "the problems' own order, none twice, none skipped"
    assert len(got.sampled) <= max(wanted, budget * wanted)
    kept = [i for i in ids if signals[i]]
    assert [int(g.problem.id[1:]) for g in (*got.groups, *got.surplus)] == kept
    assert len(got.groups) == min(wanted, len(kept))
    assert all(len(g.rollouts) == 2 for g in got.groups)


def test_metrics_before_selection_are_over_everything_sampled() -> None:
    got = collect([True, False, False, True] * 10, 2)
    metrics = describe(got, "correct")
    rewards = [r.reward for g in got.sampled for r in g.rollouts]
    assert metrics["reward"] == pytest.approx(np.mean(rewards))
    assert metrics["train/reward"] == pytest.approx(0.5)
    assert metrics["sampling/groups"] == len(got.sampled)
    assert 0 < metrics["sampling/no_signal"] < 1


def select(kind: str, signals: Sequence[bool], wanted: int, share: float = 1.0) -> Collected:
    return collect_groups(
        (problem(i) for i in count()),
        Scripted(signals),
        count=wanted,
        sampling=DynamicSampling(kind, refill_share=share),  # type: ignore[arg-type]
    )


def ids(groups: Sequence[Group]) -> list[str]:
    return [g.problem.id for g in groups]


def test_filter_drops_and_samples_no_more() -> None:
    got = select("filter", [True, False, True, False], 4)
    assert ids(got.groups) == ["p0", "p2"]
    assert len(got.sampled) == 4
    assert not got.fell_back, "nothing else was wanted"
    assert got.surplus == ()


def test_replace_puts_copies_where_groups_carry_nothing() -> None:
    got = select("replace", [True, False, True, False, True], 5)
    assert ids(got.groups) == ["p0", "p2", "p4", "p0", "p2"]
    assert len(got.sampled) == 5


def test_a_share_below_one_stops_early_and_keeps_others_for_the_rest() -> None:
    got = select("refill", [True, False, False, False, True, False, False, True] + [True] * 20, 4, share=0.5)
    assert {"p0", "p4"} <= set(ids(got.groups))
    assert len(got.groups) == 4
    assert sum(has_signal(g, "correct") for g in got.groups) >= 2
    assert set(ids(got.groups)) <= set(ids(got.sampled))
    assert ids(got.groups) == sorted(ids(got.groups), key=lambda i: int(i[1:])), "the order asked for"
    assert not got.fell_back
    scarce = select("refill", [True] + [False] * 40, 4, share=0.5)
    assert len(scarce.groups) == 4
    assert scarce.fell_back, "others fill the step, and that it lacks a signal is said"
    plenty = select("refill", [True, True, True, False] * 9, 4, share=0.5)
    assert ids(plenty.groups) == ["p0", "p1", "p2", "p3"], "one round was enough, and nothing is thrown away"


@given(
    st.sampled_from(["off", "filter", "refill", "replace"]),
    st.lists(st.booleans(), min_size=60, max_size=60),
    st.integers(1, 8),
    st.floats(0.1, 1),
)
def test_laws_of_every_kind(kind: str, signals: list[bool], wanted: int, share: float) -> None:
    got = select(kind, signals, wanted, share if kind == "refill" else 1.0)
    assert len(got.groups) <= wanted
    assert all(len(g.rollouts) == 2 for g in got.groups), "groups are never split"
    sampled = [int(i[1:]) for i in ids(got.sampled)]
    assert sampled == list(range(len(sampled))), "the problems' own order, none twice, none skipped"
    assert len(sampled) <= 3 * wanted, "the budget"
    assert set(map(id, (*got.groups, *got.surplus))) <= set(map(id, got.sampled)), "nothing is made up"
    with_signal = [g for g in got.sampled if has_signal(g, "correct")]
    if kind == "off":
        assert got.groups == got.sampled
    elif kind == "filter":
        assert list(got.groups) == with_signal
    elif kind == "replace":
        assert all(has_signal(g, "correct") for g in got.groups)
        assert len(got.groups) == (wanted if with_signal else 0)
    if kind == "refill":
        enough = int(np.ceil(share * wanted))
        assert len([g for g in got.groups if has_signal(g, "correct")]) >= min(enough, len(with_signal))
        assert got.fell_back == (len(with_signal) < enough)
        assert len(got.groups) == (wanted if with_signal and share < 1 else min(wanted, len(with_signal)))
    if not with_signal and kind != "off":
        assert got.groups == ()
    metrics = describe(got, "correct")
    assert metrics["sampling/no_signal"] == pytest.approx(1 - len(with_signal) / len(got.sampled))
    assert metrics["reward"] == pytest.approx(np.mean([r.reward for g in got.sampled for r in g.rollouts]))


@given(st.integers(0, 6), st.floats(0.1, 1), st.lists(st.booleans(), min_size=40, max_size=40))
def test_carried_groups_never_leave_a_step_short(count_carried: int, share: float, signals: list[bool]) -> None:
    carried = [group(problem(90 + i), [0.0, 1.0], step=-1) for i in range(count_carried)]
    got = collect_groups(
        (problem(i) for i in count()),
        Scripted(signals),
        count=4,
        sampling=DynamicSampling("refill", refill_share=share),
        carried=carried,
    )
    found = count_carried + sum(has_signal(g, "correct") for g in got.sampled)
    assert ids(got.groups)[: min(4, count_carried)] == ids(carried)[:4]
    assert len(got.groups) + len(got.surplus) >= found
    if share < 1 and found:
        assert len(got.groups) == 4
    assert got.fell_back == (found < int(np.ceil(share * 4)))


def test_what_a_useful_token_costs() -> None:
    got = select("off", [True, False, False, False], 4)
    assert describe(got, "correct")["sampling/tokens_per_useful_token"] == 4.0
    assert "sampling/tokens_per_useful_token" not in describe(select("off", [False] * 4, 4), "correct")
