"""Tables of tensors: what is found in them, and how many are in memory at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slimrl.machine.tensors import TensorStream, are_finite, holds_finite, outline_of
from slimrl.runs.durable import StoredTensors, digest, write_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(2.0), "c": torch.arange(5).to(torch.bfloat16)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_that_is_not_finite_is_found(dtype: torch.dtype) -> None:
    fine = torch.linspace(-9, 9, 10_000).to(dtype)
    assert are_finite([fine, fine.view(100, 100).T, fine[:0], torch.arange(3), torch.tensor([True])])
    for number in (float("nan"), float("inf"), float("-inf")):
        for place in (0, 7_777, -1):
            spoilt = fine.clone()
            spoilt[place] = number
            assert not are_finite([fine, spoilt])


class Watched:
    """A stream of TENSORS that counts those which are in memory."""

    def __init__(self) -> None:
        self.most = 0
        outline = {name: torch.empty_like(tensor, device="meta") for name, tensor in TENSORS.items()}
        self.stream = TensorStream(outline, self._contents(), finite=True)

    def _contents(self) -> Iterator[Tensor]:
        alive: list[weakref.ref[Tensor]] = []
        for name in TENSORS:
            tensor = TENSORS[name].clone()
            alive.append(weakref.ref(tensor))
            self.most = max(self.most, sum(one() is not None for one in alive))
            box = [tensor]
            del tensor
            yield box.pop()


def test_one_tensor_of_a_stream_is_in_memory_at_once(tmp_path: Path) -> None:
    path, whole = tmp_path / "stream.safetensors", tmp_path / "whole.safetensors"
    written, hashed = Watched(), Watched()
    assert write_tensors(path, written.stream) == write_tensors(whole, TENSORS)
    assert path.read_bytes() == whole.read_bytes()
    assert digest(hashed.stream.items()) == digest(TENSORS.items())
    assert (written.most, hashed.most) == (1, 1)


def test_what_was_not_read_of_a_stream_can_be_read_to_its_end() -> None:
    stream = Watched().stream
    name, tensor = next(stream.items())
    assert (name, tensor.tolist()) == ("a", TENSORS["a"].tolist())
    stream.drain()
    assert not [*stream.contents]


def test_outline_and_verdict_of_both_kinds_of_tables() -> None:
    stream = Watched().stream
    for table in (TENSORS, stream):
        assert {name: (t.shape, t.dtype) for name, t in outline_of(table).items()} == {
            name: (t.shape, t.dtype) for name, t in TENSORS.items()
        }
        assert holds_finite(table)
    assert not holds_finite({**TENSORS, "d": torch.tensor(float("nan"))})
    assert len([*stream.contents]) == 3, "neither reads it"


def test_stored_tensors_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    found = StoredTensors(tmp_path / "a.safetensors")
    assert found.keys() == TENSORS.keys()
    assert len(found) == 3
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    with pytest.raises(KeyError):
        found["d"]
