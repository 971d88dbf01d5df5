"""Episodes that wait while others have not begun leave their slots to those, and nothing is computed or drawn otherwise."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slimrl.machine.signals import Stop
from slimrl.model.policy import Policy
from slimrl.model.stops import StopTexts
from slimrl.records import Completion
from slimrl.rollout import OnTurn, Request, episodes, state
from slimrl.rollout.engine import RolloutEngine
from slimrl.rollout.episodes import Episodes
from tests.rollout.test_engine import VOCABULARY, Recorded, requests, trainer_gaps
from tests.rollout.test_episodes import BUDGET, Environment, answer, asked, ids_of, tiny_policy, turns_of

Groups = list[tuple[Completion, ...]]


class Gate(Environment):
    """Answers no first turn before so many episodes have asked, and ends an episode after its second turn."""

    def __init__(self, askers: int) -> None:
        super().__init__()
        self.askers = askers
        self.pending: list[tuple[Future[tuple[int, ...]], tuple[int, ...]]] = []

    def of(self, request: int) -> OnTurn:
        def on_turn(number: int, ids: tuple[int, ...]) -> Future[tuple[int, ...]]:
            turns = self.heard.setdefault((request, number), [])
            turns.append(ids)
            found: Future[tuple[int, ...]] = Future()
            self.pending.append((found, answer(ids) if len(turns) == 1 else ()))
            if len(self.heard) >= self.askers:
                for waits, reply in self.pending:
                    waits.set_result(reply)
                self.pending.clear()
            return found

        return on_turn


class Impatient(Stop):
    """Ends a call that waits for ever."""

    checks = 0

    def check(self) -> None:
        self.checks += 1
        assert self.checks < 3000, "nobody answers any more"


def details(groups: Groups) -> list[tuple[Any, ...]]:
    return [(c.prompt_ids, c.token_ids, c.given, c.finish) for group in groups for c in group]


def generate(slots: int, asked: list[Request], policy: Policy | None = None, **how: Any) -> Groups:
    return RolloutEngine(policy or tiny_policy(), slots=slots, **how).generate(asked, max_new_tokens=BUDGET)


@pytest.fixture
def parkings(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each sample was parked since the fixture was made or cleared."""
    counts: Counter[int] = Counter()
    park = Episodes.park

    def counted(self: Episodes, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        before = {*self.parked}
        over = park(self, slots)
        counts.update({*self.parked} - before)
        assert len(self.parked) <= self.state.cache.slots
        return over

    monkeypatch.setattr(Episodes, "park", counted)
    return counts


@pytest.mark.parametrize(("count", "samples"), [(2, 4), (8, 1)])
def test_more_episodes_ask_than_there_are_slots(
    count: int, samples: int, parkings: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slots and eight episodes, no first turn of which is answered before three have asked."""
    monkeypatch.setattr(episodes, "WAIT_SECONDS", 0.001)
    gate = Gate(askers=3)
    found = generate(2, asked(gate, count, samples), stop=Impatient())
    assert parkings
    assert max(len(turns) for turns in gate.heard.values()) == 2
    whole = generate(8, asked(Gate(askers=1), count, samples))
    assert details(found) == details(whole)


@pytest.mark.parametrize(
    ("family", "slots"), [("qwen2", 1), ("qwen2", 3), ("gemma3", 3), ("wide llama", 1), ("wide mistral", 3)]
)
def test_rows_that_were_parked_are_what_they_are_without(
    family: str, slots: int, parkings: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled and greedy, with turns that a bound cuts off and others that a stop text ends; every prompt is prefilled once, and
    nothing else is.
    """
    moves = torch.zeros(3, VOCABULARY, dtype=torch.long)
    moves[:2, 20:40], moves[1, 40:], moves[2] = 1, 2, 2
    policy = replace(tiny_policy(family), stop_ids=(2, 3, 4, 5), stop_texts=StopTexts(("two tokens",), moves))
    greedy = [replace(request, greedy=i % 3) for i, request in enumerate(asked(Environment(), 6, 3, turn_tokens=14))]
    whole = generate(64, [replace(r, on_turn=Environment().of(i)) for i, r in enumerate(greedy)], policy)
    assert not parkings
    prefilled: list[tuple[int, ...]] = []
    noted = lambda p, prompts: (prefilled.extend(prompts), state.prefill(p, prompts))[1]  # noqa: E731
    monkeypatch.setattr("slimrl.rollout.engine.prefill", noted)
    environment = Environment()
    found = generate(slots, [replace(r, on_turn=environment.of(i)) for i, r in enumerate(greedy)], policy)
    assert details(found) == details(whole)
    assert prefilled == [request.prompt_ids for request in greedy]
    assert max(parkings.values()) > 1
    ends = {(c.finish, len(c.token_ids) < BUDGET, c.token_ids[-1] in policy.stop_ids) for group in found for c in group}
    assert {("stop", True, False), ("stop", True, True), ("length", True, False), ("length", False, False)} <= ends
    gaps = [np.subtract(c.logprobs, other.logprobs) for c, other in zip(sum(found, ()), sum(whole, ()), strict=True)]
    assert np.abs(np.concatenate(gaps)).max() < 1e-4
    assert trainer_gaps(policy, found, 1.0).max() < 1e-4


@pytest.mark.parametrize("family", ["qwen2", "wide llama"])
@pytest.mark.parametrize("slots", [2, 12])
def test_nothing_depends_on_the_time_that_answers_take(family: str, slots: int, parkings: Counter[int]) -> None:
    at_once = generate(slots, asked(Environment(), 6, 3), tiny_policy(family))
    assert parkings
    parkings.clear()
    with ThreadPoolExecutor(8) as pool:
        late = generate(slots, asked(Environment(pool, seconds=0.01), 6, 3), tiny_policy(family))
    assert parkings
    assert late == at_once, "to the last bit of each log-probability"


def test_a_long_turn_comes_back_behind_a_short_one(parkings: Counter[int]) -> None:
    """All slots were empty in between, but the clock does not begin anew: the long one's columns lie before the short one's."""
    some = asked(Environment(), 18, 1)
    whole = generate(64, some)
    turns = {i: turns_of(c)[0].start for i, (c,) in enumerate(whole) if c.given}
    long, short = max(turns, key=turns.__getitem__), min(turns, key=turns.__getitem__)
    assert turns[long] > turns[short] + 4
    environment, order = Environment(), [long] * 16 + [short] * 16
    chosen = [replace(some[i], on_turn=environment.of(place)) for place, i in enumerate(order)]
    found = generate(16, chosen, runner=Recorded(2))
    assert parkings
    assert ids_of(found) == [ids_of(whole)[i] for i in order]


def test_recorded_steps_park_too(parkings: Counter[int]) -> None:
    """Whose buffers stay where they are, from call to call."""
    policy = tiny_policy()
    whole = generate(64, asked(Environment(), 12, 4), policy)
    engine = RolloutEngine(policy, slots=3, runner=Recorded(5))
    for _ in range(2):
        parkings.clear()
        assert ids_of(engine.generate(asked(Environment(), 12, 4), max_new_tokens=BUDGET)) == ids_of(whole)
        assert max(parkings.values()) > 1


def test_groups_are_handed_over_as_they_finish(parkings: Counter[int]) -> None:
    """Also where the last episode of one ends without a slot."""
    handed: Groups = []
    told: list[tuple[int, int]] = []
    found = RolloutEngine(tiny_policy(), slots=2).generate(
        asked(Environment(), 5, 2),
        max_new_tokens=BUDGET,
        on_group=lambda _, group: handed.append(group),
        progress=lambda *counts: told.append(counts),
    )
    assert parkings
    assert sorted(map(repr, handed)) == sorted(map(repr, found))
    assert told[-1] == (10, 10)


def test_parked_episodes_begin_anew_where_memory_runs_out(parkings: Counter[int]) -> None:
    def on_turn(_: int, ids: tuple[int, ...]) -> Future[tuple[int, ...]]:
        found: Future[tuple[int, ...]] = Future()
        found.set_result(() if len(ids) > BUDGET // 2 else answer(ids))
        return found

    some = [replace(request, on_turn=on_turn) for request in requests(6, 3, BUDGET)]
    whole = generate(64, some)
    engine = RolloutEngine(tiny_policy(), slots=6)
    step, failed = engine.step, []

    def failing(*arguments: Any) -> None:
        if len(parkings) == 3 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(*arguments)

    engine.step = failing
    assert details(engine.generate(some, max_new_tokens=BUDGET)) == details(whole)
    assert (failed, engine.slots) == ([True], 3)
