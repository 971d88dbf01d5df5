"""Episodes: what an environment writes is fed as it is, every turn is conditioned on all ids before it, and nothing depends on who waits."""

from __future__ import annotations

import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from slimrl.algorithm.batch import make_rows
from slimrl.machine.signals import Stop, Stopped
from slimrl.model.policy import Policy
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.rollout import OnTurn, Request
from slimrl.rollout.engine import RolloutEngine
from tests.rollout.test_engine import VOCABULARY, Recorded, requests, trainer_gaps
from tests.tiny import FAMILIES, FUSIBLE
from tests.tiny import tiny_policy as tiny

BUDGET, TURNS = 40, 3
STOPS = tuple(range(2, 12))


def tiny_policy(family: str = "qwen2") -> Policy:
    """Of which one token in six ends a turn."""
    return replace(tiny(family), stop_ids=STOPS)


def answer(ids: tuple[int, ...]) -> tuple[int, ...]:
    """The environment's tokens after these: a pure function of them, one to six, stop ids among them."""
    rng = np.random.default_rng([len(ids), *ids])
    return tuple(rng.integers(0, VOCABULARY, size=rng.integers(1, 7)).tolist())


class Environment:
    """Answers a few turns of each episode, at once or after a time, in any order, from other threads."""

    def __init__(self, pool: ThreadPoolExecutor | None = None, seconds: float = 0.0) -> None:
        self.pool, self.seconds = pool, seconds
        self.heard: dict[tuple[int, int], list[tuple[int, ...]]] = {}

    def of(self, request: int) -> OnTurn:
        def on_turn(number: int, ids: tuple[int, ...]) -> Future[tuple[int, ...]]:
            self.heard.setdefault((request, number), []).append(ids)
            over = len(self.heard[request, number]) > TURNS
            if self.pool is not None:
                return self.pool.submit(self.late, () if over else answer(ids))
            found: Future[tuple[int, ...]] = Future()
            found.set_result(() if over else answer(ids))
            return found

        return on_turn

    def late(self, reply: tuple[int, ...]) -> tuple[int, ...]:
        time.sleep(random.random() * self.seconds)
        return reply


def asked(environment: Environment, count: int = 6, samples: int = 4, **how: int) -> list[Request]:
    plain = requests(count, samples, BUDGET)
    return [replace(request, on_turn=environment.of(i), **how) for i, request in enumerate(plain)]


def ids_of(groups: list[tuple[Completion, ...]]) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in group] for group in groups]


class Answered(dict[str, list[tuple[Completion, ...]]]):
    """Episodes of each family with an environment that answers at once, played when they are first asked for."""

    def __missing__(self, family: str) -> list[tuple[Completion, ...]]:
        engine = RolloutEngine(tiny_policy(family), slots=7)
        self[family] = engine.generate(asked(Environment()), max_new_tokens=BUDGET)
        return self[family]


@pytest.fixture(scope="module")
def prompt_answers() -> dict[str, list[tuple[Completion, ...]]]:
    return Answered()


def turns_of(completion: Completion) -> list[range]:
    """The places of the environment's tokens, one range a turn."""
    places = [place for place, given in enumerate(completion.given) if given]
    starts = [place for place in places if place - 1 not in places]
    return [range(start, next(p for p in range(start, BUDGET + 2) if p not in places)) for start in starts]


@pytest.mark.parametrize("family", [*FAMILIES, *FUSIBLE])
def test_sampler_and_trainer_agree_over_all_turns(
    family: str, prompt_answers: dict[str, list[tuple[Completion, ...]]]
) -> None:
    groups = prompt_answers[family]
    assert sum(len(turns_of(c)) > 1 for group in groups for c in group) > 5
    gaps = trainer_gaps(tiny_policy(family), groups, 1.0)
    assert len(gaps) == sum(c.drawn for group in groups for c in group)
    assert gaps.max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_turn_is_what_a_fresh_prompt_of_all_ids_before_it_draws(
    family: str, prompt_answers: dict[str, list[tuple[Completion, ...]]]
) -> None:
    plain, again, wanted = requests(6, 4, BUDGET), [], []
    for request, group in zip(plain, prompt_answers[family], strict=True):
        for completion, uniforms in zip(group, request.uniforms, strict=True):
            for span in turns_of(completion):
                assert completion.token_ids[span.start : span.stop] == answer(completion.token_ids[: span.start])
                ids, padded = completion.token_ids[: span.stop], np.zeros((1, BUDGET))
                padded[0, : BUDGET - span.stop] = uniforms[span.stop :]
                again.append(Request((*completion.prompt_ids, *ids), padded))
                wanted.append(completion.token_ids[span.stop :])
    fresh = RolloutEngine(tiny_policy(family), slots=16).generate(again, max_new_tokens=BUDGET)
    assert len(wanted) > 30
    for (found,), ids in zip(fresh, wanted, strict=True):
        own = next((n for n, token in enumerate(ids) if token in STOPS), len(ids)) + 1
        assert found.token_ids[: len(ids[:own])] == ids[:own]


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "wide llama", "wide mistral"])
@pytest.mark.parametrize("slots", [3, 64])
def test_tokens_do_not_depend_on_the_order_in_which_environments_answer(
    family: str, slots: int, prompt_answers: dict[str, list[tuple[Completion, ...]]]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        late = Environment(pool, seconds=0.02)
        found = RolloutEngine(tiny_policy(family), slots=slots).generate(asked(late), max_new_tokens=BUDGET)
    at_once = RolloutEngine(tiny_policy(family), slots=slots).generate(asked(Environment()), max_new_tokens=BUDGET)
    assert found == at_once, "to the last bit of each log-probability"
    assert ids_of(found) == ids_of(prompt_answers[family])
    assert [[c.given for c in group] for group in found] == [[c.given for c in g] for g in prompt_answers[family]]


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_steps_draw_the_same_episodes(
    family: str, prompt_answers: dict[str, list[tuple[Completion, ...]]]
) -> None:
    """With looks from the host every few steps, so that rows draw on for nothing before they are heard."""
    engine = RolloutEngine(tiny_policy(family), slots=8, runner=Recorded(5))
    for _ in range(2):
        found = engine.generate(asked(Environment()), max_new_tokens=BUDGET)
        assert ids_of(found) == ids_of(prompt_answers[family])


def test_turns_and_episodes_have_budgets() -> None:
    policy = tiny_policy()
    whole = RolloutEngine(policy, slots=8).generate(asked(Environment()), max_new_tokens=BUDGET)
    short = RolloutEngine(policy, slots=8).generate(asked(Environment(), turn_tokens=5), max_new_tokens=BUDGET)
    for group, cut in zip(whole, short, strict=True):
        for completion, other in zip(group, cut, strict=True):
            assert len(completion.token_ids) <= BUDGET
            drawn = completion.token_ids[-1] in policy.stop_ids
            assert (completion.finish == "stop") == (drawn and len(turns_of(completion)) == TURNS)
            assert other.token_ids == completion.token_ids[: len(other.token_ids)]
            ends = [0, *(span.stop for span in turns_of(other))]
            starts = [*(span.start for span in turns_of(other)), len(other.token_ids)]
            lengths = [end - start for start, end in zip(ends, starts, strict=True)]
            assert max(lengths) <= 5
            if other.finish == "length" and len(other.token_ids) < len(completion.token_ids):
                assert lengths[-1] == 5
    assert any(c.finish == "length" for group in short for c in group)


def test_the_environments_tokens_carry_no_loss() -> None:
    problem = Problem("p", "q", "1")
    completion = Completion(
        (5, 6),
        (7, 2, 8, 9, 3, 2),
        (-1.0, -2.0, 0.0, 0.0, -3.0, -4.0),
        "stop",
        (False,) * 2 + (True,) * 2 + (False,) * 2,
    )
    plain = Completion((5, 6), (7, 2), (-1.0, -2.0), "stop")
    rollouts = tuple(Rollout(problem, c, "", True, {}, 0.0) for c in (completion, plain))
    rows = make_rows([Group(rollouts, 0)], overlong_filtering=False, step=0, pad_id=0)
    assert rows.inputs[0].tolist() == [5, 6, 7, 2, 8, 9, 3]
    assert rows.completion_mask.tolist() == [
        [False, True, True, False, False, True, True],
        [False, True, True, *[False] * 4],
    ]
    assert torch.equal(rows.loss_mask, rows.completion_mask)
    assert (completion.drawn, completion.last_turn(), plain.drawn, plain.last_turn()) == (4, (3, 2), 2, (7, 2))


def test_a_stop_is_heard_while_all_wait() -> None:
    stop, pool = Stop(), ThreadPoolExecutor(1)

    def on_turn(_: int, __: tuple[int, ...]) -> Future[tuple[int, ...]]:
        stop.ask("a test", 75)
        return pool.submit(lambda: time.sleep(1) or ())  # type: ignore[func-returns-value]

    engine = RolloutEngine(tiny_policy(), slots=4, stop=stop)
    some = [replace(request, on_turn=on_turn) for request in requests(2, 2, BUDGET)]
    with pytest.raises(Stopped), pool:
        engine.generate(some, max_new_tokens=BUDGET)


def test_an_error_of_an_environment_is_raised() -> None:
    found: Future[tuple[int, ...]] = Future()
    found.set_exception(KeyError("mine"))
    some = [replace(request, on_turn=lambda *_: found) for request in requests(2, 2, BUDGET)]
    with pytest.raises(KeyError, match="mine"):
        RolloutEngine(tiny_policy(), slots=4).generate(some, max_new_tokens=BUDGET)
