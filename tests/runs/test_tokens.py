"""The numbers of tokens: which groups are stored, in which order, and what comes back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from slimrl.algorithm.groups import Collected
from slimrl.records import TRACED, Completion, Group, Problem, Rollout, Traced
from slimrl.runs.tokens import read_tokens, token_file


def group(name: str, *lengths: int, first: int = 0) -> Group:
    """A group whose completions have the ids `first`, `first` + 1, ..., each with a log-probability of -id / 8."""
    rollouts = []
    for length in lengths:
        ids = tuple(range(first, first + length))
        completion = Completion((1,), ids, tuple(-i / 8 for i in ids), "stop")
        rollouts.append(Rollout(Problem(name, name, name), completion, name, True, {}, 1.0))
    return Group(tuple(rollouts), 0)


def pieces(ids: list[int]) -> list[str]:
    return [f"<{i}>" for i in ids]


def traced(*lengths: int) -> Traced:
    """The number number n of the token at place t of row r is n + t / 8 - r."""
    mask = torch.zeros(len(lengths), 2 + max(lengths), dtype=torch.bool)
    numbers = torch.full((len(TRACED), *mask.shape), math.nan, dtype=torch.float16)
    for row, length in enumerate(lengths):
        mask[row, 2 : 2 + length] = True
        for n in range(len(TRACED)):
            numbers[n, row, 2 : 2 + length] = n + torch.arange(length) / 8 - row
    return Traced(numbers, mask)


def store(folder: Path, data: bytes | None) -> Path:
    assert data is not None
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / "step-00000001.npz").write_bytes(data)
    return folder


def test_numbers_come_back_by_the_line_of_their_completion(tmp_path: Path) -> None:
    unused, used, carried = group("a", 2, 1), group("b", 3, first=5), group("c", 1, 2, first=2)
    collected = Collected((used, carried), (), (unused, used), 2)
    found = read_tokens(store(tmp_path, token_file(collected, traced(3, 1, 2), 3, pieces)), 1)
    assert [*found] == [2, 3, 4, 0, 1], "trained groups first; lines are those of the sampled groups, then the carried"
    assert found[2].pieces == ("<5>", "<6>", "<7>")
    assert found[4].pieces == ("<2>", "<3>")
    assert found[2].numbers["sampler"].tolist() == [-0.625, -0.75, -0.875]
    assert found[2].numbers["gap"].tolist() == [1.0, 1.125, 1.25]
    assert found[4].numbers["weight"].tolist() == [4.0, 4.125]
    assert found[0].numbers["sampler"].tolist() == [0.0, -0.125]
    assert all(math.isnan(x) for x in found[0].numbers["weight"]), "nothing was trained on it"


def test_only_the_first_groups_are_stored_and_none_is_no_file(tmp_path: Path) -> None:
    collected = Collected((group("a", 2), group("b", 2)), (), (group("c", 2),), 2)
    assert [*read_tokens(store(tmp_path, token_file(collected, traced(2), 1, pieces)), 1)] == [1]
    assert token_file(collected, None, 0, pieces) is None
    assert token_file(Collected((), (), (), 2), None, 4, pieces) is None


def test_a_number_that_no_token_has_is_absent(tmp_path: Path) -> None:
    numbers = traced(2)
    numbers.numbers[TRACED.index("kl")] = math.nan
    only = group("a", 2)
    found = read_tokens(store(tmp_path, token_file(Collected((only,), (), (only,), 1), numbers, 4, pieces)), 1)
    assert set(found[0].numbers) == {"sampler", *TRACED} - {"kl"}


def test_the_same_step_gives_the_same_bytes() -> None:
    only = group("a", 5, 7)
    collected = Collected((only,), (), (only,), 1)
    assert token_file(collected, traced(5, 7), 4, pieces) == token_file(collected, traced(5, 7), 4, pieces)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_torn_or_missing_file_has_no_tokens(tmp_path: Path, share: float) -> None:
    only = group("a", 40)
    data = token_file(Collected((only,), (), (only,), 1), traced(40), 4, pieces)
    assert data is not None
    assert read_tokens(tmp_path, 1) == {}
    assert read_tokens(store(tmp_path, data[: int(share * len(data))]), 1) == {}
