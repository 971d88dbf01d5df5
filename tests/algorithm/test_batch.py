"""Rows: one shift, masks from lengths, and splits that cover every row once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimrl.algorithm.batch import at_tokens, balanced, make_rows, microbatches, minibatches, take
from slimrl.records import Completion, Group, Problem, Rollout, Rows

PROBLEM = Problem("p", "?", "1")


def rollout(
    prompt: tuple[int, ...], tokens: tuple[int, ...], reward: float, finish: str = "stop", bad: str = ""
) -> Rollout:
    logprobs = tuple(-0.1 * (i + 1) for i in range(len(tokens)))
    return Rollout(PROBLEM, Completion(prompt, tokens, logprobs, finish), "", False, {}, reward, bad)  # type: ignore[arg-type]


GROUPS = [
    Group((rollout((5, 6), (7, 2), 1.0), rollout((5, 6), (8, 9, 4, 3), 0.0, "length")), step=3),
    Group((rollout((5,), (2,), 0.0), rollout((5,), (0, 2), 9.0, bad="broken")), step=2),
]


def make(overlong: bool) -> Rows:
    return make_rows(GROUPS, overlong_filtering=overlong, step=3, pad_id=0)


def test_by_hand() -> None:
    batch = make(overlong=True)
    assert batch.inputs.tolist() == [[5, 6, 7, 2, 0], [5, 6, 8, 9, 4], [5, 2, 0, 0, 0], [5, 0, 2, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 2, 0, 0], [6, 8, 9, 4, 3], [2, 0, 0, 0, 0], [0, 2, 0, 0, 0]]
    assert batch.lengths.tolist() == [3, 5, 1, 2]
    assert batch.completion_mask.int().tolist() == [
        [0, 1, 1, 0, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0],
    ]  # fmt: skip
    # The truncated row and the unscorable one carry no loss; a token equal to the padding id does.
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 0, 0], [0] * 5, [1, 0, 0, 0, 0], [0] * 5]
    spread = at_tokens(torch.tensor([[0.5, -0.5], [0.0, 0.0]]), batch.completion_mask)
    assert spread.tolist() == [[0, 0.5, 0.5, 0, 0], [0, -0.5, -0.5, -0.5, -0.5], [0] * 5, [0] * 5]
    torch.testing.assert_close(batch.sampler_logprobs[0], torch.tensor([0, -0.1, -0.2, 0, 0]))
    assert batch.on_policy.tolist() == [True, True, False, False]
    assert batch.groups.tolist() == [0, 0, 1, 1]


def test_overlong_filtering_changes_the_loss_mask_alone() -> None:
    on, off = make(overlong=True), make(overlong=False)
    assert off.loss_mask[1].sum() == 4
    assert torch.equal(on.completion_mask, off.completion_mask)


def test_take_trims_padding() -> None:
    part = take(make(overlong=False), torch.tensor([2, 0]))
    assert part.inputs.tolist() == [[5, 2, 0], [5, 6, 7]]


SHAPES = st.lists(
    st.tuples(st.integers(1, 20), st.lists(st.integers(0, 30), min_size=1, max_size=6)), min_size=1, max_size=9
)
"""Groups of (prompt, completions): a prompt costs its tokens once for the rows of its group in a micro-batch."""


class Layout:
    """The rows of groups, and what a micro-batch of them costs."""

    def __init__(self, shapes: list[tuple[int, list[int]]]) -> None:
        self.rows = [(group, prompt, prompt + size) for group, (prompt, sizes) in enumerate(shapes) for size in sizes]
        self.groups, self.prompts, self.lengths = (torch.tensor(column) for column in zip(*self.rows, strict=True))

    def parts(self, budget: int, ranks: int = 1) -> list[list[int]]:
        found = microbatches(self.lengths, self.prompts, self.groups, max_tokens=budget, ranks=ranks)
        return [part.tolist() for part in found]

    def tokens(self, part: list[int]) -> int:
        shared = {self.rows[i][0]: self.rows[i][1] for i in part}
        return sum(shared.values()) + sum(self.rows[i][2] - self.rows[i][1] for i in part)


@given(SHAPES, st.integers(1, 200))
def test_microbatches_cover_every_row_once_within_the_budget(shapes: list[tuple[int, list[int]]], budget: int) -> None:
    layout = Layout(shapes)
    parts = layout.parts(budget)
    assert sorted(i for part in parts for i in part) == list(range(len(layout.rows)))
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        assert len(part) == 1 or layout.tokens(part) <= budget
        assert following is None or layout.tokens([*part, following[0]]) > budget
    assert max(layout.lengths) in [layout.lengths[i] for i in parts[0]]


@given(SHAPES, st.integers(1, 200), st.integers(2, 5))
def test_micro_batches_of_several_ranks_are_as_small_as_their_number_allows(
    shapes: list[tuple[int, list[int]]], budget: int, ranks: int
) -> None:
    layout = Layout(shapes)
    parts, most = layout.parts(budget, ranks), -(-len(layout.parts(budget)) // ranks) * ranks
    tokens = [layout.tokens(part) for part in parts]
    assert [i for part in parts for i in part] == [i for part in layout.parts(10**9) for i in part]
    assert len(parts) <= most
    assert all(len(part) == 1 or layout.tokens(part) <= budget for part in parts)
    largest = max((n for n, part in zip(tokens, parts, strict=True) if len(part) > 1), default=0)
    assert not largest or len(layout.parts(largest - 1)) > most


@pytest.mark.parametrize(("budget", "count"), [(10_000, 2), (1_800, 2), (1_220, 4), (700, 6)])
def test_ranks_have_as_many_microbatches_and_as_much_work(budget: int, count: int) -> None:
    """16 groups of 8 as they are on real tasks. Three parts of two ranks would leave one idle for a quarter of the time."""
    layout = Layout([(50 + group % 7, [12 + (group * 5 + row * 3) % 17 for row in range(8)]) for group in range(16)])
    parts = layout.parts(budget, ranks=2)
    tokens = [layout.tokens(part) for part in parts]
    loads = [sum(tokens[i] for i in part) for part in balanced(tokens, 2)]
    assert len(parts) == count
    assert max(loads) / min(loads) < 1.04


def test_long_prompts_are_not_computed_more_often_for_several_ranks() -> None:
    """A micro-batch holds two groups with their prompts. One that began in the middle of a group would compute a prompt again."""
    layout = Layout(
        [(1800 + 16 * group, [5 + (group * 7 + row * 29) % 196 for row in range(8)]) for group in range(16)]
    )
    alone, shared = layout.parts(4096), layout.parts(4096, ranks=2)
    assert sum(map(layout.tokens, shared)) == sum(map(layout.tokens, alone))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 6))
def test_minibatches_never_split_a_group(sizes: list[int], count: int) -> None:
    groups = torch.tensor([g for g, size in enumerate(sizes) for _ in range(size)])
    parts = minibatches(groups, count=count)
    assert len(parts) == min(count, len(sizes))
    assert torch.cat(parts).tolist() == list(range(len(groups)))
    for first, second in pairwise(parts):
        assert groups[first[-1]] != groups[second[0]]
