"""The scheduler by hand: two requests of three samples and one of one, in four slots."""

from __future__ import annotations

import numpy as np

from slimrl.rollout.scheduler import PATIENCE, Scheduler


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def started() -> Scheduler:
    schedule = Scheduler([3, 1, 3])
    assert schedule.enter(4).tolist() == [0, 1, 2, 3]
    schedule.stored = np.array([0, 1])
    schedule.time = 5
    return schedule


def test_samples_enter_in_order_where_slots_are_free() -> None:
    schedule = started()
    assert schedule.first_waiting == 2
    assert not len(schedule.enter(4))
    schedule.close_slots(flags(0, 1, 0, 0))
    assert schedule.enter(4).tolist() == [4]
    assert schedule.rows.tolist() == [0, 3, 2, 4]
    assert schedule.entered_at.tolist() == [0, 0, 0, 5]
    schedule.close_slots(flags(1, 1, 1, 1))
    assert schedule.enter(4).tolist() == [5, 6]
    assert schedule.time == 0, "all slots were empty"
    assert schedule.first_waiting == 3, "there are three requests"


def test_rows_from_the_end_move_into_the_slots_of_those_that_leave() -> None:
    schedule = started()
    moves = schedule.close_slots(flags(1, 0, 1, 0))
    assert (moves.kept, moves.target.tolist(), moves.source.tolist()) == (2, [0], [3])
    assert schedule.rows.tolist() == [3, 1]


def test_a_request_is_complete_with_its_last_sample_and_then_its_prompt_leaves() -> None:
    schedule = started()
    assert [list(schedule.finish(sample)) for sample in (2, 0, 1)] == [[], [], [0, 1, 2]]
    moves = schedule.close_prompts()
    assert (moves.kept, moves.target.tolist(), moves.source.tolist()) == (1, [0], [1])
    assert schedule.stored.tolist() == [1]


def test_rows_of_one_prompt_are_numbered() -> None:
    schedule = started()
    schedule.close_slots(flags(1, 0, 0, 0))
    assert schedule.rows.tolist() == [3, 1, 2]
    place, seat = schedule.seats()
    assert place.tolist() == [1, 0, 0]
    assert seat.tolist() == [0, 0, 1]


def test_a_few_finished_rows_wait_for_more() -> None:
    schedule = Scheduler([3 * PATIENCE])
    schedule.enter(2 * PATIENCE)
    done = np.arange(2 * PATIENCE)
    assert not schedule.worth_closing(done < 1)
    assert schedule.worth_closing(done < 2)
    few = Scheduler([2])
    few.enter(2)
    assert few.worth_closing(flags(0, 1))
    assert not few.worth_closing(flags(0, 0))


def test_samples_that_left_come_back_before_others_enter() -> None:
    schedule = started()
    assert schedule.fresh == 3
    schedule.close_slots(flags(1, 0, 1, 0))
    schedule.come_back([2], [4])
    assert schedule.enter(4).tolist() == [4]
    assert schedule.rows.tolist() == [3, 1, 2, 4]
    assert schedule.entered_at.tolist() == [0, 0, 2, 5], (
        "at times 2, 3 and 4 it would have fed the tokens before its last"
    )
    assert schedule.fresh == 2
    schedule.close_slots(flags(1, 1, 1, 1))
    assert schedule.enter(1, restart=False).tolist() == [5]
    assert schedule.time == 5, "so that a row of as many tokens can come back"


def test_prompts_without_a_slot_can_make_room() -> None:
    schedule = started()
    schedule.stored = np.array([0, 1, 2])
    assert not schedule.idle_prompts(0).any()
    assert schedule.idle_prompts(3).tolist() == [False, False, True]
    schedule.close_slots(flags(1, 1, 1, 0))
    assert schedule.idle_prompts(1).tolist() == [True, False, False]
    schedule.close_prompts(schedule.idle_prompts(1))
    assert schedule.stored.tolist() == [2, 1]
